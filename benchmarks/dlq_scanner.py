"""What the dead letter scanner takes for one moved job, with ever more entries in the dead letter queue.

    ./dev run python benchmarks/dlq_scanner.py [--jobs 20000] [--entries 1000 10000 100000 1000000] [--rounds 3]

On DATABASE_URL, in a schema of its own that is dropped at the end; else on a PostgreSQL of its own. Half of the jobs have keys,
a tenth were requeued and bring their own entries back.
"""

import argparse
import asyncio
import contextlib
import os
import statistics
import time

from backfill import BackfillClient, DlqFilter
from backfill.embedded import EmbeddedServer
from backfill.sql import with_schema

SCHEMA = "backfill_bench_dlq_scanner"

FILL = """
insert into graphile_worker.backfill_dlq (original_job_id, task_identifier, payload, queue_name, job_key, failure_reason,
                                          max_attempts, original_created_at, original_run_at, requeued_job_id)
select n, 'task ' || n % 50, jsonb_build_object('n', n), case when n % 3 = 0 then 'q' || n % 100 else '' end,
       case when n % 2 = 0 then 'kept ' || n end, 'Job exceeded maximum retry attempts (8/8)', 8, now(), now(),
       case when n % 20 = 1 then -n end
  from generate_series($1::int8, $2::int8) as n
"""
USED_UP = """
insert into graphile_worker._private_jobs (task_id, payload, key, attempts, max_attempts, last_error)
select tasks.id, json_build_object('n', n), case when n % 2 = 0 then 'left ' || n end, 8, 8, 'boom'
  from generate_series(1, $1::int8) as n
  join graphile_worker._private_tasks as tasks on tasks.identifier = 'task ' || n % 50
"""


async def measure(dsn: str, jobs: int, sizes: list[int], rounds: int) -> None:
    async with BackfillClient(dsn, schema=SCHEMA) as client, client.pool.acquire() as connection:

        async def run(sql: str, *args: object) -> None:
            await connection.execute(with_schema(sql, SCHEMA), *args, timeout=3600)

        await run(
            "insert into graphile_worker._private_tasks (identifier) select 'task ' || n from generate_series(0, 49) n"
        )
        there = 0
        for size in sorted(sizes):
            await run(FILL, there + 1, size)
            there = size
            await run("vacuum analyze graphile_worker.backfill_dlq")
            micros = []
            for _ in range(rounds):
                await run(USED_UP, jobs)
                requeued = (await client.requeue_dlq_jobs(DlqFilter(), limit=jobs // 10)).requeued
                await run("update graphile_worker._private_jobs set attempts = max_attempts")
                await run("vacuum analyze graphile_worker._private_jobs")
                highest = await connection.fetchval(
                    with_schema("select max(id) from graphile_worker.backfill_dlq", SCHEMA)
                )
                began = time.perf_counter()
                moved = await client.process_failed_jobs()
                micros.append((time.perf_counter() - began) / moved * 1e6)
                assert moved == jobs + requeued
                await run("delete from graphile_worker.backfill_dlq where id > $1", highest)
            shown = ", ".join(f"{value:.0f}" for value in micros)
            print(f"{size:>9,} entries: {statistics.median(micros):6.0f} µs a job (rounds: {shown})", flush=True)
        await run("drop schema graphile_worker cascade")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=20_000, help="used-up jobs that a round moves")
    parser.add_argument("--entries", type=int, nargs="+", default=[1_000, 10_000, 100_000, 1_000_000])
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with contextlib.ExitStack() as stack:
        dsn = os.environ.get("DATABASE_URL")
        if not dsn:
            dsn = stack.enter_context(EmbeddedServer()).dsn()
        asyncio.run(measure(dsn, options.jobs, options.entries, options.rounds))


if __name__ == "__main__":
    main()
