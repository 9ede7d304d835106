"""What each thing costs that is on by default or that a job can have; how rates go with slots; and what bounds them."""

import asyncio
import logging
import os
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import asyncpg
from benchmarks.suite.bench import Bench, Sample
from benchmarks.suite.drains import Runs, add, drain, working
from benchmarks.suite.part import Part
from benchmarks.suite.rows import Cases, Row, middle, number, spread

from backfill import BackfillClient, JobSpec, Queue, QueueConfig, RetryPolicy, WorkerContext, task
from backfill.hooks import AfterJobRun, BeforeJobRun, JobComplete, JobFail, JobFetch, JobStart
from backfill.worker import WorkerRunnerBuilder

WAIT = 0.005  # seconds
SLOTS = (1, 10, 24, 50, 100, 200)
TWO_LANES = [QueueConfig.priority_queue("fast", 10, -32768, -1), QueueConfig.priority_queue("bulk", 24, 0, 32767)]


def no_rows(_: Cases) -> list[Row]:
    """There is no target."""
    return []


def watch(*events: type) -> Callable[[WorkerRunnerBuilder], None]:
    """Have the worker call a function that does nothing for each of these."""

    def setup(builder: WorkerRunnerBuilder) -> None:
        for event in events:
            builder.on(event, lambda _: None)

    return setup


