"""Workers that are killed, frozen, or can't be stopped: their jobs run elsewhere, in time and not before; with real processes."""

import signal

import pytest
from tests.cli.conftest import KILL, CommandLine, Rows, locks
from tests.support.until import until
from tests.worker.test_processes import ended, pids_in

from backfill import BackfillClient, JobSpec, Queue

LEASE = {"BACKFILL_LEASE_SECS": "5"}
TASKS = """
import asyncio, os, signal, time
from pathlib import Path
from backfill import WorkerContext, task

def say(*words):
    os.write(1, (" ".join(map(str, words)) + "\\n").encode())

@task
async def waits(payload, ctx: WorkerContext):
    say("began", payload)
    try:
        while not Path("go").exists():
            await asyncio.sleep(0.01)
        async with ctx.transaction() as connection:
            await connection.execute("insert into effects values ($1, $2)", payload, os.getpid())
    except BaseException as error:
        say("cut off", payload, type(error).__name__)
        raise
    say("ended", payload)

@task
async def quick(payload):
    say("quick", payload)

@task
async def poison(payload):
    say("poison")
    os.kill(os.getpid(), signal.SIGKILL)

@task
def in_thread(payload):
    say("began", payload)
    while not Path("go").exists():
        time.sleep(0.01)
"""
RUNNING = "select id from graphile_worker.backfill_workers order by started_at"
DUE = "update graphile_worker._private_jobs set run_at = now() where run_at > now() returning id"


@pytest.fixture(autouse=True)
async def tasks(cli: CommandLine, rows: Rows) -> None:
    (cli.folder / "vital.py").write_text(TASKS)
    await rows("create table effects (job int, pid int)")


def go(cli: CommandLine) -> None:
    (cli.folder / "go").touch()


async def test_a_killed_worker_s_jobs_start_elsewhere_when_its_lease_ends(
    cli: CommandLine, client: BackfillClient, rows: Rows
) -> None:
    await client.enqueue_many(
        [
            ("waits", number, JobSpec(queue=Queue.serial("q") if number == 1 else Queue.parallel()))
            for number in (1, 2, 3)
        ]
    )
    async with cli.running("worker", "vital", **LEASE) as first:
        await first.printed("began", 3)
        async with cli.running("worker", "vital", **LEASE) as second:
            await until(lambda: two_workers(rows), "the second is there")
            first.signal(KILL)
            await first.ended()
            await second.printed("began", 1)
            go(cli)
            # The others are suspects too, and run one after the other.
            await second.printed("ended", 3)
            await until(lambda: is_idle(rows), "all is done")
            assert await rows("select job from effects order by job") == [(1,), (2,), (3,)]
            assert len(await rows(RUNNING)) == 1


async def two_workers(rows: Rows) -> bool:
    return len(await rows(RUNNING)) == 2


async def is_idle(rows: Rows) -> bool:
    return await rows("select id from graphile_worker._private_jobs") == [] and await locks(rows) == []


async def test_a_killed_worker_s_programs_are_killed_with_what_they_started(
    cli: CommandLine, client: BackfillClient
) -> None:
    folder = cli.folder / "programs"
    folder.mkdir()
    (folder / "hang").write_text(
        "#!/bin/sh\nsh -c 'echo $$ >> pids; exec sleep 1000' &\necho $$ >> pids\necho here\nwait\n"
    )
    (folder / "hang").chmod(0o755)
    await client.enqueue("hang")
    async with cli.running("worker", "--task-folder", "programs", **LEASE) as worker:
        started = await pids_in(cli.folder / "pids", 2)
        await worker.said("(hang): here")  # so it knows of its program
        worker.signal(KILL)
        await worker.ended()
    await until(lambda: all(map(ended, started)), "they have ended")


async def test_a_worker_that_starts_after_the_only_one_was_killed_takes_its_jobs_over(
    cli: CommandLine, client: BackfillClient, rows: Rows
) -> None:
    await client.enqueue("waits", 1)
    async with cli.running("worker", "vital", **LEASE) as first:
        await first.printed("began", 1)
        first.signal(KILL)
        await first.ended()
    async with cli.running("worker", "vital", **LEASE) as second:
        await second.printed("began", 1)
        go(cli)
        await second.printed("ended", 1)


async def test_a_frozen_worker_finds_its_jobs_gone_and_goes_on_as_a_new_one(
    cli: CommandLine, client: BackfillClient, rows: Rows
) -> None:
    await client.enqueue("waits", 1)
    async with cli.running("worker", "vital", **LEASE) as first:
        await first.printed("began", 1)
        (row,) = await rows(RUNNING)
        async with cli.running("worker", "vital", **LEASE) as second:
            await until(lambda: two_workers(rows), "the second is there")
            first.signal(signal.SIGSTOP)
            await second.printed("began", 1)
            go(cli)
            await second.printed("ended", 1)
            await until(lambda: is_idle(rows), "it is done")
            first.signal(signal.SIGCONT)
            await first.printed("cut off", 1)
            await until(lambda: two_workers(rows), "it is back")
        pids = await rows("select pid from effects")
        assert len(pids) == 1
        await client.enqueue("quick", 2)
        await first.printed("quick", 1)
        first.signal(signal.SIGTERM)
        assert await first.ended() == 0
    assert row not in await rows(RUNNING)


async def test_a_process_that_cannot_stop_a_handler_in_time_ends_itself(
    cli: CommandLine, client: BackfillClient, rows: Rows
) -> None:
    await client.enqueue("in_thread", 1)
    async with cli.running("worker", "vital", **LEASE) as worker:
        await worker.printed("began", 1)
        await rows("update graphile_worker.backfill_workers set dead_at = now()")
        assert await worker.ended() == 1
        assert any("without a lease these jobs may run elsewhere, and still run here" in line for line in worker.logs)


async def test_only_the_poison_among_its_neighbours_ends_in_the_dead_letter_queue(
    cli: CommandLine, client: BackfillClient, rows: Rows
) -> None:
    """Four workers are killed by it: the first death makes suspects of all, three more are its own alone."""
    await client.enqueue_many([("quick", number) for number in range(100)])
    await client.enqueue("poison", 0, JobSpec(max_attempts=2))
    await client.enqueue_many([("quick", number) for number in range(100, 250)])
    for _ in range(4):
        await rows(DUE)
        async with cli.running("worker", "vital", "--concurrency", 4, **LEASE) as worker:
            assert await worker.ended() == -KILL
    async with cli.running("worker", "vital", **LEASE):
        await until(lambda: is_idle(rows), "the neighbours are done", limit=60)
    entries = await rows("select task_identifier, failure_reason from graphile_worker.backfill_dlq")
    assert entries == [("poison", "Job killed its worker: 4 workers died while they ran it")]


async def test_once_is_a_worker_like_any_other(cli: CommandLine, client: BackfillClient, rows: Rows) -> None:
    await client.enqueue("in_thread", 1)
    async with cli.running("worker", "vital", "--once", **LEASE) as worker:
        await worker.printed("began", 1)
        assert len(await rows(RUNNING)) == 1
        go(cli)
        assert await worker.ended() == 0
    assert await rows(RUNNING) == []
