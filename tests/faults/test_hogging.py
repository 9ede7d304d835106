"""Handlers that let nothing else run in their process for longer than twice the lease, beside a worker that would take over."""

from tests.faults.conftest import Account
from tests.support.fleet import LEASE, Fleet

from backfill.model import JobSpec

LONG = 2.2 * LEASE  # seconds
RUNS = "select pid, outcome from ledger order by run"


async def test_in_pure_python_it_is_alive_and_keeps_its_job(account: Account, fleet: Fleet) -> None:
    await account.add(("hogs", LONG, JobSpec(), "done"))
    (busy,) = await fleet.started(1, account.connection)
    await account.begun(1)
    await fleet.started(1, account.connection)
    await account.settled()
    assert await account.rows(RUNS) == [(busy.pid, "done")]
    assert "has lost its lease" not in busy.log
    assert await fleet.stopped() == [0, 0]


async def test_with_the_global_lock_held_in_c_it_is_taken_for_dead_and_its_outcome_counts_for_nothing(
    account: Account, fleet: Fleet
) -> None:
    """A documented limit."""
    await account.add(("grabs", LONG, JobSpec(), "done"))
    (busy,) = await fleet.started(1, account.connection)
    await account.begun(1)
    (idle,) = await fleet.started(1, account.connection)
    await account.settled()
    assert await account.rows(RUNS) == [(busy.pid, None), (idle.pid, "done")]
    await fleet.registered(busy, account.connection)
    await account.add(*[("work", {"seconds": 0.5}, JobSpec(), "done")] * 40)
    await account.begun(1, where=f"pid = {busy.pid} and job > (select min(job) from enqueued)")  # it is back
    assert (await account.settled())["done"] == 41
    assert "has lost its lease" in busy.log
    assert "outcomes met no claim of theirs" in busy.log
    assert await fleet.stopped() == [0, 0]
