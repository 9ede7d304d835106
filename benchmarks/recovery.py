"""How long it takes until jobs go on after a fault.

    ./dev run python benchmarks/recovery.py [--times 5] [--lease 5] [--kinds killed,frozen]

For faults of a worker: from the fault until the job that it ran has started on another. For faults of the database: from when it
takes connections again (or from the fault, where it never went away) until the next job of a fleet under load begins. The PostgreSQL
is one of its own. Exit code 1 if a job of a killed worker took longer than the lease and 5 s.
"""

import argparse
import asyncio
import contextlib
import random
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # for tests.support

import asyncpg
from tests.support.ledger import enqueue
from tests.support.quiet import SCHEMA, Quiet
from tests.support.until import until
from tests.support.way import PORT, Way

from backfill.client import BackfillClient
from backfill.model import JobSpec

IN_TRANSACTION = "cut off in a transaction"  # of a handler, which has its job locked
OF_A_WORKER = ("killed", "frozen", "cut off", IN_TRANSACTION)
OF_THE_SERVER = ("connections ended", "restarted", "crashed")
NOW = "select clock_timestamp()"
END_ALL = "select count(pg_terminate_backend(pid)) from pg_stat_activity where application_name like 'backfill-%'"
RUNS = "select count(*) = $2 from ledger where job = $1"
LATEST = "select max(began_at) from ledger where job = $1"


@contextlib.asynccontextmanager
async def a_way(quiet: Quiet) -> AsyncIterator[tuple[Way, str]]:
    """A way to the server that can be blocked, and its URL."""
    with tempfile.TemporaryDirectory(prefix="bf") as folder:
        way = Way(Path(folder), f"{quiet.node.folder}/.s.PGSQL.{PORT}")
        await way.start()
        try:
            yield way, f"postgresql://postgres@/postgres?host={quote(folder)}&port={PORT}"
        finally:
            await way.end()


async def of_a_worker(kind: str, lease: int) -> float:
    """Have a worker fail that runs a job; after how many seconds that started elsewhere."""
    async with (
        Quiet(BACKFILL_LEASE_SECS=str(lease), BACKFILL_LOG_LEVEL="CRITICAL") as quiet,
        BackfillClient(quiet.node.dsn(), SCHEMA, install=False) as client,
        a_way(quiet) as (way, dsn),
    ):
        connection = quiet.connection
        task = "holds" if kind == IN_TRANSACTION else "idles"
        (job,) = await enqueue(client, [(task, None, JobSpec(), "done")], connection)
        victim = await quiet.fleet.start(dsn=dsn)
        await until(partial(connection.fetchval, RUNS, job, 1), "it runs")
        await quiet.fleet.started(2, connection)
        await asyncio.sleep(random.uniform(lease / 2, lease))  # the others are steady, and a beat comes at any time
        began = await connection.fetchval(NOW)
        if kind == "killed":
            await victim.kill()
        elif kind == "frozen":
            victim.signal(signal.SIGSTOP)
        else:
            way.block()
        await until(partial(connection.fetchval, RUNS, job, 2), "it runs elsewhere", limit=lease + 60)
        again = await connection.fetchval(LATEST, job)
        return float((again - began).total_seconds())


async def of_the_server(kind: str) -> float:
    """Have the server fail under a fleet; after how many seconds that it was there again the next job began."""
    async with (
        Quiet(BACKFILL_LOG_LEVEL="CRITICAL", BACKFILL_LEASE_SECS="30") as quiet,
        BackfillClient(quiet.node.dsn(), SCHEMA, install=False) as client,
    ):
        spec = JobSpec(max_attempts=25)
        await enqueue(client, [("work", {"seconds": 0.3}, spec, "done")] * 2000, quiet.connection)
        await quiet.fleet.started(2, quiet.connection)
        await until(partial(quiet.connection.fetchval, "select count(*) > 20 from ledger"), "they run")
        if kind == "connections ended":
            since: Any = await quiet.connection.fetchval(NOW)
            await quiet.connection.fetchval(END_ALL)
        else:
            await asyncio.to_thread(quiet.node.end, signal.SIGINT if kind == "restarted" else signal.SIGQUIT)
            await quiet.node.start()
            quiet.connection = await asyncpg.connect(quiet.node.dsn())
            since = await quiet.connection.fetchval(NOW)
        first = "select extract(epoch from min(began_at) - $1)::float8 from ledger where began_at > $1"
        return float(await until(partial(quiet.connection.fetchval, first, since), "jobs go on", limit=60))


async def measure(kinds: list[str], times: int, lease: int) -> bool:
    well = True
    for kind in kinds:
        took = []
        for _ in range(times):
            took.append(await (of_a_worker(kind, lease) if kind in OF_A_WORKER else of_the_server(kind)))
        print(
            f"{kind:24} {times} times: least {min(took):.2f}, median {statistics.median(took):.2f}, most {max(took):.2f} s",
            flush=True,
        )
        well = well and (kind != "killed" or max(took) <= lease + 5)
    return well


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=5)
    parser.add_argument("--lease", type=int, default=5, help="seconds, for faults of a worker")
    parser.add_argument("--kinds", default=",".join(OF_A_WORKER + OF_THE_SERVER))
    options = parser.parse_args()
    began = time.monotonic()
    well = asyncio.run(measure(options.kinds.split(","), options.times, options.lease))
    print(f"in {time.monotonic() - began:.0f} s")
    sys.exit(0 if well else 1)


if __name__ == "__main__":
    main()