@dataclass(frozen=True)
class Kind:
    """A way to run jobs.

    Attributes:
        spec: Makes what each job is added with, of its number.
        size: Bytes of payload besides the number.
        task: Settings of the task.
        worker: Settings of the worker, and ``setup``.
        sql: Before; `{database}` is the database's name.
        context: Whether the handler takes the context.
    """

    spec: Callable[[int], JobSpec] | None = None
    size: int = 0
    task: dict[str, Any] = field(default_factory=dict)
    worker: dict[str, Any] = field(default_factory=dict)
    sql: str = ""
    context: bool = False

    def jobs(self, count: int) -> Iterator[tuple[Any, ...]]:
        """To be added."""
        text = os.urandom(self.size // 2).hex()
        for i in range(count):
            payload = {"id": i, "text": text} if text else {"id": i}
            yield ("noop", payload) if self.spec is None else ("noop", payload, self.spec(i))


def _key(i: int) -> JobSpec:
    return JobSpec(job_key=f"key-{i}")


def _queue(i: int) -> JobSpec:
    return JobSpec(queue=Queue.serial(f"queue-{i}"))


def _policy(_: int) -> JobSpec:
    return JobSpec(retry_policy=RetryPolicy.fast())


def _timeout(_: int) -> JobSpec:
    return JobSpec(timeout=timedelta(seconds=30))


ALL_HOOKS = watch(JobFetch, BeforeJobRun, JobStart, AfterJobRun, JobComplete, JobFail)
LZ4 = "payloads of 10 KB, default_toast_compression = lz4"
KINDS = {
    "defaults": Kind(),
    "the handler takes the context": Kind(context=True),
    "a time limit for the task": Kind(task={"timeout": timedelta(seconds=30)}),
    "a time limit of each job": Kind(spec=_timeout),
    "a retry policy of each job": Kind(spec=_policy),
    "a key for each job": Kind(spec=_key),
    "a serial queue for each job": Kind(spec=_queue),
    "payloads of 1 KB": Kind(size=1_000),
    "payloads of 10 KB": Kind(size=10_000),
    LZ4: Kind(size=10_000, sql="alter database {database} set default_toast_compression = lz4"),
    "a line logged for each job (log_jobs)": Kind(worker={"log_jobs": True}),
    "a hook: JobComplete": Kind(worker={"setup": watch(JobComplete)}),
    "six hooks all around a job": Kind(worker={"setup": ALL_HOOKS}),
    "two lanes": Kind(worker={"queue_configs": TWO_LANES}),
    "the shortest lease (5 s)": Kind(worker={"lease": timedelta(seconds=5)}),
    "without the dead letter queue": Kind(worker={"dlq_processor_interval": None}),
    "synchronous_commit = off (unsafe: jobs may run twice)": Kind(
        sql="alter database {database} set synchronous_commit = off"
    ),
    "fillfactor = 45 for the table of jobs": Kind(
        sql="alter table graphile_worker._private_jobs set (fillfactor = 45)"
    ),
}


async def prepare(dsn: str, kind: Kind) -> None:
    """Set for the database what the kind needs."""
    if kind.sql:
        connection = await asyncpg.connect(dsn)
        name = await connection.fetchval("select current_database()")
        await connection.execute(kind.sql.format(database=name))
        await connection.close()


async def run(bench: Bench, kind: Kind) -> Sample:
    """A drain of jobs of a kind."""
    dsn, count, runs = await bench.fresh(), bench.size(20_000), Runs()
    await prepare(dsn, kind)
    await add(dsn, kind.jobs(count))

    @task("noop", **kind.task)
    async def plain(payload: dict[str, Any]) -> None:
        runs()

    @task("noop", **kind.task)
    async def with_context(payload: dict[str, Any], ctx: WorkerContext) -> None:
        runs()

    with logged_nowhere():
        return await drain(bench, dsn, with_context if kind.context else plain, runs, count, **kind.worker)


class logged_nowhere:  # noqa: N801 - used as a function
    """Logs are made and written, to /dev/null."""

    def __enter__(self) -> None:
        self.file = Path(os.devnull).open("w")
        self.handler = logging.StreamHandler(self.file)
        self.handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        self.logger = logging.getLogger("backfill")
        self.level = self.logger.level
        self.logger.addHandler(self.handler)
        self.logger.setLevel(logging.INFO)
        logging.disable(logging.NOTSET)

    def __exit__(self, *_: object) -> None:
        logging.disable(logging.CRITICAL)
        self.logger.setLevel(self.level)
        self.logger.removeHandler(self.handler)
        self.file.close()


async def kinds(bench: Bench, names: Iterable[str]) -> dict[str, Kind]:
    """Those that this PostgreSQL can do: not each was built with lz4."""
    connection = await asyncpg.connect(bench.server.dsn())
    has_lz4 = await connection.fetchval(
        "select 'lz4' = any (enumvals) from pg_settings where name = 'default_toast_compression'"
    )
    await connection.close()
    return {name: KINDS[name] for name in names if name != LZ4 or has_lz4}


async def costs(bench: Bench) -> Cases:
    def of(kind: Kind) -> Callable[[], Awaitable[Sample]]:
        return lambda: run(bench, kind)

    return await bench.in_rounds({name: of(kind) for name, kind in (await kinds(bench, KINDS)).items()})


def costs_table(cases: Cases) -> str:
    """Against the defaults."""
    plain = next(iter(cases))
    lines = [
        "| what | jobs/s | ratio | worker's CPU µs a job | more | server's CPU µs a job | more |",
        "|---" * 7 + "|",
    ]
    for name, values in cases.items():
        worker, server = middle(cases, name, "cpu_worker"), middle(cases, name, "cpu_server")
        more = [
            f"{value - middle(cases, plain, what):+.1f}"
            for value, what in ((worker, "cpu_worker"), (server, "cpu_server"))
        ]
        ratio = middle(cases, name) / middle(cases, plain)
        lines.append(
            f"| {name} | {spread(values['rate'])} | {ratio:.2f} | {worker:.1f} | {more[0]} | {server:.1f} | {more[1]} |"
        )
    return "\n".join(lines)


# -- what adding costs --------------------------------------------------------------------------

ADDED = (
    "defaults",
    "a retry policy of each job",
    "a key for each job",
    "a serial queue for each job",
    "payloads of 1 KB",
    "payloads of 10 KB",
    LZ4,
)


async def adding(bench: Bench) -> Cases:
    """Single adds, each awaited, and a stream of many."""

    async def one(kind: Kind) -> Sample:
        singles, many, dsn = bench.size(1_000), bench.size(20_000), await bench.fresh()
        await prepare(dsn, kind)
        async with BackfillClient(dsn, install=False) as client:
            await client.enqueue("noop")
            jobs = list(kind.jobs(singles))
            began = time.perf_counter()
            for job in jobs:
                await client.enqueue(*job)
            single = singles / (time.perf_counter() - began)
        dsn = await bench.fresh()
        await prepare(dsn, kind)
        async with BackfillClient(dsn, install=False) as client:
            await client.enqueue("noop")
            began = time.perf_counter()
            await client.enqueue_stream(kind.jobs(many))
            return {"single": single, "bulk": many / (time.perf_counter() - began)}

    def of(kind: Kind) -> Callable[[], Awaitable[Sample]]:
        return lambda: one(kind)

    return await bench.in_rounds({name: of(kind) for name, kind in (await kinds(bench, ADDED)).items()})


def adding_table(cases: Cases) -> str:
    plain = next(iter(cases))
    lines = ["| what | single adds /s | ratio | by a stream /s | ratio |", "|---" * 5 + "|"]
    for name, values in cases.items():
        single, bulk = (middle(cases, name, what) / middle(cases, plain, what) for what in ("single", "bulk"))
        lines.append(f"| {name} | {spread(values['single'])} | {single:.2f} | {spread(values['bulk'])} | {bulk:.2f} |")
    return "\n".join(lines)


# -- slots --------------------------------------------------------------------------------------


async def slots(bench: Bench) -> Cases:
    """Handlers that do nothing, and that wait, with more and more slots; and how many connections a worker has."""

    async def one(count: int, wait: float) -> Sample:
        dsn, runs = await bench.fresh(), Runs()
        jobs = bench.size(20_000) if not wait else bench.size(min(20_000, int(count / wait * 2)))
        await add(dsn, Kind().jobs(jobs))

        @task("noop")
        async def handler(payload: dict[str, int]) -> None:
            runs()
            if wait:
                await asyncio.sleep(wait)

        return await drain(bench, dsn, handler, runs, jobs, slots=count)

    def of(count: int, wait: float) -> Callable[[], Awaitable[Sample]]:
        return lambda: one(count, wait)

    cases = {f"{count} slots": of(count, 0.0) for count in SLOTS}
    cases |= {f"{count} slots, waiting": of(count, WAIT) for count in SLOTS}
    return {**await bench.in_rounds(cases), "connections": {"worker": [await connections(bench)]}}


async def connections(bench: Bench) -> float:
    """Those of one worker at work, whose handlers use no connection of their own."""
    dsn, runs = await bench.fresh(), Runs()

    @task("noop")
    async def handler(payload: dict[str, int]) -> None:
        runs()

    await add(dsn, Kind().jobs(2_000))
    watcher = await asyncpg.connect(dsn)
    async with working(dsn, handler):
        while runs.count < 2_000:
            await asyncio.sleep(0.05)
        count: int = await watcher.fetchval(
            "select count(*) from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()"
            " and backend_type = 'client backend'"
        )
    await watcher.close()
    return float(count)


def slots_table(cases: Cases) -> str:
    lines = ["| slots | no-op handlers: jobs/s | handlers that wait 5 ms: jobs/s | of slots ÷ 5 ms |", "|---" * 4 + "|"]
    for count in SLOTS:
        plain, waiting = f"{count} slots", f"{count} slots, waiting"
        share = middle(cases, waiting) / (count / WAIT)
        lines.append(f"| {count} | {spread(cases[plain]['rate'])} | {spread(cases[waiting]['rate'])} | {share:.0%} |")
    held = number(cases["connections"]["worker"][0])
    return "\n".join(
        [*lines, "", f"A worker process at work, whose handlers use no connection, has {held} connections."]
    )


PARTS = [
    Part("costs", "what each thing costs a job", costs, no_rows, costs_table),
    Part("adding", "what each thing costs an add", adding, no_rows, adding_table),
    Part("slots", "rates with more and more slots", slots, no_rows, slots_table),
]
