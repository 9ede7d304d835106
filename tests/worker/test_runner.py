"""Building a runner: what it refuses, and what it says about itself."""

import dataclasses
import logging
import re
from datetime import timedelta
from typing import TYPE_CHECKING, Any, ClassVar

import msgspec
import pytest

from backfill.errors import ConfigurationError, DatabaseError
from backfill.model import TaskHandler, task
from backfill.worker import QueueConfig, WorkerConfig, WorkerContext, WorkerRunner

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.conftest import Database
    from tests.worker.conftest import MakeRunner, RunWorker, Sql, Until

URL = "postgresql://nobody@127.0.0.1:1/nowhere"
RAN: list[Any] = []


@task("send")
async def send(payload: dict[str, Any]) -> None:
    RAN.append(payload)


@task("send")
async def other_send(payload: dict[str, Any]) -> None:
    RAN.append(payload)


@dataclasses.dataclass
class Resize(TaskHandler):
    IDENTIFIER: ClassVar[str] = "resize"
    width: int

    async def run(self, ctx: WorkerContext) -> None:
        RAN.append((self, ctx.job.task_identifier))


class Crop(msgspec.Struct, TaskHandler):
    IDENTIFIER: ClassVar[str] = "crop"
    width: int

    async def run(self, ctx: WorkerContext) -> None:
        RAN.append((self, ctx.attempt))


@pytest.fixture(autouse=True)
def forget() -> None:
    RAN.clear()


async def test_without_a_job_there_is_nothing_to_build() -> None:
    with pytest.raises(ConfigurationError, match="define_job"):
        await WorkerRunner.builder(WorkerConfig(database_url=URL)).build()


def test_one_identifier_twice_is_refused_with_both_places() -> None:
    builder = WorkerRunner.builder(WorkerConfig(database_url=URL)).define_job(send)
    with pytest.raises(ConfigurationError, match="'send'") as caught:
        builder.define_job(other_send)
    assert str(caught.value).count(f"{__file__}:") == 2


def test_the_same_task_twice_is_no_mistake() -> None:
    WorkerRunner.builder(WorkerConfig(database_url=URL)).define_job(send).define_job(send).define_job(Crop).define_job(
        Crop
    )


async def test_a_database_that_cannot_be_reached_is_named() -> None:
    builder = WorkerRunner.builder(WorkerConfig(database_url=URL)).define_job(send)
    with pytest.raises(DatabaseError, match="nowhere"):
        await builder.build()


async def test_it_installs_the_schema(empty_db: "Database") -> None:
    config = WorkerConfig(database_url=empty_db.dsn, schema="made by a worker")
    async with await WorkerRunner.builder(config).define_job(send).build() as runner:
        assert runner.client.schema == "made by a worker"
        await runner.client.enqueue("send", {"a": 1})
        assert await runner.process_available_jobs() == 1
    assert RAN == [{"a": 1}]


async def test_what_it_says_about_itself(make_runner: "MakeRunner", make_config: "Callable[..., WorkerConfig]") -> None:
    lanes = [QueueConfig("a", 3, priority_range=(-5, -1)), QueueConfig("b", 4)]
    runner = await make_runner(send, queue_configs=lanes)
    assert (runner.worker_count, runner.dlq_processor_enabled, runner.worker) == (7, True, None)
    off = await make_runner(send, dlq_processor_interval=None)
    assert not off.dlq_processor_enabled
    config = make_config()
    assert WorkerRunner.builder(config).config is config


async def test_classes_are_handlers(sql: "Sql", make_runner: "MakeRunner") -> None:
    runner = await make_runner(Resize, Crop)
    await runner.client.enqueue_task(Resize(3))
    await runner.client.enqueue_task(Crop(4))
    assert await runner.process_available_jobs() == 2
    assert sorted(map(str, RAN)) == ["(Crop(width=4), 1)", "(Resize(width=3), 'resize')"]


async def test_gaps_and_odd_lanes_are_warned_of(
    sql: "Sql", run_worker: "RunWorker", caplog: pytest.LogCaptureFixture
) -> None:
    lanes = [QueueConfig.priority_queue("some", 1, 0, 5), QueueConfig.named_queue("q", 3)]
    async with run_worker(send, queue_configs=lanes):
        pass
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert any("-32768..-1, 6..32767" in message for message in warnings)
    assert any("lane q has 3 slots" in message for message in warnings)


async def test_whole_lanes_are_not(sql: "Sql", run_worker: "RunWorker", caplog: pytest.LogCaptureFixture) -> None:
    async with run_worker(send):
        pass
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


@pytest.mark.parametrize("log_jobs", [False, True])
async def test_a_line_for_each_job_only_when_asked_for(
    sql: "Sql", run_worker: "RunWorker", until: "Until", caplog: pytest.LogCaptureFixture, *, log_jobs: bool
) -> None:
    caplog.set_level(logging.INFO, "backfill.worker")
    async with run_worker(send, log_jobs=log_jobs) as running:
        job_id = await sql.add("send")
        await until(lambda: running.worker.releaser.ran == 1, "it has run")
    lines = [record for record in caplog.records if record.getMessage().startswith(f"job {job_id} (send) done")]
    assert len(lines) == log_jobs
    if lines:
        assert (lines[0].job_id, lines[0].task, lines[0].attempt) == (job_id, "send", 1)  # type: ignore[attr-defined] # extra


async def test_a_failure_is_logged_with_what_comes_next(
    sql: "Sql", make_runner: "MakeRunner", caplog: pytest.LogCaptureFixture
) -> None:
    @task("fails")
    async def fails() -> None:
        raise RuntimeError("no luck")

    job_id = await sql.add("fails", max_attempts=2)
    runner = await make_runner(fails)
    await runner.process_available_jobs()
    await sql.run("update graphile_worker._private_jobs set run_at = now()")
    await runner.process_available_jobs()
    first, second = [record for record in caplog.records if record.levelno == logging.WARNING]
    said = rf"job {job_id} \(fails\) failed in attempt 1 of 2, next run in 2\.\d s: RuntimeError: no luck"
    assert re.fullmatch(said, first.getMessage())
    (entry,) = await sql.dead()
    assert f"failed for good in attempt 2 of 2 (exhausted), now dead letter {entry['id']}" in second.getMessage()


async def test_it_can_be_closed_twice(make_runner: "MakeRunner") -> None:
    runner = await make_runner(send)
    await runner.close()
    await runner.close()


async def test_settings_reach_the_worker(make_runner: "MakeRunner", sql: "Sql") -> None:
    runner = await make_runner(send, poll_interval=timedelta(seconds=9))
    await runner.process_available_jobs()
    assert runner.worker is not None
    assert 9 <= runner.worker.claimer._pause() <= 9 * 1.25
