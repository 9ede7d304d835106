"""What tests of the worker need: SQL on the test's own schema, claims without a worker, and workers that run beside the test."""

import asyncio
import contextlib
import dataclasses
import inspect
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest

from backfill.db import WORKER_SETTINGS
from backfill.model import Task, TaskHandler, task
from backfill.sql import text, with_schema
from backfill.worker import WorkerConfig, WorkerRunner
from backfill.worker.lane import Lane
from backfill.worker.worker import Worker

if TYPE_CHECKING:
    from tests.conftest import Database

ALL = (-32768, 32767)
HOUR = timedelta(hours=1)
ANY = True  # suspects too
Frontier = tuple[list[int], list[datetime], list[int | None]]


@dataclasses.dataclass(frozen=True)
class Sql:
    """A session on which statements mean the test's schema by graphile_worker."""

    connection: asyncpg.Connection
    schema: str

    async def rows(self, sql: str, *args: Any) -> list[asyncpg.Record]:
        return await self.connection.fetch(with_schema(sql, self.schema), *args)

    async def row(self, sql: str, *args: Any) -> asyncpg.Record:
        found = await self.rows(sql, *args)
        assert len(found) == 1
        return found[0]

    async def value(self, sql: str, *args: Any) -> Any:
        return (await self.row(sql, *args))[0]

    async def run(self, sql: str, *args: Any) -> str:
        return await self.connection.execute(with_schema(sql, self.schema), *args)

    async def named(self, name: str, *args: Any) -> list[asyncpg.Record]:
        """Run one of the package's statements."""
        return await self.connection.fetch(text(name, self.schema), *args)

    async def add(self, task: str = "task", payload: Any = None, **given: Any) -> int:
        """Add a job by add_job, with its notification; a run_at may be a timedelta from now."""
        if isinstance(given.get("run_at"), timedelta):
            given["run_at"] = await self.value("select now() + $1::interval", given["run_at"])
        names = ["identifier", "payload", *given]
        casts = {"payload": "::text::json", "flags": "::text[]"}
        arguments = ", ".join(f"{name} => ${n}{casts.get(name, '')}" for n, name in enumerate(names, start=1))
        text_of = json.dumps({} if payload is None else payload)
        call = f"select (graphile_worker.add_job({arguments})).id"
        return int(await self.value(call, task, text_of, *given.values()))

    async def add_many(self, count: int, task: str = "task", **columns: str) -> list[int]:
        """Insert jobs, silently; payload {"n": 1…}. Columns are SQL over n, such as priority="n % 3"; queue="'q'"."""
        queue = columns.pop("queue", None)
        await self.run(
            "insert into graphile_worker._private_tasks (identifier) values ($1) on conflict do nothing", task
        )
        if queue is not None:
            await self.run(
                "insert into graphile_worker._private_job_queues (queue_name)"
                f" select distinct ({queue})::text from generate_series(1, $1::int) as n where ({queue}) is not null"
                " on conflict do nothing",
                count,
            )
            columns["job_queue_id"] = (
                f"(select id from graphile_worker._private_job_queues where queue_name = ({queue})::text)"
            )
        names = "".join(f", {name}" for name in columns)
        values = "".join(f", {value}" for value in columns.values())
        rows = await self.rows(
            f"insert into graphile_worker._private_jobs (task_id, payload{names})"
            f" select (select id from graphile_worker._private_tasks where identifier = $1),"
            f" json_build_object('n', n){values} from generate_series(1, $2::int) as n returning id",
            task,
            count,
        )
        return [row["id"] for row in rows]

    async def job(self, job_id: int) -> asyncpg.Record | None:
        rows = await self.rows("select * from graphile_worker._private_jobs where id = $1", job_id)
        return rows[0] if rows else None

    async def count(self, where: str = "true") -> int:
        return int(await self.value(f"select count(*) from graphile_worker._private_jobs where {where}"))

    async def locks(self) -> tuple[int, int]:
        """How many jobs and how many queues are locked."""
        row = await self.row(
            "select (select count(*) from graphile_worker._private_jobs where locked_at is not null or locked_by is not null),"
            " (select count(*) from graphile_worker._private_job_queues where locked_at is not null or locked_by is not null)"
        )
        return row[0], row[1]

    async def dead(self) -> list[asyncpg.Record]:
        return await self.rows("select * from graphile_worker.backfill_dlq order by id")


