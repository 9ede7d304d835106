"""Cron in a worker: the builder, and jobs that are added and run."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest
from tests.cron.conftest import MINUTE, Cron
from tests.support.until import until

from backfill import CronItem, WorkerConfig, WorkerRunner, task
from backfill.errors import CrontabError
from backfill.worker import WorkerRunnerBuilder

if TYPE_CHECKING:
    from tests.conftest import Database

LINE = "0 4 * * 1-5 note ?id=nightly"


@pytest.fixture
def ran() -> "asyncio.Queue[Any]":
    """The payloads of the jobs that were run."""
    return asyncio.Queue()


@pytest.fixture
def builder(db: "Database", ran: "asyncio.Queue[Any]") -> WorkerRunnerBuilder:
    @task("note")
    async def note(payload: Any) -> None:
        ran.put_nowait(payload)

    return WorkerRunner.builder(WorkerConfig(database_url=db.dsn, schema=db.schema)).define_job(note)


@pytest.fixture
async def runners() -> AsyncIterator[list[WorkerRunner]]:
    """Runners to close at the end."""
    made: list[WorkerRunner] = []
    yield made
    for runner in made:
        await runner.close()


def test_lines_items_and_crontabs_add_up(builder: WorkerRunnerBuilder) -> None:
    """R-9."""
    item = CronItem("note", "@daily", identifier="daily")
    builder.add_cron_schedule(LINE).add_cron_schedule(item).add_crontab("# two\n* * * * * a\n* * * * * b\n")
    assert [each.identifier for each in builder.cron_items] == ["nightly", "daily", "a", "b"]
    assert builder.cron_items[1] is item


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("60 * * * * note", "line 1, column 1: expected minutes of 0-59, found '60'"),
        ("", "expected one line of a crontab (add_crontab takes several), found 0 items in ''"),
        ("* * * * * a\n* * * * * b", "found 2 items"),
        (LINE, "found 'nightly', which an item has that was added before"),
        (7, "expected a line of a crontab or a CronItem, found 7"),
    ],
)
def test_a_bad_line_is_an_error_at_once(builder: WorkerRunnerBuilder, line: Any, words: str) -> None:
    builder.add_cron_schedule(LINE)
    with pytest.raises(CrontabError) as caught:
        builder.add_cron_schedule(line)
    assert words in str(caught.value)
    assert len(builder.cron_items) == 1


def test_of_a_crontab_all_or_nothing_is_added(builder: WorkerRunnerBuilder) -> None:
    with pytest.raises(CrontabError):
        builder.add_cron_schedule(LINE).add_crontab(f"* * * * * a\n{LINE}")
    assert len(builder.cron_items) == 1


def test_an_item_that_never_runs_is_warned_of(builder: WorkerRunnerBuilder, caplog: pytest.LogCaptureFixture) -> None:
    builder.add_cron_schedule(CronItem("note", "0 0 31 6 *"))
    assert "cron item note (an item in code) never runs" in caplog.text


async def test_a_worker_schedules_its_items_and_runs_their_jobs(
    builder: WorkerRunnerBuilder, cron: Cron, runners: list[WorkerRunner], ran: "asyncio.Queue[Any]"
) -> None:
    minute = datetime.now(UTC).replace(second=0, microsecond=0)
    await cron.know("due", minute - 10 * MINUTE)
    builder.add_cron_schedule("* * * * * note ?id=due&missed=latest {n: 1}")
    runners.append(await builder.build())
    stop = asyncio.Event()
    background = runners[0].spawn_background(stop)
    async with asyncio.timeout(30):
        payload = await ran.get()
    assert payload["n"] == 1
    assert payload["_cron"]["backfilled"] is True
    assert minute - MINUTE <= datetime.fromisoformat(payload["_cron"]["ts"]) <= minute + MINUTE
    stop.set()
    assert await background == 0


async def test_what_no_handler_runs_is_warned_of(
    builder: WorkerRunnerBuilder, runners: list[WorkerRunner], caplog: pytest.LogCaptureFixture
) -> None:
    runners.append(await builder.add_cron_schedule("* * * * * other").build())
    assert "cron item other adds jobs of task other, which this worker does not run" in caplog.text


async def test_running_what_is_available_schedules_nothing(
    builder: WorkerRunnerBuilder, cron: Cron, runners: list[WorkerRunner]
) -> None:
    runners.append(await builder.add_cron_schedule("* * * * * note ?fill=1h").build())
    assert await runners[0].process_available_jobs() == 0
    assert await cron.known() == {}


async def test_a_stop_ends_cron_before_the_jobs_that_still_run(
    db: "Database", cron: Cron, runners: list[WorkerRunner]
) -> None:
    began, may_end, ended = asyncio.Event(), asyncio.Event(), asyncio.Event()

    @task("long")
    async def long() -> None:
        began.set()
        try:
            await may_end.wait()
        finally:
            ended.set()

    config = WorkerConfig(database_url=db.dsn, schema=db.schema)
    builder = WorkerRunner.builder(config).define_job(long).add_cron_schedule("0 0 1 1 * long")
    runners.append(await builder.build())
    stop = asyncio.Event()
    background = runners[0].spawn_background(stop)
    await runners[0].client.enqueue("long")
    async with asyncio.timeout(30):
        await began.wait()
    stop.set()
    loops = {each.get_name(): each for each in asyncio.all_tasks()}
    await until(loops["cron"].done, "cron has ended")
    assert not ended.is_set()
    may_end.set()
    await background
