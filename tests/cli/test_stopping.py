"""Signals: the first lets jobs finish, the second hands them back, the third ends the process; nothing stays behind."""

import functools
import os
import signal
from pathlib import Path

import pytest
from tests.cli.conftest import INT, KILL, TERM, CommandLine, Rows, locks
from tests.support.until import until

from backfill import BackfillClient

TASKS = """
import asyncio, os, time
from pathlib import Path
from backfill import task

def began():
    os.write(1, f"began {os.getpid()}\\n".encode())  # one write: print would make two, and threads print too

@task
async def waits(payload):
    began()
    while not Path("go").exists():
        await asyncio.sleep(0.01)

@task
async def sleeps(payload):
    began()
    await asyncio.sleep(3600)

@task
async def stubborn(payload):
    began()
    while True:
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            pass

@task
def in_thread(payload):
    began()
    time.sleep(3600)

@task
async def leaves_a_thread(payload):
    began()
    await asyncio.to_thread(time.sleep, 3600)

@task
async def hogs(payload):
    began()
    while True:
        pass
"""
LEFT = "select attempts from graphile_worker._private_jobs order by id"


@pytest.fixture(autouse=True)
def tasks(cli: CommandLine) -> None:
    (cli.folder / "slow.py").write_text(TASKS)


async def test_a_hundred_running_jobs_finish(cli: CommandLine, client: BackfillClient, rows: Rows) -> None:
    await client.enqueue_many([("waits", number) for number in range(120)])
    async with cli.running("worker", "slow", "--concurrency", 100) as worker:
        await worker.printed("began", 100)
        worker.signal(TERM)
        await worker.said("stopping: jobs that run may finish")
        (cli.folder / "go").touch()
        assert await worker.ended() == 0
        assert sum("began" in line for line in worker.lines) == 100
    assert await rows(LEFT) == [(0,)] * 20
    assert await locks(rows) == []


async def test_a_second_signal_hands_running_jobs_back(cli: CommandLine, client: BackfillClient, rows: Rows) -> None:
    await client.enqueue_many([("sleeps", number) for number in range(3)])
    async with cli.running("worker", "slow", "--shutdown-timeout", "1h") as worker:
        await worker.printed("began", 3)
        worker.signal(INT)
        await worker.said("stopping")
        worker.signal(INT)
        assert await worker.ended() == 0
    assert await rows(LEFT) == [(0,)] * 3
    assert await locks(rows) == []


async def test_what_cannot_be_cancelled_is_handed_back_and_left(
    cli: CommandLine, client: BackfillClient, rows: Rows
) -> None:
    await client.enqueue_many([(name, {}) for name in ("stubborn", "in_thread", "stubborn", "in_thread")])
    async with cli.running("worker", "slow", "--shutdown-timeout", "2s") as worker:
        await worker.printed("began", 4)
        worker.signal(TERM)
        assert await worker.ended() == 0
    assert await rows(LEFT) == [(0,)] * 4
    assert await locks(rows) == []


async def test_a_thread_that_a_handler_left_does_not_keep_the_process(
    cli: CommandLine, client: BackfillClient, rows: Rows
) -> None:
    await client.enqueue("leaves_a_thread")
    async with cli.running("worker", "slow", "--shutdown-timeout", "1s") as worker:
        await worker.printed("began", 1)
        worker.signal(TERM)
        assert await worker.ended() == 0
        await worker.said("threads of handlers still run")
    assert await rows(LEFT) == [(0,)]
    assert await locks(rows) == []


@pytest.mark.parametrize(("number", "code"), [(TERM, 143), (INT, 130)])
async def test_a_third_signal_ends_the_process(
    cli: CommandLine, client: BackfillClient, number: signal.Signals, code: int
) -> None:
    await client.enqueue("stubborn")
    async with cli.running("worker", "slow", "--shutdown-timeout", "1h") as worker:
        await worker.printed("began", 1)
        worker.signal(number)
        await worker.said("stopping")
        worker.signal(number)
        await worker.said("hurrying")
        worker.signal(number)
        assert await worker.ended() == code


SCRIPT = """#!/bin/sh
trap '' TERM
sh -c 'echo began $$; while :; do sleep 1000; done' &
echo began $$
while :; do sleep 1000; done
"""


@pytest.mark.parametrize("signals", [2, 3])
@pytest.mark.skipif(not Path("/proc").exists(), reason="whether processes have ended is read from /proc")
async def test_programs_that_run_for_jobs_end_with_it(
    cli: CommandLine, client: BackfillClient, rows: Rows, signals: int
) -> None:
    (cli.folder / "scripts").mkdir()
    script = cli.folder / "scripts" / "stubborn.sh"
    script.write_text(SCRIPT)
    script.chmod(0o755)
    await client.enqueue("stubborn")
    async with cli.running("worker", "--task-folder", "scripts", "--shutdown-timeout", "1h") as worker:
        await worker.said("began")
        await until(lambda: sum("began" in line for line in worker.logs) == 2, "both have begun")
        for _, said in zip(range(signals), ("stopping", "hurrying", ""), strict=False):
            worker.signal(TERM)
            await worker.said(said)
        assert await worker.ended() == (0 if signals == 2 else 143)
        pids = [line.partition("began ")[2].split()[0] for line in worker.logs if "began " in line]
    await until(lambda: all(gone(pid) for pid in pids), "all have ended")
    if signals == 2:
        assert await rows(LEFT) == [(0,)]
        assert await locks(rows) == []


