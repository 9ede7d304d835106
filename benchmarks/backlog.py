"""What waits, and in which queues, against the speed of claims: named scenarios, each a set of cases that take turns.

    ./dev run python benchmarks/backlog.py [SCENARIO ...] [--rounds 3] [--scale 1.0]

On DATABASE_URL, in a schema of its own that is dropped at the end; else on a PostgreSQL of its own. Given are medians: jobs a
second, and the CPU time of the worker's two server processes for a job, each with its ratio to the first case of the scenario.
The CPU time is what other work on the machine disturbs least; it needs a server on the same machine, under Linux.
"""

import argparse
import asyncio
import contextlib
import logging
import math
import multiprocessing
import os
import statistics
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing.synchronize import Barrier, Event
from pathlib import Path
from typing import Any

import asyncpg

from backfill import BackfillClient, JobSpec, Priority, QueueConfig, WorkerConfig, WorkerRunner, task
from backfill.db import WORKER_SETTINGS
from backfill.embedded import EmbeddedServer
from backfill.sql import text, with_schema

SCHEMA = "backfill_bench_backlog"
ONE_LANE = (QueueConfig.default_queue(24),)
TWO_LANES = (QueueConfig.priority_queue("fast", 10, -32768, -1), QueueConfig.priority_queue("bulk", 24, 0, 32767))


Filling = tuple[int, dict[str, str]]  # how many jobs, and SQL over n for their columns


@dataclass(frozen=True)
class Case:
    """One side of a comparison.

    Attributes:
        name: What is printed.
        fill: Jobs to add.
        jobs: How many runs are measured; the worker is stopped then, whatever is left.
        before: SQL after the fill.
        lanes: The worker's.
        processes: How many workers, each in a process of its own if more than one.
        run: Measures in another way than a drain: jobs a second (or whatever is said) and CPU seconds a job.
    """

    name: str
    fill: Sequence[Filling]
    jobs: int
    before: str = ""
    lanes: Sequence[QueueConfig] = ONE_LANE
    processes: int = 1
    run: "Callable[[str, Case], Awaitable[tuple[float, float]]] | None" = None


async def insert(
    connection: "asyncpg.Connection[asyncpg.Record]", schema: str, count: int, columns: dict[str, str]
) -> None:
    """Add jobs, and their queues, by SQL over n for their columns."""
    given = dict(columns)
    queue = given.pop("queue", None)
    if queue is not None:
        queues = (
            "insert into graphile_worker._private_job_queues (queue_name)"
            f" select distinct {queue} from generate_series(1, $1::int) as n on conflict do nothing"
        )
        await connection.execute(with_schema(queues, schema), count)
        given["job_queue_id"] = f"(select id from graphile_worker._private_job_queues where queue_name = {queue})"
    jobs = (
        f"insert into graphile_worker._private_jobs ({', '.join(given)})"
        f" select {', '.join(given.values())} from generate_series(1, $1::int) as n"
    )
    await connection.execute(with_schema(jobs, schema), count)


async def fill(connection: "asyncpg.Connection[asyncpg.Record]", case: Case) -> None:
    """Empty the tables and add the case's jobs."""

    async def run(sql: str, *args: Any) -> None:
        await connection.execute(with_schema(sql, SCHEMA), *args)

    await run("truncate graphile_worker._private_jobs, graphile_worker._private_job_queues restart identity")
    await run("insert into graphile_worker._private_tasks (identifier) values ('nothing') on conflict do nothing")
    for count, columns in case.fill:
        await insert(
            connection,
            SCHEMA,
            count,
            {"task_id": "(select id from graphile_worker._private_tasks where identifier = 'nothing')", **columns},
        )
    if case.before:
        await run(case.before)
    await run("vacuum analyze graphile_worker._private_jobs")
    await run("vacuum analyze graphile_worker._private_job_queues")
    await connection.execute("checkpoint")


def cpu_seconds(pids: Sequence[int]) -> float:
    """CPU time of processes of this machine; 0 where that is not to be had."""
    files = [Path(f"/proc/{pid}/schedstat") for pid in pids]
    return sum(int(file.read_text().split()[0]) for file in files if file.exists()) / 1e9


