"""Collects items in one job; those that fail are tried again, without those that are done.

DATABASE_URL=postgresql://… python examples/batch_jobs.py
"""

import asyncio
import os

from backfill import JobSpec, RetryPolicy, WorkerConfig, WorkerContext, WorkerRunner, task

DOWN = {"carol@example.com"}


async def send(address: str) -> None:
    if address in DOWN:
        DOWN.remove(address)
        raise ConnectionError(f"no answer from the server of {address}")
    print("sent to", address)


@task("newsletter", batch=True, retry_policy=RetryPolicy(3, 0.1, 0.1))
async def newsletter(items: list[str], ctx: WorkerContext) -> list[object]:
    print(f"attempt {ctx.attempt}: {len(items)} items")
    return await asyncio.gather(*(send(address) for address in items), return_exceptions=True)


async def main() -> None:
    config = WorkerConfig(database_url=os.environ["DATABASE_URL"])
    async with await WorkerRunner.builder(config).define_job(newsletter).build() as runner:
        for name in ("alice", "bob", "carol"):
            await runner.client.enqueue(newsletter, [f"{name}@example.com"], JobSpec(job_key="newsletter"))
        await runner.process_available_jobs()
        await asyncio.sleep(0.3)  # until the retry is due
        await runner.process_available_jobs()
        print("jobs left:", len(await runner.client.list_jobs()))


asyncio.run(main())
