"""Adding jobs: with keys beside graphile-worker, by many clients at once, in a caller's transaction, and a million by a stream."""

import asyncio
import multiprocessing
import random
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import AsyncExitStack
from functools import partial

import asyncpg
from benchmarks.suite import machine
from benchmarks.suite.bench import Bench, Sample
from benchmarks.suite.drains import working
from benchmarks.suite.hosts import KEYED
from benchmarks.suite.part import Part
from benchmarks.suite.rows import Cases, Row, at_least, at_most, has, limit, middle
from benchmarks.suite.turns import Turns

from backfill import BackfillClient, task

CLIENTS = 16
PROCESSES = 2
# The least that a job and its notification can be: one statement, no function.
NOTIFYING = """with note as (select pg_notify('jobs:insert', '{"r":' || random()::text || ',"count":1}'))
insert into graphile_worker._private_jobs (task_id, payload) select $2::int, $1::json from note returning id"""
SILENT = "insert into graphile_worker._private_jobs (task_id, payload) values ($2::int, $1::json) returning id"
ADD_JOB = "select (graphile_worker.add_job('noop', $1::json)).id"
NOOP = "insert into graphile_worker._private_tasks (identifier) values ('noop') on conflict do nothing"


# -- with keys ----------------------------------------------------------------------------------


async def keyed(bench: Bench) -> Cases:
    """Single and bulk adds, each with a key that is new, through hosts."""
    singles, many = bench.size(2_000), bench.size(60_000)

    async def ours(action: str, count: int) -> Sample:
        return await bench.peers.rate("backfill_keyed", "default", await bench.fresh(), action, count)

    async def theirs(action: str, count: int) -> Sample:
        return await bench.peers.rate(KEYED, "default", await bench.fresh("graphile_worker"), action, count)

    return await bench.in_rounds(
        {
            "single": partial(ours, "single", singles),
            "single, graphile-worker": partial(theirs, "single", singles),
            "bulk": partial(ours, "bulk", many),
            "bulk, graphile-worker": partial(theirs, "bulk", many),
        }
    )


def keyed_rows(cases: Cases) -> list[Row]:
    return [
        at_least("single adds, with a key", 2, cases, "single", "single, graphile-worker", label="graphile-worker"),
        at_least("bulk adds, with keys", 1, cases, "bulk", "bulk, graphile-worker", label="graphile-worker"),
    ]


# -- by many at once ----------------------------------------------------------------------------