async def drain(dsn: str, case: Case) -> tuple[float, float]:
    """Run the case's number of jobs: jobs a second from the first to the last, and CPU seconds of the server for one."""
    began, ran, done = 0.0, 0, asyncio.Event()

    @task("nothing")
    async def nothing() -> None:
        nonlocal began, ran
        began = began or time.perf_counter()
        ran += 1
        if ran == case.jobs:
            done.set()

    config = WorkerConfig(database_url=dsn, schema=SCHEMA, queue_configs=list(case.lanes))
    async with await WorkerRunner.builder(config).define_job(nothing).build() as runner:
        stop = asyncio.Event()
        running = runner.spawn_background(stop)
        await done.wait()
        took = time.perf_counter() - began
        rows = await runner.client.pool.fetch(
            "select pid from pg_stat_activity where application_name ~ '^backfill-.*:(claim|release)$'"
        )
        cpu = cpu_seconds([row["pid"] for row in rows])
        stop.set()
        await running
    return case.jobs / took, cpu / case.jobs


def drain_all(dsn: str) -> tuple[float, float, int]:
    """In a process of its own: run all that is due. When that began and ended, and how many it were."""
    moments: list[float] = []

    @task("nothing")
    async def nothing() -> None:
        moments.append(time.monotonic())

    async def run() -> None:
        logging.disable(logging.CRITICAL)
        config = WorkerConfig(database_url=dsn, schema=SCHEMA, queue_configs=list(ONE_LANE))
        async with await WorkerRunner.builder(config).define_job(nothing).build() as runner:
            await runner.process_available_jobs()

    asyncio.run(run())
    return min(moments, default=math.inf), max(moments, default=-math.inf), len(moments)


async def drain_by_processes(dsn: str, case: Case) -> tuple[float, float]:
    """Drain by several processes; no CPU is told."""
    loop = asyncio.get_running_loop()
    with ProcessPoolExecutor(case.processes, mp_context=multiprocessing.get_context("spawn")) as pool:
        parts = await asyncio.gather(*(loop.run_in_executor(pool, drain_all, dsn) for _ in range(case.processes)))
    began, ended = min(part[0] for part in parts), max(part[1] for part in parts)
    return sum(part[2] for part in parts) / (ended - began), 0.0


async def emergencies(dsn: str, case: Case) -> tuple[float, float]:
    """Emergencies of another process while bulk jobs drain: the rate is 1 / (99th percentile in seconds, from call to start)."""
    waits: list[float] = []
    bulk = 0

    @task("nothing")
    async def nothing() -> None:
        nonlocal bulk
        bulk += 1

    @task("urgent")
    async def urgent(called_at: float) -> None:
        waits.append(time.monotonic() - called_at)

    config = WorkerConfig(database_url=dsn, schema=SCHEMA, queue_configs=list(case.lanes))
    spawned = multiprocessing.get_context("spawn")
    going, stopping = spawned.Barrier(2), spawned.Event()
    calling = spawned.Process(target=call, args=(dsn, going, stopping))
    calling.start()
    async with await WorkerRunner.builder(config).define_job(nothing).define_job(urgent).build() as runner:
        await asyncio.to_thread(going.wait)
        stop = asyncio.Event()
        running = runner.spawn_background(stop)
        while bulk < case.jobs // 20:  # the worker has started
            await asyncio.sleep(0.001)
        waits.clear()
        while bulk < case.jobs:
            await asyncio.sleep(0.001)
        measured = sorted(waits)
        stopping.set()
        await asyncio.to_thread(calling.join)
        stop.set()
        await running
    print(
        f"    {len(measured)} emergencies: p50 {measured[len(measured) // 2] * 1e3:.1f} ms, max {measured[-1] * 1e3:.1f} ms"
    )
    return 1 / measured[int(len(measured) * 0.99)], 0.0


def call(dsn: str, going: Barrier, stopping: Event) -> None:
    """Add an emergency every few milliseconds, in a process of its own."""

    async def calls() -> None:
        async with BackfillClient(dsn, schema=SCHEMA) as client:
            going.wait()
            while not stopping.is_set():
                await client.enqueue("urgent", time.monotonic(), JobSpec(priority=Priority.EMERGENCY))
                await asyncio.sleep(0.005)

    asyncio.run(calls())


