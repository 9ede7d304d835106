"""Random operations against running workers, and then the count: enqueued = done + dead + queued + taken out.

One driver does one operation after the other while two workers run the jobs, lose connections, stop and are replaced. The
driver knows from the answers which jobs it added, replaced under their key, or took out; the handlers note which runs began
and ended. The rest is read from the database when the workers have stopped. A seed gives the same operations each time, though
not the same interleaving.
"""

import asyncio
import contextlib
import json
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

import pytest
from tests.support.places import contradictions, places
from tests.support.until import until
from tests.worker.conftest import MakeRunner, Running, Sql

from backfill.client import BackfillClient
from backfill.errors import ConnectionTimeout, DlqEntryNotFound, KeyInUse, ValidationFailed
from backfill.model import DlqJob, Job, JobKeyMode, JobSpec, RetryPolicy, task
from backfill.worker import QueueConfig, WorkerContext

SEEDS = range(6)
OPERATIONS = 250
KEYS = ["one", "two", "three"]
QUEUES = [None, None, "serial", "own"]
LANES = [QueueConfig.named_queue("own"), QueueConfig.default_queue(3)]
SOON = RetryPolicy(2, 0.01, 0.01, 1.0, 0.0)
Overwritten = Callable[[], Awaitable[set[int]]]
DOES = ["succeed", "succeed", "succeed at the second try", "fail", "fail for good", "add another"]


class Handlers:
    """The handler, and what it notes.

    Attributes:
        succeeded: How often each job's run succeeded.
        overlaps: Runs that began while one of the same job, or of the same serial queue, had not ended.
        tried: Jobs that a handler was about to add; a stop may have cut it short.
        added: Those that it knows it added.
    """

    def __init__(self, next_number: Callable[[], int]) -> None:
        self.succeeded: Counter[int] = Counter()
        self.overlaps: list[str] = []
        self.tried: set[int] = set()
        self.added: set[int] = set()
        self._running: set[int | str] = set()
        self._next_number = next_number

    async def work(self, told: dict[str, Any], ctx: WorkerContext) -> None:
        """Run a job."""
        number, queue = told["job"], ctx.job.queue_name
        names = {number} if queue is None else {number, queue}
        self.overlaps += [f"job {number} began while {name} was running" for name in names & self._running]
        self._running |= names
        try:
            for _ in range(number % 4):  # some take longer
                await ctx.pool.execute("select")
            await self._do(told["does"], ctx)
            self.succeeded[number] += 1
        finally:
            self._running -= names

    async def _do(self, does: str, ctx: WorkerContext) -> None:
        if does == "add another":
            number = self._next_number()
            self.tried.add(number)
            await ctx.enqueue("work", {"job": number, "does": "succeed"})
            self.added.add(number)
        if does == "fail for good":
            raise ValidationFailed(does)
        if does == "fail" or (does == "succeed at the second try" and ctx.attempt == 1):
            raise ConnectionTimeout(does)