@dataclasses.dataclass
class Claims:
    """Claims as a worker does, by statements alone, with a session of its own with a worker's settings."""

    sql: Sql
    worker: str
    number: int = 0

    @property
    def token(self) -> str:
        """Of the last claim."""
        return f"{self.worker}/{self.number}"

    async def register(self, lease: float = 3600) -> None:
        """Have a row among the workers."""
        await self.sql.named("register_worker", self.worker, "here", 1, "0", "[]", [], "alive", lease)

    async def take(
        self,
        idle: int = 10,
        wanted: int | None = None,
        *,
        priorities: tuple[int, int] = ALL,
        tasks: Sequence[str] = ("task",),
        other_queues: Sequence[str] = (),
        began_at: datetime | None = None,
        suspects: bool = True,
        frontier: Frontier = ([], [], []),
        passed: Sequence[int] = (),
        floor: datetime | None = None,
    ) -> list[asyncpg.Record]:
        """Claim for one lane; the rows in the order in which a worker would run them."""
        piece = ([0], [priorities[0]], [priorities[1]], [idle], [idle if wanted is None else wanted])
        self.number += 1
        rows = await self.sql.named(
            "claim_jobs",
            self.token,
            await self.task_ids(tasks),
            *piece,
            began_at,
            suspects,
            list(other_queues),
            list(passed),
            *frontier,
            [floor],
        )
        return sorted(rows, key=lambda row: (row["priority"], row["run_at"], row["id"]))

    async def take_free(
        self,
        idle: int = 10,
        *,
        priorities: tuple[int, int] = ALL,
        tasks: Sequence[str] = ("task",),
        began_at: datetime | None = None,
        suspects: bool = True,
    ) -> list[asyncpg.Record]:
        """Claim for one lane by the statement for when there are no queues; the rows in the order in which they would run."""
        piece = ([0], [priorities[0]], [priorities[1]], [idle], [idle])
        self.number += 1
        task_ids = await self.task_ids(tasks)
        rows = await self.sql.named("claim_free_jobs", self.token, task_ids, *piece, began_at, suspects)
        return sorted(rows, key=lambda row: (row["priority"], row["run_at"], row["id"]))

    async def take_next(
        self,
        done: Sequence[asyncpg.Record],
        *,
        priorities: tuple[int, int] = ALL,
        tasks: Sequence[str] = ("task",),
        suspects: bool = True,
    ) -> list[asyncpg.Record]:
        """Claim the next jobs of the queues of jobs that have been released."""
        self.number += 1
        columns = ([row[name] for row in done] for name in ("queue_id", "priority", "run_at", "id"))
        task_ids = await self.task_ids(tasks)
        rows = await self.sql.named("claim_next_of_queues", self.token, task_ids, *columns, *priorities, suspects)
        return sorted(rows, key=lambda row: (row["priority"], row["run_at"], row["id"]))

    async def frontier(self, *, other_queues: Sequence[str] = (), tasks: Sequence[str] = ("task",)) -> Frontier:
        """Where claims may begin to look for queued jobs now."""
        rows = await self.sql.named("find_frontier", await self.task_ids(tasks), self.worker, list(other_queues))
        return [row["priority"] for row in rows], [row["run_at"] for row in rows], [row["id"] for row in rows]

    async def passed(self, *, tasks: Sequence[str] = ("task",)) -> list[int]:
        """The queues that claims leave alone while they use that frontier."""
        rows = await self.sql.named("find_frontier", await self.task_ids(tasks), self.worker, [])
        return [queue_id for row in rows for queue_id in row["passed"]]

    async def take_head(
        self, queue: str, tasks: Sequence[str] = ("task",), *, suspects: bool = True
    ) -> list[asyncpg.Record]:
        """Claim for the lane of a queue."""
        self.number += 1
        return await self.sql.named("claim_queue_head", self.token, await self.task_ids(tasks), queue, None, suspects)

    async def task_ids(self, tasks: Sequence[str]) -> list[int]:
        rows = await self.sql.rows(
            "select id from graphile_worker._private_tasks where identifier = any($1)", list(tasks)
        )
        return [row["id"] for row in rows]


@dataclasses.dataclass(frozen=True)
class Running:
    """A worker in the background."""

    runner: WorkerRunner
    task: asyncio.Task[int]
    stop: asyncio.Event

    @property
    def worker(self) -> Worker:
        assert self.runner.worker is not None
        return self.runner.worker

    async def end(self) -> int:
        """Stop it in order; how many jobs it abandoned."""
        self.stop.set()
        async with asyncio.timeout(60):
            return await self.task