@pytest.mark.skipif(not Path("/proc").exists(), reason="whether processes have ended is read from /proc")
async def test_programs_end_with_a_worker_that_has_lost_its_lease(
    cli: CommandLine, client: BackfillClient, rows: Rows
) -> None:
    (cli.folder / "scripts").mkdir()
    script = cli.folder / "scripts" / "stubborn.sh"
    script.write_text(SCRIPT)
    script.chmod(0o755)
    await client.enqueue("stubborn")
    async with cli.running("worker", "--task-folder", "scripts", BACKFILL_LEASE_SECS="5") as worker:
        await until(lambda: sum("began" in line for line in worker.logs) == 2, "both have begun")
        worker.signal(signal.SIGSTOP)
        over = (
            "select count(*) > 0 from graphile_worker.backfill_workers where heartbeat_at + lease < clock_timestamp()"
        )

        async def is_over() -> bool:
            return await rows(over) == [(True,)]

        await until(is_over, "its lease is over")
        worker.signal(signal.SIGCONT)
        assert await worker.ended() == 1
        pids = [line.partition("began ")[2].split()[0] for line in worker.logs if "began " in line]
    await until(lambda: all(gone(pid) for pid in pids), "all have ended")


def gone(pid: str) -> bool:
    """Whether a process has ended; one that nobody has waited for yet counts as ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


@pytest.mark.skipif(not Path("/proc").exists(), reason="signals under way are read from /proc")
async def test_a_third_signal_ends_a_process_whose_loop_is_stuck(cli: CommandLine, client: BackfillClient) -> None:
    await client.enqueue("hogs")
    async with cli.running("worker", "slow") as worker:
        await worker.printed("began", 1)
        # Three signals of one kind can melt into one; the process counts those that it gets.
        for number in (TERM, INT):
            worker.signal(number)
            await until(functools.partial(_arrived, worker.process.pid, number), "the signal has arrived")
        worker.signal(TERM)
        assert await worker.ended() == 143


async def test_once_can_be_interrupted(cli: CommandLine, client: BackfillClient, rows: Rows) -> None:
    await client.enqueue("sleeps")
    async with cli.running("worker", "slow", "--once") as worker:
        await worker.printed("began", 1)
        worker.signal(TERM)
        assert await worker.ended() == 143
    assert await rows(LEFT) == [(0,)]
    assert await locks(rows) == []


async def test_a_worker_process_that_dies_badly_is_told(cli: CommandLine, client: BackfillClient, rows: Rows) -> None:
    await client.enqueue_many([("sleeps", number) for number in range(2)])
    async with cli.running("worker", "slow", "--processes", 2, "--concurrency", 1) as parent:
        await parent.printed("began", 2)
        pids = [int(line.split()[-1]) for line in parent.lines]
        os.kill(pids[0], KILL)
        await parent.said(f"worker process {pids[0]} was killed by signal 9; 1 still run")
        parent.signal(TERM)
        await parent.said("stopping")
        parent.signal(TERM)
        assert await parent.ended() == 1
    held = await locks(rows)
    assert len(held) == 1  # that of the killed one


async def test_workers_end_with_their_parent(cli: CommandLine, client: BackfillClient, rows: Rows) -> None:
    await client.enqueue_many([("sleeps", number) for number in range(2)])
    options = ("--processes", 2, "--concurrency", 1, "--shutdown-timeout", "2s")
    async with cli.running("worker", "slow", *options) as parent:
        await parent.printed("began", 2)
        pids = [int(line.split()[-1]) for line in parent.lines]
        parent.signal(KILL)
        await until(lambda: not any(_lives(pid) for pid in pids), "the workers have ended")
        assert await parent.ended() == -KILL
    assert await rows(LEFT) == [(0,)] * 2
    assert await locks(rows) == []


@pytest.mark.parametrize("options", [(), ("--processes", 2)])
async def test_a_breaking_revision_ends_it_with_an_exit_code_of_its_own(
    cli: CommandLine, client: BackfillClient, rows: Rows, options: tuple[str | int, ...]
) -> None:
    await client.enqueue("waits", 1)
    async with cli.running("worker", "slow", *options) as worker:
        await worker.printed("began", 1)
        await rows(
            "insert into graphile_worker.migrations (id, breaking) values (21, true)"
            " returning pg_notify('worker:migrate', '{\"migrationNumber\":21,\"breaking\":true}')"
        )
        await worker.said("stopping: schema", "breaking revision 21")
        (cli.folder / "go").touch()
        assert await worker.ended() == 57
    assert await rows(LEFT) == []


def _arrived(pid: int, number: signal.Signals) -> bool:
    """Whether no such signal is on its way to the process."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    masks = [int(line.split()[1], 16) for line in lines if line.startswith(("SigPnd", "ShdPnd"))]
    return not any(mask >> (number - 1) & 1 for mask in masks)


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
