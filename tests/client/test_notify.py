"""Telling workers about new jobs: how often, when, and with which count."""

import asyncio
import json
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import asyncpg
import pytest

from backfill import BackfillClient, JobSpec
from backfill.client.notify import Notifier, notification
from backfill.db import Keeper, open_pool
from backfill.errors import DatabaseError

if TYPE_CHECKING:
    from tests.client.conftest import Heard, Raw
    from tests.conftest import Database

FUTURE = datetime(2100, 1, 1, tzinfo=UTC)
FOREVER = 3600.0  # seconds; an interval that does not end while a test runs


@pytest.fixture
def patient(client: BackfillClient) -> BackfillClient:
    """A client whose interval between notifications only ends when it is closed."""
    client.enqueuer._notifier._interval = FOREVER
    return client


async def test_the_first_job_carries_its_own_notification(patient: BackfillClient, heard: "Heard") -> None:
    await patient.enqueue("t", 1)
    (told,) = await heard()
    assert told["count"] == 1
    assert isinstance(told["r"], float)


async def test_those_that_follow_are_told_together_when_the_client_is_closed(
    patient: BackfillClient, heard: "Heard", raw: "Raw"
) -> None:
    for number in range(10):
        await patient.enqueue("t", number)
    assert [told["count"] for told in await heard()] == [1]
    await patient.close()
    assert [told["count"] for told in await heard()] == [9]
    assert len(await raw.jobs()) == 10


async def test_those_that_follow_are_told_together_when_the_interval_is_over(
    client: BackfillClient, heard: "Heard"
) -> None:
    """However the adds fall into intervals, all are told, and within one interval at most twice."""
    client.enqueuer._notifier._patience = FOREVER  # so that none is told of twice
    await asyncio.gather(*(client.enqueue("t", number) for number in range(40)))
    counts: list[int] = []
    async with asyncio.timeout(30):
        while sum(counts) < 40:
            counts += [told["count"] for told in await heard()]
    assert sum(counts) == 40
    assert len(counts) < 40


async def test_after_a_quiet_interval_the_next_job_carries_its_own_again(
    patient: BackfillClient, heard: "Heard"
) -> None:
    await patient.enqueue("t", 1)
    patient.enqueuer._notifier._quiet_from = 0.0
    await patient.enqueue("t", 2)
    assert [told["count"] for told in await heard()] == [1, 1]


async def test_when_the_interval_is_nearly_over_the_next_job_carries_what_was_counted(
    patient: BackfillClient, heard: "Heard"
) -> None:
    for number in range(4):
        await patient.enqueue("t", number)
    patient.enqueuer._notifier._quiet_from = asyncio.get_running_loop().time() + 0.1 * FOREVER
    await patient.enqueue("t", 4)
    assert [told["count"] for told in await heard()] == [1, 4]
    await patient.close()
    assert await heard() == []


async def test_what_a_job_carries_is_told_without_it_when_it_has_to_wait(
    client: BackfillClient, db: "Database", heard: "Heard"
) -> None:
    """Somebody's transaction holds its key: the jobs that were added before have been committed, and don't wait for that."""
    notifier = client.enqueuer._notifier
    other = await db.connect()
    async with other.transaction():
        await client.enqueue("t", 0, JobSpec(job_key="k"), connection=other)
        await client.enqueue("t", 1)
        notifier._quiet_from = asyncio.get_running_loop().time() + 0.2  # when it looks
        await client.enqueue("t", 2)
        notifier._quiet_from = 0.0
        waits = asyncio.create_task(client.enqueue("t", 3, JobSpec(job_key="k")))
        counts: list[int] = []
        async with asyncio.timeout(10):
            while len(counts) < 2:
                counts += [told["count"] for told in await heard()]
        assert counts == [1, 1]
        assert not waits.done()
    await waits
    await client.close()
    assert [told["count"] for told in await heard()] == [10, 2]


@pytest.mark.parametrize("fails", [True, False])
async def test_what_a_job_was_to_carry_is_told_by_the_next_when_it_fails_or_is_not_due(
    patient: BackfillClient, heard: "Heard", raw: "Raw", fails: bool
) -> None:
    await raw.run("alter table graphile_worker._private_jobs add constraint no_fours check (payload::text <> '4')")
    for number in range(4):
        await patient.enqueue("t", number)
    patient.enqueuer._notifier._quiet_from = 0.0
    if fails:
        with pytest.raises(DatabaseError, match="no_fours"):
            await patient.enqueue("t", 4)
    else:
        await patient.enqueue("t", 5, JobSpec(run_at=FUTURE))
    await patient.enqueue("t", 6)
    assert [told["count"] for told in await heard()] == [1, 4]


