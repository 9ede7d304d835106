"""A worker whose tasks' rows somebody collected, as Node's GC_TASK_IDENTIFIERS does, goes on under their new ids."""

import asyncio
import time
from datetime import timedelta
from typing import Any

from backfill import BackfillClient, WorkerConfig, WorkerRunner, task


async def test_a_job_under_a_new_task_id_starts_by_notification(client: BackfillClient, db: Any) -> None:
    ran: asyncio.Queue[int] = asyncio.Queue()

    @task("collected")
    async def collected(payload: int) -> None:
        ran.put_nowait(payload)

    config = WorkerConfig(database_url=db.dsn, schema=db.schema, poll_interval=timedelta(hours=1))
    async with await WorkerRunner.builder(config).define_job(collected).build() as runner:
        stop = asyncio.Event()
        background = runner.spawn_background(stop)
        await client.enqueue("collected", 1)
        assert await ran.get() == 1
        connection = await db.connect()
        async with asyncio.timeout(30):
            while await client.count_jobs():
                await asyncio.sleep(0.01)
        await connection.execute(f'delete from "{db.schema.replace(chr(34), chr(34) * 2)}"._private_tasks')
        # The worker reads the ids anew at most once a second, and has just done so: it comes back to it by itself.
        assert runner.worker is not None
        claimer = runner.worker.claimer
        claimer._tasks_read_at, claimer._asked_due_at = time.monotonic(), -10.0
        await client.enqueue("collected", 2)
        async with asyncio.timeout(30):
            assert await ran.get() == 2
        assert claimer.polls == 0
        stop.set()
        await background