class Ahead:
    """A task whose jobs are quick, until some are claimed ahead of a lane's only slot: then one waits for the test.

    Attributes:
        blocked: Set when one waits.
        may_end: Set it to have that one end, and the others as quickly as before.
        most: The most jobs that were seen waiting behind a running one.
        wrong: Those of them that have a key or a queue.
    """

    def __init__(self) -> None:
        self.blocked, self.may_end = asyncio.Event(), asyncio.Event()
        self.most, self.wrong = 0, 0
        self.lanes: list[Lane] = []

        @task("task")
        async def mostly_quick() -> None:
            buffered = [entry[-1] for lane in self.lanes for entry in lane._buffer]
            self.most = max(self.most, len(buffered))
            self.wrong += sum(job.keyed or job.queue_id is not None for job in buffered)
            if len(buffered) >= 5 and not self.blocked.is_set():
                self.blocked.set()
                await self.may_end.wait()

        self.task = mostly_quick


@pytest.fixture
def ahead() -> Ahead:
    return Ahead()


Defined = Task[Any] | type[TaskHandler]
RunWorker = Callable[..., AbstractAsyncContextManager[Running]]
MakeRunner = Callable[..., Awaitable[WorkerRunner]]
Until = Callable[..., Awaitable[Any]]


@pytest.fixture
async def sql(db: "Database") -> Sql:
    return Sql(await db.connect(), db.schema)


@pytest.fixture
async def other(db: "Database") -> Sql:
    """A second session on the same schema, of a user who holds something."""
    return Sql(await db.connect(), db.schema)


@pytest.fixture
async def make_claims(db: "Database") -> Callable[[str], Awaitable[Claims]]:
    """A function that opens a session which claims as the worker of that name."""

    async def make(worker: str) -> Claims:
        made = Claims(Sql(await db.connect(server_settings=dict(WORKER_SETTINGS)), db.schema), worker)
        await made.register()
        return made

    return make


@pytest.fixture
async def claims(make_claims: Callable[[str], Awaitable[Claims]]) -> Claims:
    return await make_claims("backfill-one")


@pytest.fixture
def make_config(db: "Database") -> Callable[..., WorkerConfig]:
    """A function that gives a configuration for `db` with a poll an hour away; whatever needs a poll then fails."""

    def make(**settings: Any) -> WorkerConfig:
        where = {"database_url": db.dsn, "schema": db.schema}
        defaults: Mapping[str, Any] = {"poll_interval": HOUR, "shutdown_timeout": timedelta(seconds=10)}
        return WorkerConfig(**{**where, **defaults, **settings})

    return make


@pytest.fixture
async def make_runner(make_config: Callable[..., WorkerConfig]) -> AsyncIterator[MakeRunner]:
    """A function that builds a runner for some tasks; it is closed at the end of the test."""
    runners: list[WorkerRunner] = []

    async def make(*tasks: Defined, **settings: Any) -> WorkerRunner:
        builder = WorkerRunner.builder(make_config(**settings))
        for defined in tasks:
            builder.define_job(defined)
        runners.append(await builder.build())
        return runners[-1]

    yield make
    for runner in runners:
        await runner.close()


@pytest.fixture
def run_worker(make_runner: MakeRunner) -> RunWorker:
    """A context manager that runs a worker for some tasks; by default it begins when the worker listens and is idle."""

    @contextlib.asynccontextmanager
    async def run(
        *tasks: Defined, ready: bool = True, abandon: bool = False, **settings: Any
    ) -> AsyncIterator[Running]:
        runner = await make_runner(*tasks, **settings)
        stop = asyncio.Event()
        run = runner.run_until_cancelled(stop, abandon=abandon)
        running = Running(runner, asyncio.create_task(run), stop)
        await asyncio.sleep(0)
        try:
            if ready:
                await is_ready(running)
            yield running
        except BaseException:
            runner.hurry()
            raise
        finally:
            if not running.task.done():
                await running.end()

    return run


async def is_ready(running: Running) -> None:
    """Wait until the worker listens and has looked at what there is."""
    worker = running.worker
    async with asyncio.timeout(30):
        await worker.listener.wait_proven()
    await wait_until(lambda: worker.claimer.claims and not any(lane.hungry for lane in worker.lanes), "it has looked")


async def wait_until(condition: Callable[[], Any], what: str = "it holds", *, limit: float = 30.0) -> Any:
    """Look at a condition (a function or coroutine function) until it holds; what it gave."""
    try:
        async with asyncio.timeout(limit):
            while True:
                found = condition()
                if inspect.isawaitable(found):
                    found = await found
                if found:
                    return found
                await asyncio.sleep(0.005)
    except TimeoutError:
        raise AssertionError(f"after {limit:g} s still not: {what}") from None


@pytest.fixture
def until() -> Until:
    return wait_until
