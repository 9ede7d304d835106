"""The dead letter queue, many entries at once."""

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
