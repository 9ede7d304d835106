"""A transaction that somebody left open, for minutes, at 1,000 jobs a second: nothing that was deleted meanwhile can be vacuumed."""

import asyncio
import contextlib
import ctypes
import multiprocessing
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from multiprocessing.sharedctypes import Synchronized
from typing import Any

import asyncpg
from benchmarks.suite.bench import Bench, tell
from benchmarks.suite.drains import Runs, working
from benchmarks.suite.part import Part
from benchmarks.suite.rows import Cases, Row, has, number, spread

from backfill import BackfillClient, task
from backfill.worker.link import Link

RATE = 1_000  # jobs a second
ADDERS = 8  # adds under way at once, at most
STEP = 60.0  # seconds that a value stands for
DEAD = """select pg_stat_get_dead_tuples('graphile_worker._private_jobs'::regclass),
pg_total_relation_size('graphile_worker._private_jobs')"""


async def _produce(dsn: str, count: "Synchronized[int]", ends: "Synchronized[int]") -> None:
    async with BackfillClient(dsn, install=False) as client:
        began, sent = time.monotonic(), 0
        while not ends.value:
            missing = int((time.monotonic() - began) * RATE) - sent
            await asyncio.gather(*(client.enqueue("noop", {"id": sent + n}) for n in range(min(missing, ADDERS))))
            sent += max(0, min(missing, ADDERS))
            count.value = sent
            if missing <= ADDERS:
                await asyncio.sleep(0.002)


def produce(dsn: str, count: "Synchronized[int]", ends: "Synchronized[int]") -> None:
    """In a process: add jobs at the rate, until told to end."""
    asyncio.run(_produce(dsn, count, ends))


@contextlib.contextmanager
def timed_claims() -> Iterator[list[float]]:
    """The seconds that each claim takes, as the workers in this process see it."""
    taken: list[float] = []
    fetch = Link.fetch

    async def timed(self: Link, name: str, *args: Any) -> Any:
        began = time.perf_counter()
        rows = await fetch(self, name, *args)
        if name.startswith("claim"):
            taken.append(time.perf_counter() - began)
        return rows

    Link.fetch = timed  # type: ignore[method-assign]  # the only way to see each claim's time; a worker tells none
    try:
        yield taken
    finally:
        Link.fetch = fetch  # type: ignore[method-assign]  # as it was