class Driver:
    """Does random operations, and keeps account of what became of the jobs by them.

    Attributes:
        handlers: What the workers run.
        added: The numbers of the jobs that are or were in the queue.
        taken: Those that an operation replaced, completed, removed or deleted; or superseded while they ran, which may then
            end in any way, and are gone if they were handed back.
        log: What was done.
    """

    def __init__(self, seed: int, client: BackfillClient, sql: Sql) -> None:
        self.random = random.Random(seed)
        self.handlers = Handlers(self.next_number)
        self.added: set[int] = set()
        self.taken: set[int] = set()
        self.log: list[str] = []
        self._client = client
        self._sql = sql
        self._numbers = 0
        self._in_row: dict[int, int] = {}
        self._with_key: dict[str, int | None] = dict.fromkeys(KEYS)
        self._operations: list[tuple[int, Callable[[], Any]]] = [
            (30, self.enqueue),
            (25, self.add_under_key),
            (8, self.remove),
            (8, self.reschedule),
            (4, self.complete),
            (4, self.cancel),
            (5, self.fail),
            (12, self.requeue),
            (3, self.delete_dead),
            (3, self.scan),
            (4, self.end_backend),
        ]

    def next_number(self) -> int:
        """A number for a new job."""
        self._numbers += 1
        return self._numbers

    async def do_something(self) -> None:
        """Do one random operation."""
        weights, operations = zip(*self._operations, strict=True)
        (operation,) = self.random.choices(operations, weights)
        self.log.append(f"{operation.__name__} {await operation()}")

    # -- adding ---------------------------------------------------------------------------------

    async def enqueue(self) -> str:
        return await self._add(JobSpec(queue=self.random.choice(QUEUES), retry_policy=SOON, run_at=await self._soon()))

    async def add_under_key(self) -> str:
        mode = self.random.choice([*JobKeyMode, JobKeyMode.REPLACE])
        run_at = await self._soon()
        queue = self.random.choice(QUEUES)
        key = self.random.choice(KEYS)
        return await self._add(
            JobSpec(queue=queue, job_key=key, job_key_mode=mode, retry_policy=SOON, run_at=run_at, max_attempts=2)
        )

    async def _add(self, spec: JobSpec) -> str:
        number = self.next_number()
        payload = {"job": number, "does": self.random.choice(DOES)}
        job = (await self._client.enqueue("work", payload, spec)).job
        if job is None or job.payload["job"] != number:
            return f"{number} {spec.job_key}: one was there"
        if job.id in self._in_row:
            self.taken.add(self._in_row[job.id])
        if spec.job_key is not None:
            self._supersede(spec.job_key, number)
        self.added.add(number)
        self._in_row[job.id] = number
        return f"{number} {payload['does']} {spec.job_key} as {job.id}"

    def _supersede(self, key: str, number: int | None) -> None:
        earlier, self._with_key[key] = self._with_key[key], number
        if earlier is not None:
            self.taken.add(earlier)

    async def _soon(self) -> Any:
        """Now, or a little later."""
        if self.random.random() < 0.8:
            return None
        return await self._sql.value("select now() + $1::interval", timedelta(seconds=self.random.random() / 20))

    # -- changing -------------------------------------------------------------------------------

    async def remove(self) -> str:
        key = self.random.choice(KEYS)
        job = await self._client.remove_job(key)
        if job is not None and job.locked_by is None:
            self._took_out([job])
        elif job is not None:
            self._supersede(key, None)
        return names([job] if job else [])

    async def reschedule(self) -> str:
        ids = await self._some_ids()
        if self.random.random() < 0.5:
            return names(await self._client.retry_jobs(ids))
        return str(
            await self._client.reschedule_jobs(ids, run_at=await self._soon(), priority=self.random.randint(-5, 5))
        )

    async def complete(self) -> str:
        jobs = await self._client.complete_jobs(await self._some_ids())
        self.taken |= {job.payload["job"] for job in jobs}
        return names(jobs)

    async def cancel(self) -> str:
        cancelled, requested = await self._client.cancel_jobs(await self._some_ids())
        self._took_out([*cancelled, *requested])
        return names([*cancelled, *requested])

    async def fail(self) -> str:
        return str(await self._client.fail_jobs(await self._some_ids(), "for the test"))

    def _took_out(self, jobs: list[Job]) -> None:
        """Jobs that came out of the dead letter queue are back there; others are gone."""
        self.taken |= {job.payload["job"] for job in jobs if not job.extras.dlq}

    async def _some_ids(self) -> list[int]:
        jobs = await self._client.list_jobs(limit=20)
        return [job.id for job in self.random.sample(jobs, min(2, len(jobs)))]

    # -- the dead letter queue --------------------------------------------------------------------

    async def requeue(self) -> str:
        entry = await self._some_entry()
        if entry is None:
            return "none"
        try:
            job = await self._client.requeue_dlq_job(entry.id)
        except (KeyInUse, DlqEntryNotFound) as error:
            return type(error).__name__
        self._in_row[job.id] = job.payload["job"]
        if job.key is not None:
            self._with_key[job.key] = job.payload["job"]
        return names([job])

    async def delete_dead(self) -> str:
        entry = await self._some_entry()
        if entry is None:
            return "none"
        deleted = await self._sql.rows(
            "delete from graphile_worker.backfill_dlq where id = $1 and requeued_job_id is null returning payload",
            entry.id,
        )
        for row in deleted:
            self.taken.add(json.loads(row["payload"])["job"])
        return f"{entry.id}: {len(deleted)}"

    async def scan(self) -> str:
        return str(await self._client.process_failed_jobs())

    async def _some_entry(self) -> DlqJob | None:
        entries = (await self._client.list_dlq_jobs()).jobs
        return self.random.choice(entries) if entries else None

    # -- faults ---------------------------------------------------------------------------------

    async def end_backend(self) -> str:
        role = self.random.choice(["claim", "release", "listen"])
        ended = await self._sql.value(
            "select count(pg_terminate_backend(pid)) from pg_stat_activity"
            " where datname = current_database() and application_name like '%:' || $1",
            role,
        )
        return f"{ended} of {role}"