async def claims(dsn: str, case: Case) -> tuple[float, float]:
    """Claims of 24 by a statement that was prepared and used five times before the fill: jobs a second, CPU seconds a job.

    The case's number of jobs is claimed; nothing is released.
    """
    prepared_first = case.before == "prepared first"
    sql = text("claim_jobs", SCHEMA)
    connection = await asyncpg.connect(dsn, server_settings=dict(WORKER_SETTINGS))
    worker = [f"backfill-bench-{os.getpid()}", "here", 1, "0", "[]", [], "alive", 3600.0]
    await connection.fetch(text("register_worker", SCHEMA), *worker)
    other = await asyncpg.connect(dsn)
    await fill(other, Case("", (), 0))
    identifier = with_schema("select id from graphile_worker._private_tasks where identifier = 'nothing'", SCHEMA)
    tasks = [await connection.fetchval(identifier)]
    lows = [lane.pieces[0] for lane in case.lanes]
    highs = [lane.pieces[1] for lane in case.lanes]
    count = len(lows)
    args: tuple[Any, ...] = (
        f"{worker[0]}/1",
        tasks,
        list(range(count)),
        lows,
        highs,
        [24] * count,
        [24] * count,
        None,
        True,
        [],
        [],
        [],
        [],
        [],
        [None] * count,
    )
    try:
        if prepared_first:
            statement = await connection.prepare(sql)
            for _ in range(6):
                await statement.fetch(*args)
        await fill(other, Case("", case.fill, 0))
        await other.close()
        if not prepared_first:
            statement = await connection.prepare(sql)
            await statement.fetch(*args)
        pid, claimed = connection.get_server_pid(), 0
        began, cpu = time.perf_counter(), cpu_seconds([pid])
        while claimed < case.jobs:
            rows = await statement.fetch(*args)
            assert rows, "nothing was claimed"
            claimed += len(rows)
        return claimed / (time.perf_counter() - began), (cpu_seconds([pid]) - cpu) / claimed
    finally:
        await connection.fetch(text("remove_worker", SCHEMA), worker[0])
        await connection.close()


