"""A worker and its client in one process: adds three jobs, runs what is due, and says what came of it.

DATABASE_URL=postgresql://… python examples/basic.py
"""

import asyncio
import os
from dataclasses import dataclass

from backfill import JobSpec, Priority, WorkerConfig, WorkerContext, WorkerRunner, task


@dataclass
class Email:
    to: str
    subject: str


@task("send_email")
async def send_email(payload: Email, ctx: WorkerContext) -> None:
    print(f"job {ctx.job.id}: to {payload.to}: {payload.subject}")


async def main() -> None:
    config = WorkerConfig(database_url=os.environ["DATABASE_URL"])
    async with await WorkerRunner.builder(config).define_job(send_email).build() as runner:
        await runner.client.enqueue(send_email, Email("ada@example.com", "news"))
        await runner.client.enqueue(send_email, Email("root@example.com", "fire"), JobSpec(priority=Priority.EMERGENCY))
        await runner.client.enqueue("send_email", {"to": "grace@example.com", "subject": "more news"})
        print("runs:", await runner.process_available_jobs())


asyncio.run(main())
