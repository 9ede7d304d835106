"""The dead letter queue, many entries at once."""

import logging
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest

from backfill import BackfillClient, DlqFilter, Job, JobSpec
from backfill.errors import InvalidJob

if TYPE_CHECKING:
    from tests.client.conftest import Heard, Raw


@pytest.fixture(autouse=True)
def small_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that every test has several."""
    monkeypatch.setattr("backfill.client.dlq_bulk._PAGE", 3)
    monkeypatch.setattr("backfill.client.dlq_bulk._SCAN_PAGE", 4)


async def bury(client: BackfillClient, count: int, task: str = "t", **spec: Any) -> list[Job]:
    """Have that many jobs in the dead letter queue; the job key may have {n} in it."""
    key = spec.pop("job_key", None)
    jobs = [
        outcome.unwrap()
        for outcome in await client.enqueue_many(
            [(task, n, JobSpec(job_key=key and key.format(n=n), **spec)) for n in range(count)]
        )
    ]
    assert len(await client.fail_jobs([job.id for job in jobs], "broken")) == count
    return jobs


async def test_requeue_by_filter(client: BackfillClient, raw: "Raw", heard: "Heard") -> None:
    await bury(client, 8, queue="q", job_key="k{n}")
    await bury(client, 2, task="other")
    await client.cleanup(["GC_TASK_IDENTIFIERS", "GC_JOB_QUEUES"])
    await heard()
    result = await client.requeue_dlq_jobs(DlqFilter(task_identifier="t"), notes="all at once")
    assert result == (8, 0)
    assert [told["count"] for told in await heard()] == [3, 3, 2]
    rows = await raw.jobs()
    assert sorted((row["payload"], row["key"], row["queue"]) for row in rows) == [
        (str(n), f"k{n}", "q") for n in range(8)
    ]
    entries = (await client.list_dlq_jobs(DlqFilter(task_identifier="t"))).jobs
    assert {entry.notes for entry in entries} == {"all at once"}
    by_id = {row["id"]: row["payload"] for row in rows}
    assert {entry.payload: by_id[entry.requeued_job_id or 0] for entry in entries} == {n: str(n) for n in range(8)}
    assert (await client.requeue_dlq_jobs(DlqFilter(task_identifier="t"))).requeued == 0


async def test_each_entry_is_tied_to_its_own_job(client: BackfillClient, raw: "Raw") -> None:
    """With keys, without, and with some that are left out."""
    await bury(client, 5)
    await bury(client, 5, job_key="k{n}")
    await bury(client, 5)
    newer = (await client.enqueue("t", "newer", JobSpec(job_key="k2"))).unwrap()
    result = await client.requeue_dlq_jobs(DlqFilter())
    assert (result.requeued, result.skipped) == (14, 1)
    rows = {row["id"]: row for row in await raw.jobs()}
    assert rows.pop(newer.id)["payload"] == '"newer"'
    entries = (await client.list_dlq_jobs(DlqFilter(requeued=True))).jobs
    assert {entry.requeued_job_id for entry in entries} == set(rows)
    for entry in entries:
        row = rows[entry.requeued_job_id or 0]
        assert (row["payload"], row["key"]) == (str(entry.payload), entry.job_key)
    (left,) = (await client.list_dlq_jobs(DlqFilter(requeued=False))).jobs
    assert left.job_key == "k2"


async def test_dry_runs_change_nothing(client: BackfillClient, raw: "Raw") -> None:
    await bury(client, 7)
    await client.requeue_dlq_job((await client.list_dlq_jobs()).jobs[0].id)
    before = await client.list_dlq_jobs()
    assert await client.requeue_dlq_jobs(DlqFilter(), dry_run=True) == (6, 0)
    assert await client.requeue_dlq_jobs(DlqFilter(), dry_run=True, limit=2) == (2, 0)
    assert await client.delete_dlq_jobs(DlqFilter(), dry_run=True) == 6
    assert await client.delete_dlq_jobs(DlqFilter(requeued=True), dry_run=True) == 1
    assert await client.list_dlq_jobs() == before
    assert len(await raw.jobs()) == 1


async def test_a_limit_takes_the_lowest_ids(client: BackfillClient, raw: "Raw") -> None:
    await bury(client, 8)
    assert (await client.requeue_dlq_jobs(DlqFilter(), limit=4)).requeued == 4
    assert [job["payload"] for job in await raw.jobs()] == ["0", "1", "2", "3"]
    assert await client.delete_dlq_jobs(DlqFilter(), limit=3) == 3
    assert [entry.payload for entry in (await client.list_dlq_jobs(DlqFilter(requeued=False))).jobs] == [7]


async def test_delete_by_filter_leaves_what_is_out(client: BackfillClient) -> None:
    await bury(client, 7)
    await bury(client, 1, task="other")
    out = (await client.list_dlq_jobs(DlqFilter(task_identifier="t"))).jobs[3]
    await client.requeue_dlq_job(out.id)
    assert await client.delete_dlq_jobs(DlqFilter(task_identifier="t")) == 6
    assert {entry.id for entry in (await client.list_dlq_jobs(DlqFilter(task_identifier="t"))).jobs} == {out.id}
    assert await client.delete_dlq_jobs(DlqFilter(requeued=True)) == 1
    assert (await client.dlq_stats()).task_breakdown == {"other": 1}


@pytest.mark.parametrize("chosen", [DlqFilter(limit=10), DlqFilter(offset=1)])
async def test_a_filter_that_pages_is_refused(client: BackfillClient, chosen: DlqFilter) -> None:
    with pytest.raises(InvalidJob, match="limit= to the call"):
        await client.delete_dlq_jobs(chosen)
    with pytest.raises(InvalidJob, match="limit= to the call"):
        await client.requeue_dlq_jobs(chosen)


async def test_what_cannot_be_requeued_is_refused(client: BackfillClient) -> None:
    with pytest.raises(InvalidJob, match="out"):
        await client.requeue_dlq_jobs(DlqFilter(requeued=True))
    with pytest.raises(InvalidJob, match="limit"):
        await client.requeue_dlq_jobs(DlqFilter(), limit=0)


async def test_used_up_jobs_are_moved_all_of_them(client: BackfillClient, raw: "Raw") -> None:
    jobs = [
        outcome.unwrap()
        for outcome in await client.enqueue_many([("t", n, JobSpec(max_attempts=2)) for n in range(25)])
    ]
    for job in jobs[::2]:
        await raw.exhaust(job.id)
    await raw.claim(jobs[1].id)
    await raw.claim(jobs[1].id)  # its last run goes on
    assert await client.process_failed_jobs() == 13
    assert [job["payload"] for job in await raw.jobs()] == [str(n) for n in range(1, 25, 2)]
    entries = (await client.list_dlq_jobs()).jobs
    assert sorted(entry.payload for entry in entries) == list(range(0, 25, 2))
    assert entries[0].failure_reason == "Job exceeded maximum retry attempts (2/2)"
    assert entries[0].last_error == {"message": "it broke"}
    assert await client.process_failed_jobs() == 0


async def test_rows_that_somebody_has_locked_are_left_for_the_next_time(client: BackfillClient, raw: "Raw") -> None:
    jobs = [(await client.enqueue("t", n)).unwrap() for n in range(3)]
    for job in jobs:
        await raw.exhaust(job.id)
    async with raw.connection.transaction():
        await raw.rows("select 1 from graphile_worker._private_jobs where id = $1 for update", jobs[1].id)
        assert await client.process_failed_jobs() == 2
    assert await client.process_failed_jobs(moved_by="somebody else") == 1
    assert {entry.created_by for entry in (await client.list_dlq_jobs()).jobs} == {"backfill client", "somebody else"}


async def test_a_job_that_the_table_refuses_stops_no_other(
    client: BackfillClient, raw: "Raw", caplog: pytest.LogCaptureFixture
) -> None:
    await raw.run("alter table graphile_worker.backfill_dlq add constraint no_foes check (priority <> 13)")
    jobs = [
        outcome.unwrap()
        for outcome in await client.enqueue_many(
            [
                ("t", n, JobSpec(priority=13 if n in {2, 9} else 0, run_at=datetime(2100, 1, 1, tzinfo=UTC)))
                for n in range(11)
            ]
        )
    ]
    for job in jobs:
        await raw.exhaust(job.id)
    with caplog.at_level(logging.ERROR):
        assert await client.process_failed_jobs() == 9
    assert [job["payload"] for job in await raw.jobs()] == ["2", "9"]
    assert [f"refuses job {jobs[n].id}" in caplog.text for n in (2, 9)] == [True, True]
    assert caplog.text.count("no_foes") == 2
