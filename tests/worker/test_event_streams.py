"""Watching a worker from the application around it: no plugin, nothing registered."""

import asyncio
from typing import TYPE_CHECKING

from tests.support.until import until

from backfill.hooks import JobComplete, JobFail, WorkerShutdown, WorkerStart
from backfill.model import task

if TYPE_CHECKING:
    from tests.worker.conftest import MakeRunner, RunWorker, Sql


@task("task")
async def odd_ones_fail(payload: dict[str, int]) -> None:
    if payload["n"] % 2:
        raise OSError("odd")


async def test_events_of_a_run_come_in_order_and_end_with_it(make_runner: "MakeRunner", sql: "Sql") -> None:
    await sql.add_many(10, "task")
    runner = await make_runner(odd_ones_fail)
    everything, some = runner.events(), runner.events(JobComplete, "job_fail")
    assert await runner.process_available_jobs() == 10
    events = [event async for event in everything]
    assert isinstance(events[0], WorkerStart)
    assert isinstance(events[-1], WorkerShutdown)
    by_job: dict[int, list[str]] = {}
    for event in events:
        if hasattr(event, "job"):
            by_job.setdefault(event.job.id, []).append(event.name)
    assert len(by_job) == 10
    for names in by_job.values():
        assert names[:2] == ["job_fetch", "job_start"]
        assert names[2:] in (["job_complete"], ["job_fail"])
    ended = [event async for event in some]
    assert sorted(type(event).__name__ for event in ended) == ["JobComplete"] * 5 + ["JobFail"] * 5
    assert all(event.job.payload["n"] % 2 for event in ended if isinstance(event, JobFail))


async def test_a_reader_beside_the_worker_gets_events_as_they_come(run_worker: "RunWorker", sql: "Sql") -> None:
    read: list[int] = []

    async with run_worker(odd_ones_fail) as running:

        async def reader() -> None:
            async for event in running.runner.events(JobComplete):
                assert isinstance(event, JobComplete)
                read.append(event.job.id)

        reading = asyncio.create_task(reader())
        await asyncio.sleep(0)
        first = await sql.add(payload={"n": 2})
        await until(lambda: read == [first], "the first is read")
        second = await sql.add(payload={"n": 4})
        await until(lambda: read == [first, second], "the second is read")
        await running.end()
        async with asyncio.timeout(30):
            await reading


async def test_a_reader_that_reads_nothing_holds_nobody_up(run_worker: "RunWorker", sql: "Sql") -> None:
    async with run_worker(odd_ones_fail) as running:
        stream = running.runner.events(JobComplete, buffer=3)
        for n in range(20):
            await sql.add(payload={"n": 2 * n})
        await until(lambda: running.worker.releaser.ran == 20, "all have run")
    assert len([event async for event in stream]) == 3
    assert stream.dropped == 17


async def test_a_closed_runner_ends_its_streams(make_runner: "MakeRunner") -> None:
    runner = await make_runner(odd_ones_fail)
    stream = runner.events()
    await runner.close()
    assert [event async for event in stream] == []