class Watch:
    """Values for each step of time.

    Attributes:
        values: Of each measure, one for each step.
    """

    def __init__(
        self,
        bench: Bench,
        watcher: "asyncpg.Connection[asyncpg.Record]",
        runs: Runs,
        taken: list[float],
        produced: "Synchronized[int]",
    ) -> None:
        self.values: dict[str, list[float]] = {}
        self._bench = bench
        self._watcher = watcher
        self._runs = runs
        self._taken = taken
        self._produced = produced

    async def step(self, seconds: float) -> None:
        """Wait, and note what was in that time."""
        cpu, ran = self._bench.server_cpu(), self._runs.count
        self._taken.clear()
        await asyncio.sleep(seconds)
        claims, jobs = sorted(self._taken), self._runs.count - ran
        dead, size = await self._watcher.fetchrow(DEAD) or (0, 0)
        found = {
            "claim_p50": claims[len(claims) // 2] * 1e3 if claims else 0.0,
            "claim_p99": claims[len(claims) * 99 // 100] * 1e3 if claims else 0.0,
            "claims": len(claims) / seconds,
            "rate": jobs / seconds,
            "backlog": self._produced.value - self._runs.count,
            "cpu_server": (self._bench.server_cpu() - cpu) / max(1, jobs) * 1e6,
            "dead": float(dead),
            "mib": size / (1 << 20),
        }
        for what, value in found.items():
            self.values.setdefault(what, []).append(value)
        tell("  " + ", ".join(f"{what} {value:.4g}" for what, value in found.items()))


@contextlib.asynccontextmanager
async def load(bench: Bench, dsn: str) -> AsyncIterator[Watch]:
    """A worker here and a producer in another process, from the first job on until the block ends."""
    runs = Runs()

    @task("noop")
    async def handler(payload: dict[str, int]) -> None:
        runs()

    context = multiprocessing.get_context("spawn")
    produced, ends = context.Value(ctypes.c_long, 0), context.Value(ctypes.c_long, 0)
    producer = context.Process(target=produce, args=(dsn, produced, ends))
    watcher = await asyncpg.connect(dsn)
    with timed_claims() as taken:
        async with working(dsn, handler):
            producer.start()
            try:
                while not runs.count:
                    await asyncio.sleep(0.05)
                yield Watch(bench, watcher, runs, taken, produced)
            finally:
                ends.value = 1
                producer.join()
    await watcher.close()


async def measure(bench: Bench) -> Cases:
    minutes = float(bench.options.held_minutes) if bench.options else 10.0
    step = 6.0 if bench.quick else STEP
    steps = max(1, round(minutes * 60 / STEP))
    dsn = await bench.fresh()
    holder = await asyncpg.connect(dsn)
    found: Cases = {}
    async with load(bench, dsn) as watch:
        await watch.step(step)
        found["free"], watch.values = watch.values, {}
        await holder.execute("begin isolation level repeatable read")
        await holder.fetchval("select count(*) from graphile_worker._private_tasks")
        for _ in range(steps):
            await watch.step(step)
        found["held"] = watch.values
    await holder.close()
    return found


# -- settings of the tables ---------------------------------------------------------------------

SETTINGS = """alter table graphile_worker._private_jobs set (
  autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 2000,
  autovacuum_vacuum_cost_delay = 0, fillfactor = 45)"""


async def tables(bench: Bench) -> Cases:
    """The same load on tables with default settings and with those that docs/performance.md recommends."""
    seconds = 7.0 if bench.quick else 75.0  # longer than autovacuum sleeps between its rounds
    found: Cases = {}
    for name, sql in (("defaults", ""), ("recommended", SETTINGS)):
        dsn = await bench.fresh()
        connection = await asyncpg.connect(dsn)
        if sql:
            await connection.execute(sql)
        async with load(bench, dsn) as watch:
            await watch.step(seconds)
            found[name] = watch.values
            vacuums = "select pg_stat_get_autovacuum_count('graphile_worker._private_jobs'::regclass)"
            found[name]["vacuums"] = [float(await connection.fetchval(vacuums))]
        await connection.close()
    return found


def rows(cases: Cases) -> list[Row]:
    if not has(cases, "held", "free"):
        return []
    held, free = cases["held"], cases["free"]
    what = f"xmin held for {len(held['rate'])} minutes, {RATE:,} jobs/s"
    most = max(held["backlog"])
    return [
        Row(
            f"{what}: jobs run, of the worst minute",
            f"≥ {0.95 * RATE:g}/s",
            f"{number(min(held['rate']))}/s",
            met=min(held["rate"]) >= 0.95 * RATE,
        ),
        Row(f"{what}: jobs that wait, at most", f"< {RATE // 10}", number(most), met=most < RATE / 10),
        Row(
            f"{what}: claim time p99, of the worst minute",
            "≤ 10 ms",
            f"{number(max(held['claim_p99']))} ms",
            f"without: {number(free['claim_p99'][0])} ms",
            max(held["claim_p99"]) / free["claim_p99"][0],
            max(held["claim_p99"]) <= 10,
        ),
        Row(
            f"{what}: claim time p50",
            "",
            spread(held["claim_p50"], " ms"),
            f"without: {number(free['claim_p50'][0])} ms",
            max(held["claim_p50"]) / free["claim_p50"][0],
        ),
        Row(
            f"{what}: CPU of the server for a job, in the last minute",
            "",
            f"{number(held['cpu_server'][-1])} µs",
            f"without: {number(free['cpu_server'][0])} µs",
            held["cpu_server"][-1] / free["cpu_server"][0],
        ),
    ]


COLUMNS = {
    "jobs/s": "rate",
    "waiting": "backlog",
    "claims/s": "claims",
    "claim p50 ms": "claim_p50",
    "claim p99 ms": "claim_p99",
    "server's CPU µs a job": "cpu_server",
    "dead rows": "dead",
    "table and indexes MiB": "mib",
    "autovacuums": "vacuums",
}


def steps_table(head: str, steps: Sequence[tuple[str, dict[str, float]]]) -> str:
    """A line for each step."""
    columns = {title: what for title, what in COLUMNS.items() if what in steps[0][1]}
    lines = [f"| {head} | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    lines += [f"| {name} | {' | '.join(number(values[what]) for what in columns.values())} |" for name, values in steps]
    return "\n".join(lines)


def table(cases: Cases) -> str:
    """Minute by minute."""
    if not has(cases, "held", "free"):
        return ""
    steps = [
        ("without" if name == "free" else str(step + 1), {what: found[step] for what, found in values.items()})
        for name, values in cases.items()
        for step in range(len(values["rate"]))
    ]
    return steps_table("minute", steps)


def tables_table(cases: Cases) -> str:
    """Side by side."""
    return steps_table(
        "settings", [(name, {what: found[0] for what, found in values.items()}) for name, values in cases.items()]
    )


def no_rows(_: Cases) -> list[Row]:
    """There is no target."""
    return []


PARTS = [
    Part(
        "tables",
        "a steady load, with default and with recommended settings of the tables",
        tables,
        no_rows,
        tables_table,
    ),
    Part("xmin", "1,000 jobs a second under a transaction that stays open", measure, rows, table),
]
