"""Workers that die: killed by an operator, by the kernel, by a deploy, or by the job that they run."""

import asyncio
import contextlib
import os
import signal
from functools import partial
from pathlib import Path

import pytest
from tests.faults.conftest import Account, of_all_sorts
from tests.support.fleet import Fleet, WorkerProcess
from tests.support.until import until

from backfill.model import JobSpec

MANY = JobSpec(max_attempts=25)
TOO_MUCH = 300 << 20  # bytes of a process's own memory
DUE = "update graphile_worker._private_jobs set run_at = now() where run_at > now() and locked_by is null returning id"
LOCKED = "select count(*) from graphile_worker._private_jobs where locked_by is not null"
UNLOCKED = "select count(*) from graphile_worker._private_jobs where locked_by is null"


@pytest.mark.parametrize("victims", [1, 3])
async def test_of_three_under_load(account: Account, fleet: Fleet, victims: int) -> None:
    """Among what they run are jobs of serial queues, and one that runs for long."""
    await account.add(("waits", "go", MANY, "done"), *of_all_sorts(120, seconds=0.1))
    workers = await fleet.started(3, account.connection, "--concurrency", 4)
    await account.begun(25)
    pid = await account.value("select pid from ledger join enqueued using (job) order by job limit 1")
    first = next(worker for worker in workers if worker.pid == pid)
    for victim in [first, *(worker for worker in workers if worker is not first)][:victims]:
        await victim.kill()
    if victims == 3:
        await fleet.started(1, account.connection)
    await account.begun(2, where="job = (select min(job) from enqueued)")
    await account.open("go")
    counted = await account.settled()
    assert (counted["done"], counted["dead"]) == (115, 6)
    assert len(await account.rows("select 1 from graphile_worker.backfill_workers")) == (1 if victims == 3 else 2)


async def test_one_with_jobs_that_it_has_claimed_ahead(account: Account, fleet: Fleet) -> None:
    """They are refunded. Who frees them is a worker that runs no such job, so that it can be looked at."""
    quick = [("quick", number) for number in range(400)]
    added = await account.client.enqueue_many([*quick, ("quick", "wait"), *quick])
    running = [added[len(quick)].unwrap().id]
    (victim,) = await fleet.started(1, account.connection, "--concurrency", 1)

    async def is_known() -> bool:
        known = "select exists (select from graphile_worker.backfill_workers where running = $1)"
        return bool(await account.value(known, running) and await account.value(LOCKED) > 1)

    await until(is_known, "jobs are claimed ahead of the one that is known to run")
    await victim.kill()
    left = await account.value("select count(*) from graphile_worker._private_jobs")
    (idle,) = await fleet.started(1, account.connection, "--lane", "none=1,queue=none")
    await until(lambda: all_free(account), "they are free")
    assert await account.value(UNLOCKED) == left
    attempts = await account.rows("select id, attempts from graphile_worker._private_jobs where attempts > 0")
    assert attempts == [(*running, 1)]
    idle.signal(signal.SIGTERM)
    assert await idle.ended() == 0
    (fleet.folder / "go").touch()
    await fleet.started(1, account.connection)
    assert (await account.settled())["dead"] == 0


async def all_free(account: Account) -> bool:
    return bool(await account.value(LOCKED) == 0)


async def test_three_deploys_that_end_in_sigkill(account: Account, fleet: Fleet) -> None:
    """The job that runs for long dies in each of them, from the second on as the only suspect of its worker."""
    await account.add(("waits", "go", MANY, "done"), *of_all_sorts(60, seconds=0.2))
    for deploy in range(3):
        workers = await fleet.started(2, account.connection, "--concurrency", 4)
        await until(partial(make_due_and_see, account, deploy), f"it runs, and {deploy} workers died with it")
        await asyncio.gather(*(worker.kill() for worker in workers))
    await account.open("go")
    await fleet.started(2, account.connection, "--concurrency", 4)
    await until(lambda: make_due_and_is_empty(account), "nothing is left", limit=60)
    counted = await account.settled()
    assert (counted["done"], counted["dead"]) == (58, 3)
    assert await account.value("select max(crashes) from ledger") == 3


async def make_due_and_see(account: Account, crashes: int) -> bool:
    """Spare the test the waiting of suspects."""
    await account.rows(DUE)
    long = "select exists (select from ledger where crashes = $1 and job = (select min(job) from enqueued))"
    return bool(await account.value(long, crashes))


async def make_due_and_is_empty(account: Account) -> bool:
    await account.rows(DUE)
    return bool(await account.value("select count(*) = 0 from graphile_worker._private_jobs"))


@pytest.mark.parametrize("how", ["segfault", "exit", "memory"])
async def test_a_handler_that_takes_its_worker_down(account: Account, fleet: Fleet, how: str) -> None:
    workers = await fleet.started(2, account.connection, "--concurrency", 4)
    await account.add(("dies_once", how, MANY, "done"), *of_all_sorts(30, seconds=0.1))
    code = await first_death(workers)
    assert code == {"segfault": -signal.SIGSEGV, "exit": 3, "memory": -signal.SIGKILL}[how]
    counted = await account.settled()
    assert (counted["done"], counted["dead"]) == (29, 2)


async def first_death(workers: list[WorkerProcess]) -> int:
    """Wait for it, and be the kernel to processes that take too much memory; the exit code."""

    def look() -> list[int]:
        for worker in workers:
            kill_if_too_big(worker.pid)
        return [worker.process.returncode for worker in workers if worker.process.returncode is not None]

    (code,) = await until(look, "a worker has died", limit=60)
    return int(code)


def kill_if_too_big(pid: int) -> None:
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[5])  # data and stack
        resident = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        if min(pages, resident) * os.sysconf("SC_PAGESIZE") > TOO_MUCH:
            os.kill(pid, signal.SIGKILL)


async def test_a_handler_in_a_process_that_eats_memory_until_it_is_killed(account: Account, fleet: Fleet) -> None:
    """Its own process is killed, and no other."""
    ids = await account.add(
        ("dies_elsewhere", {"how": "memory"}, JobSpec(max_attempts=1), "dead"), *of_all_sorts(30, seconds=0.1)
    )
    (worker,) = await fleet.started(1, account.connection)
    dead = "select last_error ->> 'message' from graphile_worker.backfill_dlq where original_job_id = $1"

    async def look() -> list[tuple[str]]:
        for child in children(worker.pid):
            kill_if_too_big(child)
        return await account.rows(dead, ids[0])

    ((said,),) = await until(look, "it is a dead letter", limit=60)
    assert "killed by SIGKILL, perhaps for lack of memory" in said
    counted = await account.settled()
    assert (counted["done"], counted["dead"], worker.runs) == (28, 3, True)
    assert await account.value("select count(distinct pid) from ledger") == 1


def children(pid: int) -> list[int]:
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            if int(stat.read_text().rpartition(")")[2].split()[1]) == pid:
                found.append(int(stat.parent.name))
    return found
