"""X-10: what a worker does when somebody takes the schema to another revision while it runs."""

import asyncio
import json
import logging
from typing import TYPE_CHECKING

import pytest

from backfill.errors import BreakingMigrationError
from backfill.model import task

if TYPE_CHECKING:
    from tests.worker.conftest import RunWorker, Sql, Until

RECORD = "insert into graphile_worker.migrations (id, breaking) values ($1, $2)"


async def announce(sql: "Sql", revision: int, *, breaking: bool) -> None:
    said = json.dumps({"migrationNumber": revision, "breaking": breaking})
    await sql.value("select pg_notify('worker:migrate', $1)", said)


async def test_a_breaking_revision_stops_it_in_order(
    sql: "Sql", run_worker: "RunWorker", caplog: pytest.LogCaptureFixture
) -> None:
    started, may_end = asyncio.Event(), asyncio.Event()

    @task("task")
    async def runs_meanwhile() -> None:
        started.set()
        await may_end.wait()

    async with run_worker(runs_meanwhile) as running:
        await sql.add()
        await started.wait()
        await sql.run(RECORD, 21, True)  # noqa: FBT003 - a column
        await announce(sql, 21, breaking=True)
        while not running.worker.claimer.stopping:
            await asyncio.sleep(0)
        await sql.add()
        may_end.set()
        with pytest.raises(
            BreakingMigrationError, match=r"breaking revision 21 .* knows up to 20.*upgrade backfill"
        ) as caught:
            await running.task
        assert caught.value.revision == 21
    assert await sql.count() == 1  # that which came too late
    assert await sql.locks() == (0, 0)
    assert [record.levelname for record in caplog.records if "loop" in record.message] == []


@pytest.mark.parametrize(
    "payload", ['{"migrationNumber":21,"breaking":true}', "", "no JSON", "[]", '{"migrationNumber":"x"}']
)
async def test_what_happens_to_other_schemas_does_not_stop_it(
    sql: "Sql", run_worker: "RunWorker", until: "Until", payload: str
) -> None:
    """The channel is the whole database's."""
    ran = asyncio.Event()

    @task("task")
    async def runs() -> None:
        ran.set()

    async with run_worker(runs) as running:
        watch = running.worker._migrations
        looked = []
        look = watch._look

        async def seen() -> None:
            await look()
            looked.append(True)

        watch._look = seen  # type: ignore[method-assign] # to see that it has looked
        await sql.value("select pg_notify('worker:migrate', $1)", payload)
        await until(lambda: looked, "it has looked at its own ledger")
        await sql.add()
        await ran.wait()
        assert not running.task.done()


async def test_revisions_that_it_knows_are_nothing_new(sql: "Sql", run_worker: "RunWorker", until: "Until") -> None:
    ran = asyncio.Event()

    @task("task")
    async def runs() -> None:
        ran.set()

    async with run_worker(runs) as running:
        watch = running.worker._migrations
        await until(lambda: not watch._asked.is_set(), "it has looked at the beginning")
        asked: list[int] = []
        watch._asked.set = lambda: asked.append(1)  # type: ignore[method-assign] # nothing may ask it
        await announce(sql, 19, breaking=True)
        await sql.add()
        await ran.wait()
        assert asked == []


async def test_a_revision_that_is_not_breaking_makes_it_careful(
    sql: "Sql", run_worker: "RunWorker", until: "Until", caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "backfill")

    @task("task")
    async def runs() -> None:
        pass

    async with run_worker(runs) as running:
        assert running.runner.client.enqueuer.familiar
        await sql.run(RECORD, 21, False)  # noqa: FBT003 - a column
        await announce(sql, 21, breaking=False)
        await until(lambda: not running.runner.client.enqueuer.familiar, "it adds jobs by add_job alone")
        await sql.add()
        await until(lambda: running.worker.releaser.ran == 1, "it goes on")
        assert not running.task.done()
    assert "not breaking: the worker goes on" in caplog.text


async def test_a_notification_that_was_missed(sql: "Sql", run_worker: "RunWorker") -> None:
    """While LISTEN was down; it looks when that is up again."""

    @task("task")
    async def runs() -> None:
        pass

    async with run_worker(runs) as running:
        await sql.run(RECORD, 21, True)  # noqa: FBT003 - a column
        ended = await sql.value(
            "select count(pg_terminate_backend(pid)) from pg_stat_activity"
            " where datname = current_database() and application_name like '%:listen'"
        )
        assert ended == 1
        with pytest.raises(BreakingMigrationError):
            await running.task