async def test_nobody_is_told_of_future_jobs(patient: BackfillClient, heard: "Heard", raw: "Raw") -> None:
    spec = JobSpec(run_at=FUTURE)
    await patient.enqueue("t", 1, spec)
    await patient.enqueue("t", 2, spec)
    await patient.enqueue_many([("t", 3, spec), ("t", 4, spec)])
    async with raw.connection.transaction():
        await patient.enqueue("t", 5, spec, connection=raw.connection)
    await patient.close()
    assert await heard() == []


async def test_what_is_due_is_decided_by_the_databases_clock(
    patient: BackfillClient, heard: "Heard", raw: "Raw"
) -> None:
    now = await raw.value("select clock_timestamp()")
    await patient.enqueue("t", 1, JobSpec(run_at=now))
    assert [told["count"] for told in await heard()] == [1]
    patient.enqueuer._notifier._quiet_from = 0.0
    await patient.enqueue("t", 2, JobSpec(run_at=now + timedelta(hours=1)))
    assert await heard() == []


async def test_a_callers_transaction_notifies_once_and_only_if_it_commits(
    patient: BackfillClient, heard: "Heard", raw: "Raw"
) -> None:
    for commits in (False, True):
        transaction = raw.connection.transaction()
        await transaction.start()
        for number in range(5):
            await patient.enqueue("t", number, connection=raw.connection)
        await patient.enqueue_many([("t", number) for number in range(3)], connection=raw.connection)
        await (transaction.commit() if commits else transaction.rollback())
        told = await heard()
        assert len(told) == commits
    assert told[0]["count"] > 0


async def test_a_batch_notifies_once_with_its_count(
    patient: BackfillClient, heard: "Heard", monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("backfill.client.batch._JOB_CHARACTERS", 4_000_000)  # four jobs a chunk
    await patient.enqueue_many([("t", number) for number in range(10)])
    assert [told["count"] for told in await heard()] == [10]


async def test_keyed_jobs_are_told_as_others_are(patient: BackfillClient, heard: "Heard") -> None:
    await patient.enqueue("t", 1)
    await patient.enqueue("t", 2, JobSpec(job_key="k"))
    await patient.enqueue("t", 3, JobSpec(job_key="k"))
    await patient.enqueue("t", 4, JobSpec(job_key="future", run_at=FUTURE))
    assert [told["count"] for told in await heard()] == [1]
    await patient.close()
    assert [told["count"] for told in await heard()] == [2]


async def test_what_takes_graphile_workers_function_is_told_by_it(patient: BackfillClient, heard: "Heard") -> None:
    await patient.enqueue("t", 1)
    await patient.enqueue("t", 2, JobSpec(job_key="k", job_key_mode="unsafe_dedupe"))
    assert [told["count"] for told in await heard()] == [1, 1]


async def test_what_is_counted_while_the_notification_is_sent_is_told_too(db: "Database", heard: "Heard") -> None:
    pool = await open_pool(db.dsn)
    try:
        notifier = Notifier(pool, db.schema, keeper=Keeper(pool), interval=0.0)
        for _ in range(3):
            notifier.count(2)
            await asyncio.gather(notifier.close(), *(_later(notifier) for _ in range(3)))
        await notifier.close()
        assert sum(told["count"] for told in await heard()) == 3 * (2 + 3)
    finally:
        await pool.close()


async def test_a_notification_that_cannot_be_sent_is_only_logged(
    db: "Database", caplog: pytest.LogCaptureFixture, heard: "Heard"
) -> None:
    pool = await asyncpg.create_pool(db.dsn, min_size=1, max_size=1)
    notifier = Notifier(pool, db.schema, keeper=Keeper(pool), interval=0.0)
    await pool.close()
    notifier.count(7)
    await notifier.close()
    assert "7 new jobs could not be announced" in caplog.text
    assert notifier.leading() is not None


def test_the_text_is_graphile_workers() -> None:
    first, second = notification(3), notification(3)
    assert json.loads(first) == {"r": json.loads(first)["r"], "count": 3}
    assert first != second, "PostgreSQL would send equal ones once"


async def _later(notifier: Notifier) -> None:
    await asyncio.sleep(0)
    notifier.count()
