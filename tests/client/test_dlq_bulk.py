"""The dead letter queue, many entries at once."""

import asyncio
import time
from contextlib import aclosing
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from backfill import BackfillClient, DlqFilter, DlqProgress, Job, JobSpec
from backfill.client.dlq import page_dlq_jobs
from backfill.client.dlq_bulk import delete_dlq_jobs
from backfill.client.dlq_files import export_dlq_jobs
from backfill.errors import InvalidJob
from backfill.sql import text

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


async def payloads(client: BackfillClient, **chosen: Any) -> list[Any]:
    return [entry.payload for entry in await client.page_dlq_jobs(DlqFilter(**chosen))]


async def test_pages_are_read_by_the_index_whatever_the_planner_knows(client: BackfillClient, raw: "Raw") -> None:
    """Without statistics, and with plans for any values."""
    await raw.run("alter table graphile_worker.backfill_dlq set (autovacuum_enabled = off)")
    await raw.run(
        "insert into graphile_worker.backfill_dlq (task_identifier, payload, failure_reason)"
        " select 't', jsonb_build_object('n', n), 'x' from generate_series(1, 20000) as n"
    )
    await raw.run("set plan_cache_mode = force_generic_plan")
    assert len(await page_dlq_jobs(raw.connection, client.schema, limit=500)) == 500
    assert await delete_dlq_jobs(raw.connection, client.schema, DlqFilter(), limit=3) == 3
    async with aclosing(export_dlq_jobs(raw.connection, client.schema)) as lines:  # type: ignore[type-var] # a generator
        assert "20000" not in await anext(lines)
    names = {
        statement: name for name, statement in await raw.rows("select name, statement from pg_prepared_statements")
    }
    for statement, further in (
        ("page_dlq_jobs", "5, 500"),
        ("dlq_ids", "5, 9000, 3"),
        ("export_dlq_jobs", "5, 9000, 3"),
    ):
        name = names[text(statement, client.schema)]
        rows = await raw.rows(f"explain execute {name} (null, null, null, null, null, null, {further})")
        plan = "\n".join(row[0] for row in rows)
        assert "Sort" not in plan
        assert "backfill_dlq_pkey" in plan


async def test_progress_is_told_and_a_stopped_run_goes_on(client: BackfillClient, raw: "Raw") -> None:
    await bury(client, 8, job_key="k{n}")
    await client.enqueue("t", "newer", JobSpec(job_key="k1"))
    stop = asyncio.Event()
    told: list[DlqProgress] = []

    def watch(progress: DlqProgress) -> None:
        told.append(progress)
        if len(told) == 2:
            stop.set()

    assert await client.requeue_dlq_jobs(DlqFilter(), watch=watch, stop=stop) == (5, 1)
    first, second = told
    assert first == DlqProgress(done=2, skipped=1, total=8, last_id=3, skipped_ids=(2,))
    assert second == DlqProgress(done=5, skipped=1, total=8, last_id=6)
    assert await payloads(client, requeued=False) == [1, 6, 7]
    assert await client.requeue_dlq_jobs(DlqFilter(), after=second.last_id) == (2, 0)
    assert await client.requeue_dlq_jobs(DlqFilter()) == (0, 1)
    assert len(await raw.jobs()) == 8


async def test_what_fails_again_or_comes_in_meanwhile_is_not_requeued_in_the_same_run(
    client: BackfillClient, raw: "Raw"
) -> None:
    """As if each job failed in the moment in which it is requeued, and another one with it."""
    await bury(client, 8)
    await raw.run(
        "create function graphile_worker.fail() returns trigger language plpgsql as $body$ begin"
        " new.requeued_job_id = null;"
        " insert into graphile_worker.backfill_dlq (task_identifier, payload, failure_reason) values ('late', '1', 'late');"
        " return new; end $body$"
    )
    await raw.run(
        "create trigger fail before update of requeued_job_id on graphile_worker.backfill_dlq"
        " for each row execute function graphile_worker.fail()"
    )
    assert await client.requeue_dlq_jobs(DlqFilter()) == (8, 0)
    assert len(await raw.jobs()) == 8
    entries = await client.page_dlq_jobs(DlqFilter(requeued=False))
    assert [(entry.task_identifier, entry.requeued_count) for entry in entries] == [("t", 1)] * 8 + [("late", 0)] * 8


