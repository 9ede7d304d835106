"""The scan for used-up jobs: what others left is moved, all of it, by one process at a time."""

import asyncio
import json
import logging
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from tests.support.until import until

from backfill import BackfillClient, DlqCleanupPlugin, DlqFilter, JobSpec, Queue
from backfill.client.dlq_scanner import DeadLetterScanner, settle_done_elsewhere
from backfill.errors import ConfigurationError
from backfill.sql import text

if TYPE_CHECKING:
    from tests.client.conftest import Raw
    from tests.conftest import Database


@pytest.fixture(autouse=True)
def small_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that every test has several."""
    monkeypatch.setattr("backfill.client.dlq_scanner._PAGE", 4)


async def leave_used_up_job(client: BackfillClient, raw: "Raw") -> int:
    """A job as a Node worker leaves it after its last attempt."""
    job = (await client.enqueue("left", {"n": 1}, JobSpec(max_attempts=3))).unwrap()
    await raw.exhaust(job.id, "boom")
    return job.id


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


async def test_jobs_whose_deadline_has_passed_are_moved_though_no_worker_came(
    client: BackfillClient, raw: "Raw"
) -> None:
    now = datetime.now(UTC)
    late = await client.enqueue("t", "late", JobSpec(deadline=now - timedelta(minutes=1), queue=Queue.serial("q")))
    await client.enqueue("t", "in time", JobSpec(deadline=now + timedelta(hours=1)))
    running = await client.enqueue("t", "running", JobSpec(deadline=now - timedelta(minutes=1)))
    odd = await client.enqueue("t", "odd")
    await raw.run(
        "update graphile_worker._private_jobs set locked_at = now(), locked_by = 'w' where id = $1", running.unwrap().id
    )
    await raw.run(
        """update graphile_worker._private_jobs set flags = '{"backfill:deadline=0": true}' where id = $1""",
        odd.unwrap().id,
    )
    assert await client.process_failed_jobs() == 1
    (entry,) = (await client.list_dlq_jobs()).jobs
    assert (entry.original_job_id, entry.payload, entry.queue_name) == (late.unwrap().id, "late", "q")
    assert entry.failure_reason == "Job's deadline passed before it could run"


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


async def test_a_scan_reads_no_entries_but_those_of_its_jobs(client: BackfillClient, raw: "Raw") -> None:
    """However many there are, here and out, and whatever the planner knows of them."""
    await raw.run("alter table graphile_worker.backfill_dlq set (autovacuum_enabled = off)")
    await raw.run(
        "insert into graphile_worker.backfill_dlq (task_identifier, payload, failure_reason, job_key, requeued_job_id)"
        " select 't', '1', 'x', 'key ' || n, case when n % 2 = 0 then -n end from generate_series(1, 20000) as n"
    )
    jobs = [outcome.unwrap() for outcome in await client.enqueue_many([("t", n) for n in range(200)])]
    await raw.run("update graphile_worker._private_jobs set attempts = max_attempts")
    await raw.run(
        "update graphile_worker.backfill_dlq set requeued_job_id = -requeued_job_id / 2 - 1 + $1 where id % 2 = 0 and id <= 200",
        jobs[0].id,
    )
    await raw.run(f"prepare bury as {text('bury_exhausted_jobs', client.schema)}")
    for known in (False, True):
        if known:
            await raw.run("analyze graphile_worker.backfill_dlq")
        for mode in ("force_custom_plan", "force_generic_plan"):
            await raw.run(f"set plan_cache_mode = {mode}")
            async with raw.connection.transaction():
                explain = "explain (analyze, format json) execute bury (0, 5000, 'test')"
                (plan,) = json.loads(await raw.value(explain))
                assert await raw.value("select count(*) from graphile_worker._private_jobs") == 0
                await raw.run("rollback; begin")
            read = sum(
                (node["Actual Rows"] + node.get("Rows Removed by Filter", 0)) * node["Actual Loops"]
                for node in nodes(plan["Plan"])
                if node.get("Relation Name") == "backfill_dlq" and "Scan" in node["Node Type"]
            )
            assert 200 <= read <= 400, (known, mode)


def nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for inner in plan.get("Plans", []):
        yield from nodes(inner)


async def test_one_scan_at_a_time(client: BackfillClient, raw: "Raw", other: "Raw") -> None:
    await leave_used_up_job(client, raw)
    scanner = DeadLetterScanner(client.pool.acquire, client.schema, 60.0, moved_by="test")
    key = "hashtextextended('backfill dead letter scan of ' || $1::text, 0)"
    await other.value(f"select pg_advisory_lock({key})", client.schema)
    assert await scanner.run_once() == 0
    await other.value(f"select pg_advisory_unlock({key})", client.schema)
    assert await scanner.run_once() == 1
    assert await scanner.run_once() == 0
    (entry,) = (await client.list_dlq_jobs()).jobs
    assert entry.created_by == "test"


async def test_a_processor_scans_until_it_is_stopped(client: BackfillClient, raw: "Raw") -> None:
    stop = asyncio.Event()
    processor = client.start_dlq_processor(timedelta(milliseconds=1), stop)
    for count in (1, 2):  # at once, and again
        await leave_used_up_job(client, raw)
        async with asyncio.timeout(30):
            while (await client.list_dlq_jobs()).total != count:
                pass
    stop.set()
    async with asyncio.timeout(30):
        await processor


async def test_a_scan_that_is_stopped_ends_after_its_page(client: BackfillClient, raw: "Raw") -> None:
    for _ in range(6):
        await leave_used_up_job(client, raw)
    stop = asyncio.Event()
    stop.set()
    assert await client.process_failed_jobs(stop=stop) == 0
    assert await client.process_failed_jobs(stop=asyncio.Event()) == 6


async def test_a_processor_ends_with_its_client(client: BackfillClient) -> None:
    processor = client.start_dlq_processor(timedelta(hours=1), asyncio.Event())
    await client.close()
    assert processor.done()
    with pytest.raises(ConfigurationError, match="not open"):
        client.start_dlq_processor(timedelta(hours=1), asyncio.Event())


async def test_an_interval_of_nothing_is_refused(client: BackfillClient) -> None:
    with pytest.raises(ConfigurationError, match="interval"):
        client.start_dlq_processor(timedelta(), asyncio.Event())


async def requeued(client: BackfillClient, count: int) -> dict[int, int]:
    """Dead letters that are out: job by entry."""
    jobs = [outcome.unwrap() for outcome in await client.enqueue_many([("t", n) for n in range(count)])]
    await client.fail_jobs([job.id for job in jobs], "on purpose")
    await client.requeue_dlq_jobs(DlqFilter())
    return {entry.id: entry.requeued_job_id or 0 for entry in (await client.list_dlq_jobs()).jobs}


async def test_entries_whose_jobs_others_completed_are_settled(
    client: BackfillClient, raw: "Raw", caplog: pytest.LogCaptureFixture
) -> None:
    out = await requeued(client, 11)
    here = (await client.enqueue("t")).unwrap()
    entry_here = (await client.fail_jobs([here.id], "on purpose"))[here.id]
    there = [entry for n, entry in enumerate(out) if n % 3 == 0]
    done = sorted(set(out) - set(there))
    await raw.rows("delete from graphile_worker._private_jobs where id = any($1)", [out[entry] for entry in done])
    with caplog.at_level(logging.INFO, "backfill"):
        assert await DeadLetterScanner(client.pool.acquire, client.schema, 60.0).run_once() == 0
    assert {entry.id for entry in (await client.list_dlq_jobs()).jobs} == {*there, entry_here}
    logged = [record.args for record in caplog.records if "is settled and deleted" in record.message]
    assert logged == [(entry, "t", out[entry]) for entry in done]


async def test_an_entry_that_somebody_holds_is_passed_by(client: BackfillClient, raw: "Raw") -> None:
    """Such as an operator who requeues it at that moment: it is left for the next scan."""
    out = await requeued(client, 2)
    await raw.rows("delete from graphile_worker._private_jobs where id = any($1)", list(out.values()))
    held, other = sorted(out)
    async with raw.connection.transaction(), client.pool.acquire() as connection:
        await raw.rows("select 1 from graphile_worker.backfill_dlq where id = $1 for update", held)
        assert await settle_done_elsewhere(connection, client.schema) == 1
    assert [entry.id for entry in (await client.list_dlq_jobs()).jobs] == [held]
    async with client.pool.acquire() as connection:
        assert await settle_done_elsewhere(connection, client.schema) == 1
    assert other != held


async def test_where_entries_are_to_stay_a_client_s_scans_leave_them(
    db: "Database", client: BackfillClient, raw: "Raw"
) -> None:
    out = await requeued(client, 1)
    await raw.rows("delete from graphile_worker._private_jobs where id = any($1)", list(out.values()))
    left = await leave_used_up_job(client, raw)
    plugins = [DlqCleanupPlugin(enabled=False)]
    async with BackfillClient(db.dsn, schema=db.schema, plugins=plugins) as keeping:
        stop = asyncio.Event()
        scanning = keeping.start_dlq_processor(timedelta(hours=1), stop)

        async def has_scanned() -> bool:
            return await client.get_job(left) is None

        await until(has_scanned, "the used-up job is moved")
        stop.set()
        await scanning
    assert [entry.id for entry in (await client.list_dlq_jobs(DlqFilter(requeued=True))).jobs] == list(out)
