"""A real worker process: how long it takes to its first job and to stop, and its memory at rest and at work."""

import asyncio
import contextlib
import os
import signal
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
from benchmarks import backlog
from benchmarks.suite import machine
from benchmarks.suite.bench import Bench, Sample, settle, tell
from benchmarks.suite.drains import SLOTS, working
from benchmarks.suite.part import Part
from benchmarks.suite.rows import Cases, Row, limit, spread

from backfill import BackfillClient, task

HERE = Path(__file__).resolve().parents[1]
TIMES = 10
# Jobs run in the order of their ids here, so this need not look at those that are done, as exists() would.
LAST = "select max(id) from graphile_worker._private_jobs"
REST = 3.0  # seconds after the first job
STAMP = {"task_id": "(select id from graphile_worker._private_tasks where identifier = 'stamp')"}
NOTHING = {"task_id": "(select id from graphile_worker._private_tasks where identifier = 'nothing')"}


@contextlib.asynccontextmanager
async def worker(dsn: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """``backfill worker`` in a process; killed if the block leaves it running."""
    command = [sys.executable, "-m", "backfill", "worker", "tasks", "--concurrency", str(SLOTS), "--database-url", dsn]
    # Compiled modules are kept, as those of an installed package are: the first start compiles, and is one of ten.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    process = await asyncio.create_subprocess_exec(
        *command, env=environment, cwd=HERE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def stamped(process: asyncio.subprocess.Process) -> float:
    """When its next job of ``stamp`` began."""
    assert process.stdout is not None
    async with asyncio.timeout(30):
        line = await process.stdout.readline()
    return float(line)


async def own(dsn: str, what: str) -> None:
    """Make the tasks known, and add one job of ``what``."""
    async with BackfillClient(dsn, install=False) as client:
        await client.enqueue(what)


# -- start and stop -----------------------------------------------------------------------------


async def start(bench: Bench) -> Cases:
    times = 3 if bench.quick else TIMES
    found: Cases = {"process": {"start": [], "stop": []}, "runner": {"start": [], "stop": []}}
    dsn = await bench.fresh()
    for _ in range(times):
        await own(dsn, "stamp")
        began = time.monotonic()
        async with worker(dsn) as process:
            found["process"]["start"].append((await stamped(process) - began) * 1e3)
            await asyncio.sleep(0.5)  # at rest
            began = time.monotonic()
            process.send_signal(signal.SIGTERM)
            await process.wait()
            found["process"]["stop"].append((time.monotonic() - began) * 1e3)
        first, stop = await in_process(dsn)
        found["runner"]["start"].append(first)
        found["runner"]["stop"].append(stop)
    for name, values in found.items():
        shown = ", ".join(f"{what} {sorted(ms)[len(ms) // 2]:.0f} ms" for what, ms in values.items())
        tell(f"  {name}: {shown}")
    return found


async def in_process(dsn: str) -> tuple[float, float]:
    """Milliseconds from building a runner to its first job, and from asking it to stop to its end."""
    ran: asyncio.Future[float] = asyncio.get_running_loop().create_future()

    @task("stamp")
    async def handler() -> None:
        ran.set_result(time.monotonic())

    await own(dsn, "stamp")
    began = time.monotonic()
    async with working(dsn, handler):
        first = await ran - began
        await asyncio.sleep(0.5)  # at rest
        stopping = time.monotonic()
    return first * 1e3, (time.monotonic() - stopping) * 1e3


def start_rows(cases: Cases) -> list[Row]:
    return [
        limit("start to first job, a process (Python's own start included)", 250, cases, "process", "start", " ms"),
        limit("start to first job, a runner in a process", 250, cases, "runner", "start", " ms"),
        limit("stop of an idle worker process, until it is gone", 100, cases, "process", "stop", " ms"),
        limit("stop of an idle runner", 100, cases, "runner", "stop", " ms"),
    ]


# -- memory -------------------------------------------------------------------------------------


async def at_rest(bench: Bench) -> Sample:
    dsn = await bench.fresh()
    await own(dsn, "stamp")
    async with worker(dsn) as process:
        await stamped(process)
        await asyncio.sleep(REST)
        return {"rss": machine.memory_of(process.pid)}


async def at_work(bench: Bench) -> Sample:
    """The most memory while draining 2,000,000 jobs."""
    jobs = bench.size(2_000_000)
    dsn = await bench.fresh()
    await own(dsn, "nothing")
    connection = await asyncpg.connect(dsn)
    await connection.execute("truncate graphile_worker._private_jobs")
    await backlog.insert(connection, "graphile_worker", jobs, NOTHING)
    await settle(dsn)
    began = time.monotonic()
    async with worker(dsn) as process:
        while await connection.fetchval(LAST):
            await asyncio.sleep(0.5)
        took = time.monotonic() - began
        most = machine.memory_of(process.pid, "VmHWM")
    await connection.close()
    return {"rss": most, "rate": jobs / took}


async def memory(bench: Bench) -> Cases:
    return await bench.in_rounds({"rest": lambda: at_rest(bench), "work": lambda: at_work(bench)}, rounds=1)


def memory_rows(cases: Cases) -> list[Row]:
    return [
        limit("memory of a worker process at rest", 60, cases, "rest", "rss", " MiB"),
        limit("memory while draining 2,000,000 jobs, at most", 120, cases, "work", "rss", " MiB"),
        Row("that drain, from the start of the process on", "", spread(cases["work"]["rate"], "/s")),
    ]


PARTS = [
    Part("start", "start to the first job, and stop, of a process and of a runner", start, start_rows),
    Part("memory", "memory of a worker at rest and while it drains two million jobs", memory, memory_rows),
]
