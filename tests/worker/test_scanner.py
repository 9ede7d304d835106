"""The scan for used-up jobs: what others left is moved, by one process at a time."""

from typing import Any

from backfill import BackfillClient, DlqFilter, JobSpec
from backfill.worker.maintenance import DeadLetterScanner


async def leave_used_up_job(client: BackfillClient, db: Any) -> int:
    """A job as a Node worker leaves it after its last attempt."""
    job = (await client.enqueue("left", {"n": 1}, JobSpec(max_attempts=3))).unwrap()
    connection = await db.connect()
    quoted = '"' + db.schema.replace('"', '""') + '"'
    await connection.execute(
        f"update {quoted}._private_jobs set attempts = 3, last_error = 'boom' where id = $1", job.id
    )
    return job.id


async def test_a_used_up_job_is_moved_with_its_error(client: BackfillClient, db: Any) -> None:
    job_id = await leave_used_up_job(client, db)
    assert await DeadLetterScanner(client, 60.0, moved_by="test").run_once() == 1
    entry = (await client.list_dlq_jobs(DlqFilter())).jobs[0]
    assert (entry.original_job_id, entry.created_by) == (job_id, "test")
    assert entry.failure_reason == "Job exceeded maximum retry attempts (3/3)"
    assert await client.get_job(job_id) is None


async def test_one_scan_at_a_time(client: BackfillClient, db: Any) -> None:
    await leave_used_up_job(client, db)
    other = await db.connect()
    scanner = DeadLetterScanner(client, 60.0, moved_by="test")
    key = "hashtextextended('backfill dead letter scan of ' || $1::text, 0)"
    await other.fetchval(f"select pg_advisory_lock({key})", db.schema)
    assert await scanner.run_once() == 0
    await other.fetchval(f"select pg_advisory_unlock({key})", db.schema)
    assert await scanner.run_once() == 1
    assert await scanner.run_once() == 0