def mixed(waiting: int) -> list[Filling]:
    """Of what waits half is ready, a third is not due, and the rest is used up."""
    return [
        (waiting // 2, {"run_at": "now() - interval '1 h' + n * interval '1 ms'"}),
        (waiting // 3, {"run_at": "now() + interval '1 h' + n * interval '1 ms'"}),
        (waiting // 6, {"attempts": "25", "run_at": "now() - interval '2 h' + n * interval '1 ms'"}),
    ]


def scenarios(scale: float) -> dict[str, list[Case]]:
    """All of them, with numbers of jobs multiplied by ``scale``."""

    def many(count: int) -> int:
        return max(100, int(count * scale))

    hold = (
        "update graphile_worker._private_job_queues set locked_at = now(), locked_by = 'node' where queue_name = 'held'"
    )
    held = (many(100_000), {"queue": "'held'", "run_at": "now() - interval '1 h'"})
    held_old = (many(100_000), {"queue": "'held'", "run_at": "now() - interval '1 h' + n * interval '1 us'"})
    plain: Filling = (many(30_000), {})
    queued = (many(10_000), {"queue": "'q' || n % 100"})
    future = (many(1_000_000), {"priority": "-20", "run_at": "now() + interval '1 h' + n * interval '1 ms'"})
    rows = many(500_000)
    ready: list[Filling] = [(many(200_000), {})]
    return {
        "queues": [
            Case("without a queue", [(many(30_000), {})], many(20_000)),
            Case("one job in each queue", [(many(100_000), {"queue": "'q' || n"})], many(20_000)),
        ],
        "serial": [
            Case("1,000 jobs of a queue", [(many(1_000), {"queue": "'q'"})], many(1_000)),
            Case("5,000 jobs of a queue", [(many(5_000), {"queue": "'q'"})], many(5_000)),
            Case("of 100,000 jobs of a queue", [(many(100_000), {"queue": "'q'"})], many(500)),
        ],
        "held": [
            Case("without a queue", [plain], many(30_000)),
            Case("the same behind a held queue", [held, plain], many(30_000), hold),
            Case("behind one of different times", [held_old, plain], many(30_000), hold),
        ],
        "held-queues": [
            Case("in 100 queues", [queued], many(10_000)),
            Case("the same behind a held queue", [held, queued], many(10_000), hold),
            Case("behind one of different times", [held_old, queued], many(10_000), hold),
        ],
        "waiting": [
            Case("10,000 wait", mixed(many(10_000)), many(5_000)),
            Case("200,000 wait", mixed(many(200_000)), many(5_000)),
            Case("2,000,000 wait", mixed(many(2_000_000)), many(5_000)),
        ],
        "future": [
            Case("nothing else", [plain], many(30_000)),
            Case("1,000,000 more urgent, not due", [future, plain], many(30_000)),
        ],
        "prepared": [
            Case("prepared on full tables", [(rows, {})], many(5_000), "", run=claims),
            Case("prepared on empty tables", [(rows, {})], many(5_000), "prepared first", run=claims),
        ],
        "lanes": [
            Case("one lane", [plain], many(30_000)),
            Case("fast and bulk", [plain], many(30_000), lanes=TWO_LANES),
        ],
        "lanes-claims": [
            Case("one lane", ready, many(5_000), run=claims),
            Case("fast and bulk", ready, many(5_000), lanes=TWO_LANES, run=claims),
        ],
        "processes": [
            Case("one process", [(many(60_000), {})], 0, run=drain_by_processes),
            Case("two processes", [(many(60_000), {})], 0, processes=2, run=drain_by_processes),
        ],
        "emergency": [
            Case("one lane", [(many(100_000), {})], many(90_000), run=emergencies),
            Case("fast and bulk", [(many(100_000), {})], many(90_000), lanes=TWO_LANES, run=emergencies),
        ],
    }


async def measure(dsn: str, cases: Sequence[Case], rounds: int) -> dict[str, list[tuple[float, float]]]:
    """Measure the cases of one scenario, in turns: of each, the rate and the CPU seconds a job in each round."""
    found: dict[str, list[tuple[float, float]]] = {case.name: [] for case in cases}
    connection = await asyncpg.connect(dsn)
    for number in range(rounds):
        for case in cases[:: -1 if number % 2 else 1]:
            if case.run is not claims:
                await fill(connection, case)
            found[case.name].append(await (case.run or drain)(dsn, case))
    await connection.close()
    return found


def show(name: str, found: dict[str, list[tuple[float, float]]]) -> None:
    """Print medians, and their ratios to those of the first case."""
    print(name, flush=True)
    first: tuple[float, float] | None = None
    for case, samples in found.items():
        rate, cpu = (statistics.median(values) for values in zip(*samples, strict=True))
        first = first or (rate, cpu)
        ratios = f"ratio {rate / first[0]:.2f}"
        if cpu and first[1]:
            ratios += f"; {cpu * 1e6:8.1f} µs of the server's CPU, ratio {cpu / first[1]:.2f}"
        print(f"  {case:32} {rate:9.0f}/s, {ratios}", flush=True)


async def run(dsn: str, names: Sequence[str], rounds: int, scale: float) -> None:
    """Measure the scenarios of these names."""
    async with BackfillClient(dsn, schema=SCHEMA) as client:
        try:
            for name, cases in scenarios(scale).items():
                if name in names or not names:
                    show(name, await measure(dsn, cases, rounds))
        finally:
            await client.pool.execute(with_schema("drop schema graphile_worker cascade", SCHEMA))


def main() -> None:
    """Measure what the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scenarios", nargs="*", choices=[[], *scenarios(1)], metavar="SCENARIO")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--scale", type=float, default=1.0)
    options = parser.parse_args()
    logging.disable(logging.CRITICAL)
    with contextlib.ExitStack() as stack:
        settings = {"shared_buffers": "1GB", "max_wal_size": "4GB"}
        dsn = os.environ.get("DATABASE_URL")
        dsn = dsn or stack.enter_context(EmbeddedServer(temporary=True, settings=settings)).dsn()
        asyncio.run(run(dsn, options.scenarios, options.rounds, options.scale))


if __name__ == "__main__":
    main()
