"""Looks after the dead letter queue: what failed for good and why, and running it again with a mended payload, one
entry and many at once.

DATABASE_URL=postgresql://… python examples/dead_letters.py
"""

import asyncio
import os

from backfill import DlqEdit, DlqFilter, WorkerConfig, WorkerRunner, task
from backfill.errors import ValidationFailed


@task("parse_price")
async def parse_price(payload: dict[str, str]) -> None:
    if not payload["price"].isdigit():
        raise ValidationFailed(f"{payload['price']!r} is no price")
    print("parsed", payload["price"])


async def main() -> None:
    config = WorkerConfig(database_url=os.environ["DATABASE_URL"])
    async with await WorkerRunner.builder(config).define_job(parse_price).build() as runner:
        client = runner.client
        await client.enqueue(parse_price, {"price": "12,50"})
        await runner.process_available_jobs()

        found = await client.list_dlq_jobs(DlqFilter(task_identifier="parse_price"))
        for entry in found.jobs:
            print(f"dead letter {entry.id}: {entry.failure_reason}")
            await client.requeue_dlq_job(entry.id, notes="decimal comma", payload={"price": "1250"})
        await runner.process_available_jobs()

        for price in ("1", "2", "3"):
            await client.enqueue(parse_price, {"price": f"EUR {price}"})
        await runner.process_available_jobs()
        chosen = DlqFilter(task_identifier="parse_price")
        would = await client.requeue_dlq_jobs(chosen, dry_run=True)
        print(would.requeued, "would be requeued")
        edit = DlqEdit(payload={"price": "1"}, add_note="no currency, please")
        await client.requeue_dlq_jobs(
            chosen, edit=edit, rate=100, watch=lambda progress: print(progress.done, "requeued")
        )
        await runner.process_available_jobs()
        print("left:", len((await client.list_dlq_jobs(chosen)).jobs))


asyncio.run(main())
