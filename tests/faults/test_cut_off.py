"""A worker on a machine that the network leaves out, and one whose clock is wrong."""

import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.faults.conftest import SOON, Account, of_all_sorts
from tests.support.fleet import LEASE, Fleet
from tests.support.namespaces import Partition, unavailable
from tests.support.until import until

from backfill.model import JobSpec, Queue

if TYPE_CHECKING:
    from tests.conftest import Database

MANY = JobSpec(max_attempts=25)
HELD = """
select count(*) = 4 from pg_stat_activity
 where datname = current_database() and state = 'idle in transaction' and query like '%for key share%'
"""
ALONE = "select count(*) = 1 from graphile_worker.backfill_workers"


@pytest.fixture
def partition(db: "Database") -> Iterator[Partition]:
    with Partition(db.dsn) as made:
        yield made


@pytest.mark.parametrize("name", ["idles", "waits", "holds"])
async def test_a_partition_that_is_longer_than_the_lease(
    account: Account, fleet: Fleet, partition: Partition, name: str
) -> None:
    """Packets are dropped. Its jobs run elsewhere when the lease has ended, and what it does with them is refused.

    Handlers that wait for the database at that moment can't be cancelled: then the process ends before the lease does. What they
    have locked there would stay so, for the server is not told of their end; who takes over ends their sessions.
    """
    jobs = [(name, "go", JobSpec(queue=Queue.serial(f"q{n}"), max_attempts=25), "done") for n in range(4)]
    ids = await account.add(*jobs)
    away = await fleet.start("--concurrency", 4, prefix=partition.prefix, dsn=partition.dsn)
    await fleet.registered(away, account.connection)
    await account.begun(4)
    if name == "holds":
        await until(lambda: account.value(HELD), "they hold the rows of their jobs")
    (near,) = await fleet.started(1, account.connection, "--concurrency", 4)
    partition.cut()
    await account.add(*of_all_sorts(100, seconds=0.1))
    await account.begun(1, where=f"pid = {near.pid} and crashes = 1")
    await until(lambda: account.value(ALONE), "the dead worker holds nothing any more, and its row is gone")
    assert "has lost its lease" in away.log
    assert ("ends its process" in away.log) is (name != "idles")
    await account.open("go")
    await account.settled()
    partition.heal()
    if name != "idles":
        assert await away.ended() == 1
    else:
        await fleet.registered(away, account.connection)
        (after,) = await account.add(("work", {}, MANY, "done"))
        near.signal(signal.SIGTERM)
        assert await near.ended() == 0
        assert (await account.settled())["done"] == 100
        assert await account.value("select count(*) from ledger where job = $1", after) == 1
    runs = await account.rows("select pid, outcome from ledger where job = any($1) order by run", ids)
    assert sorted(runs, key=lambda run: run[1] or "") == [(away.pid, None)] * 4 + [(near.pid, "done")] * 4


def library() -> str:
    """libfaketime; installed if we may, else the test is skipped (or fails, where `CI` is set)."""
    name = "libfaketimeMT.so.1"

    def found() -> str | None:
        return next((str(path) for path in Path("/usr/lib").glob(f"*/faketime/{name}")), None)

    if found() is None and shutil.which("apt-get"):
        subprocess.run(["apt-get", "install", "-y", "-qq", "libfaketime"], check=False, capture_output=True)
    path = found()
    if path is None:
        unavailable("libfaketime is not installed, and only root can install it here: apt-get install libfaketime")
    assert path is not None
    return path


def time_there(environment: dict[str, str]) -> float:
    """What time it is in a process with that environment."""
    probe = [sys.executable, "-c", "import time; print(time.time())"]
    return float(subprocess.run(probe, env=environment, check=True, capture_output=True).stdout)


async def test_clocks_that_are_off_by_a_day(account: Account, fleet: Fleet) -> None:
    """One worker lives in tomorrow, one in yesterday. Times of jobs, of retries and of leases are the database's."""
    wrong = {"LD_PRELOAD": library(), "FAKETIME_DONT_FAKE_MONOTONIC": "1", "DONT_FAKE_MONOTONIC": "1"}
    assert time_there({**wrong, "FAKETIME": "+1d"}) - time.time() > 80_000, "the clock is not off"
    for offset in ("+1d", "-1d"):
        await fleet.started(1, account.connection, "--concurrency", 4, FAKETIME=offset, **wrong)
    in_a_second = await account.value("select clock_timestamp() + interval '1 s'")
    tomorrow = await account.value("select clock_timestamp() + interval '12 h'")
    later = JobSpec(run_at=in_a_second, retry_policy=SOON)
    await account.add(
        ("waits", "go", MANY, "done"),
        *[("work", {"fails": n % 2}, later, "done") for n in range(20)],
        ("work", {}, JobSpec(run_at=tomorrow), "done"),
        *of_all_sorts(200, seconds=0.2),
    )
    await until(lambda: only_two_left(account), "all that is due is done", limit=60)
    assert await account.value("select min(began_at - run_at) >= interval '0 s' from ledger")
    passed = "select clock_timestamp() > min(at) + make_interval(secs => $1) from enqueued"
    await until(lambda: account.value(passed, 2.2 * LEASE), "two leases have passed")
    await account.open("go")
    await account.rows("update graphile_worker._private_jobs set run_at = now() where locked_by is null returning id")
    await account.rows("select graphile_worker.add_job('quick')")
    await account.settled()
    assert await account.value("select count(distinct pid) from ledger") == 2
    assert await account.value("select max(crashes) from ledger") == 0
    assert not any("lease" in worker.log for worker in fleet.workers)
    assert await fleet.stopped() == [0, 0]


async def only_two_left(account: Account) -> bool:
    await account.holds()
    return bool(await account.value("select count(*) = 2 from graphile_worker._private_jobs"))