async def _raw(dsn: str, sql: str, seconds: float) -> int:
    connections = [await asyncpg.connect(dsn) for _ in range(CLIENTS // PROCESSES)]
    task = await connections[0].fetchval("select id from graphile_worker._private_tasks")
    extra = (task,) if "$2" in sql else ()
    until = time.monotonic() + seconds

    async def loop(connection: "asyncpg.Connection[asyncpg.Record]") -> int:
        statement, count = await connection.prepare(sql), 0
        while time.monotonic() < until:
            await statement.fetch('{"id": 1}', *extra)
            count += 1
        return count

    counts = await asyncio.gather(*(loop(connection) for connection in connections))
    for connection in connections:
        await connection.close()
    return sum(counts)


async def _ours(dsn: str, seconds: float) -> int:
    clients = [await BackfillClient(dsn, install=False).open() for _ in range(CLIENTS // PROCESSES)]
    for client in clients:
        await client.enqueue("noop", {"id": 0})
    until = time.monotonic() + seconds

    async def loop(client: BackfillClient) -> int:
        count = 0
        while time.monotonic() < until:
            await client.enqueue("noop", {"id": 1})
            count += 1
        return count

    counts = await asyncio.gather(*(loop(client) for client in clients))
    for client in clients:
        await client.close()
    return sum(counts)


def in_process(dsn: str, sql: str, seconds: float) -> int:
    """One of the processes that add; how many jobs it added."""
    return asyncio.run(_raw(dsn, sql, seconds) if sql else _ours(dsn, seconds))


async def clients(bench: Bench) -> Cases:
    """Sixteen connections that add one by one: in two processes, as Python runs on one core."""
    seconds = 0.5 if bench.quick else 3.0
    context = multiprocessing.get_context("spawn")

    async def adding(sql: str) -> Sample:
        dsn = await bench.fresh()
        connection = await asyncpg.connect(dsn)
        await connection.execute(NOOP)
        await connection.close()
        loop = asyncio.get_running_loop()
        with ProcessPoolExecutor(PROCESSES, mp_context=context) as pool:
            await asyncio.gather(*(loop.run_in_executor(pool, time.sleep, 0.2) for _ in range(PROCESSES)))  # both start
            counts = await asyncio.gather(
                *(loop.run_in_executor(pool, in_process, dsn, sql, seconds) for _ in range(PROCESSES))
            )
        return {"rate": sum(counts) / seconds}

    cases: dict[str, Callable[[], Awaitable[Sample]]] = {
        "backfill": partial(adding, ""),
        "insert and notify": partial(adding, NOTIFYING),
        "insert alone": partial(adding, SILENT),
        "add_job": partial(adding, ADD_JOB),
    }
    return await bench.in_rounds(cases)


def clients_rows(cases: Cases) -> list[Row]:
    what = f"single adds by {CLIENTS} clients at once"
    return [
        at_least(what, 2, cases, "backfill", "insert and notify", label="one INSERT + NOTIFY per add"),
        at_least(f"{what}, against add_job", 2, cases, "backfill", "add_job", label="add_job per add"),
    ]


# -- and how soon their jobs start --------------------------------------------------------------

PACE = 0.05  # seconds between the adds of a client


async def wakeups(bench: Bench) -> Cases:
    """From an add to its job's start, of one client and of sixteen, none of which keeps the worker busy."""

    async def waits(count: int) -> Sample:
        dsn, many = await bench.fresh(), bench.size(640) // count
        called: dict[int, float] = {}
        waited: list[float] = []

        @task("noop")
        async def handler(payload: int) -> None:
            waited.append(time.perf_counter() - called[payload])

        async def adds(client: BackfillClient, first: int) -> None:
            await asyncio.sleep(PACE * random.random())
            for number in range(first, first + many):
                called[number] = time.perf_counter()
                await client.enqueue("noop", number)
                await asyncio.sleep(PACE * random.uniform(0.5, 1.5))

        async with AsyncExitStack() as stack:
            await stack.enter_async_context(working(dsn, handler))
            clients = [await stack.enter_async_context(BackfillClient(dsn, install=False)) for _ in range(count)]
            await asyncio.sleep(1)  # the worker listens
            await asyncio.gather(*(adds(client, number * many) for number, client in enumerate(clients)))
            async with asyncio.timeout(10):
                while len(waited) < many * count:
                    await asyncio.sleep(0.05)
        waited.sort()
        return {"p50": waited[len(waited) // 2] * 1e3, "p99": waited[len(waited) * 99 // 100] * 1e3}

    return await bench.in_rounds({"one client": partial(waits, 1), f"{CLIENTS} clients": partial(waits, CLIENTS)})


def wakeups_rows(cases: Cases) -> list[Row]:
    what = f"enqueue to start, adds by {CLIENTS} clients"
    return [
        at_most(
            f"{what}, {share}",
            most,
            cases,
            f"{CLIENTS} clients",
            "one client",
            label="by one",
            unit=" ms",
            measure=share,
        )
        for share, most in (("p50", 1.2), ("p99", 2))
    ]


# -- in a transaction ---------------------------------------------------------------------------


async def transaction(bench: Bench) -> Cases:
    """Round trips of an add in a caller's transaction, counted by a proxy between client and server."""
    dsn = await bench.fresh()
    async with Turns(dsn) as turns:

        async def count() -> Sample:
            connection = await asyncpg.connect(turns.dsn)
            async with BackfillClient(dsn, install=False) as client:
                await client.enqueue("noop", {"id": 0})
                async with connection.transaction():
                    await client.enqueue("noop", {"id": 0}, connection=connection)  # prepares
                async with connection.transaction():
                    await connection.fetchval("select 1")
                    before = turns.count
                    await client.enqueue("noop", {"id": 1}, connection=connection)
                    took = turns.count - before
            await connection.close()
            return {"round_trips": took}

        return await bench.in_rounds({"enqueue": count})


def transaction_rows(cases: Cases) -> list[Row]:
    return [limit("round trips of an add in a caller's transaction", 1, cases, "enqueue", "round_trips", "")]


# -- a stream -----------------------------------------------------------------------------------


async def _stream(dsn: str, jobs: int) -> tuple[float, float]:
    async with BackfillClient(dsn, install=False) as client:
        await client.enqueue("noop", {"id": 0})
        began = time.monotonic()
        added = await client.enqueue_stream(("noop", {"id": i}) for i in range(jobs))
        assert added == jobs
        return time.monotonic() - began, machine.memory_of(multiprocessing.current_process().pid or 0, "VmHWM")


def stream_in_process(dsn: str, jobs: int) -> tuple[float, float]:
    """Seconds, and the most memory that this process had."""
    return asyncio.run(_stream(dsn, jobs))


async def stream(bench: Bench) -> Cases:
    """The most memory of a process that adds so many jobs."""
    sizes = {"few": bench.size(10_000), "many": bench.size(1_000_000)}

    async def one(jobs: int) -> Sample:
        dsn = await bench.fresh()
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(1, mp_context=context) as pool:
            loop = asyncio.get_running_loop()
            seconds, memory = await loop.run_in_executor(pool, stream_in_process, dsn, jobs)
        return {"rate": jobs / seconds, "rss": memory, "jobs": jobs}

    return await bench.in_rounds({name: partial(one, jobs) for name, jobs in sizes.items()}, rounds=1)


def stream_rows(cases: Cases) -> list[Row]:
    if not has(cases, "few", "many"):
        return []
    few, many = middle(cases, "few", "rss"), middle(cases, "many", "rss")
    jobs = middle(cases, "many", "jobs")
    return [
        Row(
            f"{jobs:,.0f} jobs by a stream: peak memory of the process",
            "constant",
            f"{many:.1f} MiB",
            f"{middle(cases, 'few', 'jobs'):,.0f} jobs: {few:.1f} MiB",
            many / few,
            many / few <= 1.15,
        )
    ]


PARTS = [
    Part("keyed", "adds with a key, beside graphile-worker", keyed, keyed_rows),
    Part("clients", "single adds by 16 clients at once, and what a NOTIFY for each allows", clients, clients_rows),
    Part("wakeups", "how soon the jobs of one and of 16 clients start", wakeups, wakeups_rows),
    Part("transaction", "round trips of an add in a caller's transaction", transaction, transaction_rows),
    Part("stream", "memory of a process that streams a million jobs", stream, stream_rows),
]
