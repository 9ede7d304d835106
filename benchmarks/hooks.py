"""What hooks cost a job: drains of no-op jobs, with none and with more and more of them, in rounds that take turns.

    ./dev run python benchmarks/hooks.py [--jobs 20000] [--rounds 9]

On DATABASE_URL, in a schema of its own that is dropped at the end; else on a PostgreSQL of its own. Given is the time of the
worker's CPU, which other work on the machine disturbs least, and its ratio to the drain without hooks of the same round.
"""

import argparse
import asyncio
import contextlib
import gc
import os
import statistics
import time

from backfill import BackfillClient, WorkerConfig, WorkerRunner, task
from backfill.embedded import EmbeddedServer
from backfill.hooks import AfterJobRun, BeforeJobRun, JobComplete, JobFail, JobFetch, JobStart
from backfill.sql import with_schema

SCHEMA = "backfill_bench_hooks"
SETUPS = {
    "none": (),
    "JobFail, which does not happen": (JobFail,),
    "JobComplete": (JobComplete,),
    "all around a job": (JobFetch, BeforeJobRun, JobStart, AfterJobRun, JobComplete, JobFail),
}


@task("nothing")
async def nothing() -> None: ...


async def drain(dsn: str, jobs: int, setup: str) -> float:
    """Seconds of CPU."""
    builder = WorkerRunner.builder(WorkerConfig(database_url=dsn, schema=SCHEMA)).define_job(nothing)
    for event in SETUPS[setup]:
        builder.on(event, lambda _: None)
    async with await builder.build() as runner:
        await runner.client.enqueue_stream((nothing,) for _ in range(jobs))
        gc.collect()
        began = time.process_time()
        assert await runner.process_available_jobs() == jobs
        return time.process_time() - began


async def measure(dsn: str, jobs: int, rounds: int) -> None:
    took: dict[str, list[float]] = {setup: [] for setup in SETUPS}
    for number in range(rounds):
        for setup in list(SETUPS)[:: -1 if number % 2 else 1]:
            took[setup].append(await drain(dsn, jobs, setup))
    for setup, values in took.items():
        ratio = statistics.median(value / none for value, none in zip(values, took["none"], strict=True))
        print(f"{setup:32} {statistics.median(values) / jobs * 1e6:6.1f} µs a job, ratio {ratio:.2f}")
    async with BackfillClient(dsn, schema=SCHEMA) as client:
        await client.pool.execute(with_schema("drop schema graphile_worker cascade", SCHEMA))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    with contextlib.ExitStack() as stack:
        dsn = os.environ.get("DATABASE_URL") or stack.enter_context(EmbeddedServer(temporary=True)).dsn()
        asyncio.run(measure(dsn, options.jobs, options.rounds))


if __name__ == "__main__":
    main()