def names(jobs: list[Job]) -> str:
    """Jobs in the log."""
    return ", ".join(f"{job.payload['job']} as {job.id}" for job in jobs)


@pytest.fixture
async def overwritten(sql: Sql) -> Overwritten:
    """Gives the jobs whose entry in the dead letter queue was taken over by a later one with the same key."""
    await sql.run("create table overwritten (number int)")
    await sql.run(
        "create function note() returns trigger language plpgsql as"
        " $$ begin insert into overwritten values ((old.payload ->> 'job')::int); return null; end $$"
    )
    await sql.run(
        "create trigger note after update on graphile_worker.backfill_dlq for each row"
        " when (old.payload ->> 'job' <> new.payload ->> 'job') execute function note()"
    )

    async def numbers() -> set[int]:
        return {row["number"] for row in await sql.rows("select number from overwritten")}

    return numbers


@pytest.mark.parametrize("seed", SEEDS)
async def test_every_job_is_somewhere_once(
    client: BackfillClient, sql: Sql, make_runner: MakeRunner, overwritten: Overwritten, seed: int
) -> None:
    driver = Driver(seed, client, sql)
    work = task("work")(driver.handlers.work)

    async def start() -> Running:
        runner = await make_runner(work, queue_configs=LANES)
        stop = asyncio.Event()
        return Running(runner, runner.spawn_background(stop), stop)

    workers = [await start(), await start()]
    async with contextlib.AsyncExitStack() as stack:
        stack.callback(lambda: [running.task.cancel() for running in workers])
        for number in range(1, OPERATIONS + 1):
            await driver.do_something()
            if number % (OPERATIONS // 4) == 0:
                leaving = workers.pop(0)
                leaving.stop.set()
                if driver.random.random() < 0.5:
                    leaving.runner.hurry()  # its handlers are cancelled
                await leaving.task
                workers.append(await start())
        await until(lambda: has_nothing_to_do(sql, workers), "all that is due has been run")
        for running in workers:
            await running.end()
        driver.taken |= await overwritten()
        faults = await wrong(driver, sql)
        assert not faults, "\n".join(driver.log)


async def has_nothing_to_do(sql: Sql, workers: list[Running]) -> bool:
    if await sql.count("is_available and run_at <= now()") or await sql.count("locked_at is not null"):
        for running in workers:
            running.worker.claimer.look_and_ask()  # as a poll would
        return False
    return True


async def wrong(driver: Driver, sql: Sql) -> list[str]:
    """What does not add up."""
    found = await places(sql.connection, sql.schema)
    succeeded = driver.handlers.succeeded
    surely, perhaps = driver.added | driver.handlers.added, driver.handlers.tried
    faults = driver.handlers.overlaps + await contradictions(sql.connection, sql.schema)
    for number in surely | perhaps:
        where = [place for place in found.get(number, []) if place != "history"]
        ends = len(where) + succeeded[number]
        if ends > 1 or (ends == 0 and number in surely and number not in driver.taken):
            faults.append(f"job {number}: in {where}, succeeded {succeeded[number]} times, {number in driver.taken=}")
    faults += [f"job {number} was never added" for number in found.keys() - surely - perhaps]
    if await sql.locks() != (0, 0):
        faults.append("something is still locked")
    return faults