async def test_a_rate_holds_a_run_back(client: BackfillClient) -> None:
    await bury(client, 6)
    began = time.monotonic()
    assert (await client.requeue_dlq_jobs(DlqFilter(), rate=20)).requeued == 6
    assert time.monotonic() - began >= 6 / 20
    for rate in (0, -1, float("inf"), float("nan")):
        with pytest.raises(InvalidJob, match="rate"):
            await client.delete_dlq_jobs(DlqFilter(), rate=rate)


async def test_a_stop_does_not_wait_for_the_rate(client: BackfillClient) -> None:
    await bury(client, 4)
    stop = asyncio.Event()

    def watch(_: DlqProgress) -> None:
        asyncio.get_running_loop().call_later(0.01, stop.set)

    async with asyncio.timeout(60):
        assert await client.delete_dlq_jobs(DlqFilter(), rate=0.001, watch=watch, stop=stop) == 1


async def test_keys_in_use_are_skipped_unless_forced(client: BackfillClient, raw: "Raw") -> None:
    await bury(client, 4, job_key="k{n}")
    waiting = (await client.enqueue("t", "waits", JobSpec(job_key="k1"))).unwrap()
    running = (await client.enqueue("t", "runs", JobSpec(job_key="k2"))).unwrap()
    await raw.claim(running.id)
    assert await client.requeue_dlq_jobs(DlqFilter(), dry_run=True) == (2, 2)
    assert await client.requeue_dlq_jobs(DlqFilter(), dry_run=True, force=True) == (4, 0)
    assert await client.requeue_dlq_jobs(DlqFilter()) == (2, 2)
    assert await client.requeue_dlq_jobs(DlqFilter(), force=True) == (2, 0)
    rows = {row["payload"]: row for row in await raw.jobs()}
    assert set(rows) == {"0", "1", "2", "3", '"runs"'}
    assert rows['"runs"']["key"] is None
    assert waiting.id not in {row["id"] for row in rows.values()}


async def test_an_entry_of_which_no_job_can_be_made_keeps_no_other(
    client: BackfillClient, raw: "Raw", caplog: pytest.LogCaptureFixture
) -> None:
    await bury(client, 7)
    await raw.run(
        "update graphile_worker.backfill_dlq set priority = 1000000 where id = 5"
    )  # as an integer column takes
    assert await client.requeue_dlq_jobs(DlqFilter()) == (6, 1)
    assert await payloads(client, requeued=False) == [4]
    assert caplog.text.count("DLQ entry 5 cannot be requeued") == 1
    assert await client.requeue_dlq_jobs(DlqFilter(), force=True) == (0, 1)


async def test_what_is_requeued_or_fails_anew_meanwhile_is_not_deleted(client: BackfillClient, raw: "Raw") -> None:
    await bury(client, 3)
    await raw.run("update graphile_worker.backfill_dlq set failed_at = now() - interval '3 days'")
    chosen = DlqFilter(failed_before=datetime.now(UTC) - timedelta(days=2))
    async with raw.connection.transaction():
        await raw.run("update graphile_worker.backfill_dlq set failed_at = now() where id = 1")
        await raw.run("update graphile_worker.backfill_dlq set requeued_job_id = 77 where id = 2")
        deleting = asyncio.create_task(client.delete_dlq_jobs(chosen))
        await raw.until_blocked()
    assert await deleting == 1
    assert await payloads(client) == [0, 1]


async def test_prune_goes_by_age_and_leaves_what_is_out(client: BackfillClient, raw: "Raw") -> None:
    await bury(client, 7)
    await bury(client, 1, task="other")
    await raw.run("update graphile_worker.backfill_dlq set failed_at = now() - interval '1 day' * id")
    await client.requeue_dlq_job(6)
    assert await client.prune_dlq_jobs(timedelta(days=2, hours=1), DlqFilter(task_identifier="t"), dry_run=True) == 4
    assert await client.prune_dlq_jobs(timedelta(days=2, hours=1), DlqFilter(task_identifier="t")) == 4
    assert [entry.id for entry in await client.page_dlq_jobs()] == [1, 2, 6, 8]
    assert await client.prune_dlq_jobs(timedelta(days=7)) == 1
    for age, chosen in (
        (timedelta(), DlqFilter()),
        (timedelta.max, DlqFilter()),
        (timedelta(1), DlqFilter(requeued=True)),
        (timedelta(1), DlqFilter(failed_before=datetime.now(UTC))),
    ):
        with pytest.raises(InvalidJob):
            await client.prune_dlq_jobs(age, chosen)
