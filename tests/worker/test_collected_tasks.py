"""A worker whose tasks' rows somebody collected, as Node's GC_TASK_IDENTIFIERS does, goes on under their new ids."""

import asyncio
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
        number = 2
        async with asyncio.timeout(30):
            # The worker reads the ids anew at most once a second, so more than one notification may be needed.
            while ran.empty():
                await client.enqueue("collected", number)
                number += 1
                await asyncio.sleep(0.2)
        assert await ran.get() == 2
        assert runner.worker is not None
        assert runner.worker.claimer.polls == 0
        stop.set()
        await background
