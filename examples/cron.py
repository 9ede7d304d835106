"""Cron items: what they mean, when they run, and a worker that schedules them.

DATABASE_URL=postgresql://… python examples/cron.py
"""

import asyncio
import os
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import Any

from backfill import CronItem, WorkerConfig, WorkerRunner, parse_crontab, task
from backfill.cron import describe
from backfill.hooks import CronTick

CRONTAB = """
# minute hour day month weekday  task  [?options]  [{payload}]
*/5 * * * *   refresh_cache
0 4 * * 1-5   report ?id=morning&fill=12h  {to: "ops@example.com"}
"""


@task("report")
async def report(payload: dict[str, Any]) -> None:
    print("a report for", payload["to"], "as of", payload["_cron"]["ts"])


@task("refresh_cache")
async def refresh_cache() -> None:
    print("refreshed")


async def main() -> None:
    nightly = CronItem(report, "30 2 * * *", {"to": "berlin@example.com"}, identifier="nightly", zone="Europe/Berlin")
    for item in [*parse_crontab(CRONTAB), nightly]:
        print(f"{item.identifier}: {describe(item)}")
    spring = datetime(2030, 3, 30, tzinfo=UTC)  # in the night to the 31st there is no 02:30 in Berlin
    for run in islice(nightly.runs(spring, spring + timedelta(days=3)), 3):
        print("  ", run.astimezone(nightly.zone).isoformat(timespec="minutes"))

    config = WorkerConfig(database_url=os.environ["DATABASE_URL"])
    builder = WorkerRunner.builder(config).define_job(report).define_job(refresh_cache)
    builder.add_crontab(CRONTAB).add_cron_schedule(nightly)
    ticked = asyncio.Event()
    builder.on(CronTick, lambda _: ticked.set())
    async with await builder.build() as runner:
        stop = asyncio.Event()
        background = runner.spawn_background(stop)
        await ticked.wait()
        print("scheduling", len(builder.cron_items), "items")
        stop.set()
        await background


asyncio.run(main())
