"""Faults at random against a fleet under load: the random part of the fault suite, and the soak.

Everything random comes from one seed: which faults, when, on whom, and which jobs. (What the machine makes of it in between is its
own; a seed gives the same faults, not the same interleaving.)

Each worker process reaches the server by a way of its own, which can be blocked, as by a network that drops packets, and then cut
or let go on with what was held. Jobs come from a producer with a direct connection, which notes them in the transaction that
adds them. The invariant is checked all the while, and at the end, when everything that can run has run.
"""

import asyncio
import contextlib
import random
import shutil
import signal
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote, urlsplit

import asyncpg
from tests.support.cluster import Node
from tests.support.fleet import Fleet, WorkerProcess
from tests.support.ledger import breaches, breaches_at_the_end, counts, make_ledger
from tests.support.traffic import produce
from tests.support.way import PORT, Way

from backfill.client import BackfillClient
from backfill.db import DRIVER_ERRORS
from backfill.errors import BackfillError
from backfill.sql import with_schema

SCHEMA: Final = "chaos"
WORKERS: Final = 3
SLOTS: Final = 6
BETWEEN: Final = (0.5, 5.0)  # seconds between faults
LONGEST_END: Final = 180.0  # seconds that the rest may take when the faults have ended
DIES: Final = (3, -signal.SIGSEGV)  # exit codes of workers whose job is `dies_once`
RUNS: Final = " started: "  # what the log says of a worker that runs, and of one that ends without a lease
PARTS: Final = " ends its process: "
DUE: Final = "update graphile_worker._private_jobs set run_at = now() where run_at > now() and locked_by is null"
RUNNING: Final = """
select ledger.job from ledger join graphile_worker._private_jobs as jobs on jobs.id = ledger.job and jobs.locked_by = token
 where ledger.pid = $1 and outcome is null
"""
AGAIN: Final = (
    "select extract(epoch from min(began_at) - $2::timestamptz)::float8 from ledger where job = $1 and began_at > $2"
)


@dataclass
class Member:
    """A worker of the fleet, and its way to the server."""

    process: WorkerProcess
    way: Way
    folder: Path
    frozen: bool = False
    leaving: bool = False


@dataclass
class Report:
    """What a run of chaos came to.

    Attributes:
        seed: The seed.
        seconds: How long faults were inflicted.
        faults: How many of each kind.
        wrong: Breaches of the invariant, in words.
        counted: Where the jobs are.
        recoveries: For the jobs that killed workers ran: seconds from the kill to their next run.
        first_recoveries: The least of them for each kill: the others are suspects, and run one at a time.
        exits: How workers ended that ended by themselves.
    """

    seed: int
    seconds: float
    faults: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    counted: dict[str, int] = field(default_factory=dict)
    recoveries: list[float] = field(default_factory=list)
    first_recoveries: list[float] = field(default_factory=list)
    exits: Counter[str] = field(default_factory=Counter)


class Chaos:
    """One run. ``run`` it once."""

    def __init__(self, seed: int, say: Callable[[str], None]) -> None:
        """Prepare it.

        Args:
            seed: Decides everything random.
            say: Told what happens.
        """
        self._random = random.Random(seed)
        self._jobs_random = random.Random(f"jobs of {seed}")
        self._say = say
        self._began = time.monotonic()
        self.report = Report(seed, 0.0)
        self._node = Node()
        self._folder = Path(tempfile.mkdtemp(prefix="bf"))
        self._members: list[Member] = []
        self._ends: list[str] = []  # of workers, unforeseen
        self._kills: list[tuple[Any, list[int]]] = []
        self._holders: set[asyncio.Task[None]] = set()
        self._served = asyncio.Lock()  # held while the server is away
        self._over = asyncio.Event()
        self._fleet: Fleet
        self._faults: dict[str, tuple[int, Callable[[], Awaitable[None]]]] = {
            "kill a worker": (5, self._kill),
            "kill all workers": (1, self._kill_all),
            "freeze a worker": (4, self._freeze),
            "stop a worker": (2, self._stop),
            "stop a worker, twice": (2, self._stop_twice),
            "end a connection": (4, self._end_one),
            "end all connections": (2, self._end_all),
            "block a worker's way": (5, self._block),
            "restart the server": (1, self._restart),
            "crash the server": (1, self._crash),
            "hold a snapshot": (1, self._hold_snapshot),
            "hold rows of jobs": (2, self._hold_rows),
            "collect queues": (2, self._collect),
        }

    # -- the run --------------------------------------------------------------------------------

    async def run(self, seconds: float) -> Report:
        """Inflict faults for so long, let the rest come to its end, and report."""
        try:
            await self._prepare()
            await self._storm(seconds)
            if not self.report.wrong:
                await self._settle()
        finally:
            self.report.seconds = seconds
            await self._clean_up()
        return self.report

    async def _prepare(self) -> None:
        self._node.make()
        await self._node.start()
        async with self._connection() as connection:
            await make_ledger(connection)
        async with BackfillClient(self._node.dsn(), SCHEMA):  # installs the schema
            pass
        self._fleet = Fleet(
            self._node.dsn(),
            SCHEMA,
            self._folder,
            {"BACKFILL_STALE_LOCK_CLEANUP_INTERVAL_SECS": "5", "DLQ_PROCESSOR_INTERVAL_SECS": "5"},
        )
        for _ in range(WORKERS):
            self._members.append(await self._hire())

    async def _storm(self, seconds: float) -> None:
        loops = [asyncio.create_task(work()) for work in (self._produce, self._watch, self._keep_up, self._inflict)]
        try:
            async with asyncio.timeout(seconds):
                done, _ = await asyncio.wait(loops, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    task.result()
        except TimeoutError:
            pass
        finally:
            self._over.set()
            for task in (*loops, *self._holders):
                task.cancel()
            await asyncio.gather(*loops, *self._holders, return_exceptions=True)

    async def _settle(self) -> None:
        """End all faults and let everything run that can."""
        self._say("the faults have ended")
        if self._served.locked():
            await self._serve()
        for member in self._members:
            member.way.unblock()
            if member.frozen:
                self._signal(member, signal.SIGCONT)
        until = time.monotonic() + LONGEST_END
        async with self._connection() as connection:
            while time.monotonic() < until:
                await self._replace_ended()
                await connection.execute(with_schema(DUE, SCHEMA))  # suspects wait for minutes
                if (await counts(connection, SCHEMA))["queued"] == 0:
                    break
                await asyncio.sleep(0.5)
            self.report.wrong = self._ends + await breaches_at_the_end(connection, SCHEMA)
            self.report.counted = await counts(connection, SCHEMA)
            for moment, jobs in self._kills:
                rows = [await connection.fetchval(AGAIN, job, moment) for job in jobs]
                if took := [seconds for seconds in rows if seconds is not None]:
                    self.report.recoveries += took
                    self.report.first_recoveries.append(min(took))

    async def _clean_up(self) -> None:
        for worker in self._fleet.workers if self._members else []:
            await worker.kill()
        for member in self._members:
            await member.way.end()
        self._node.remove()
        if self.report.wrong:
            self._say(f"the workers' logs are in {self._folder}")
        else:
            shutil.rmtree(self._folder, ignore_errors=True)

    # -- what goes on all the while ---------------------------------------------------------------

    async def _produce(self) -> None:
        """Add jobs of all sorts, in batches; those of a serial queue come one after the other."""
        async with BackfillClient(self._node.dsn(), SCHEMA, install=False) as client:
            while True:
                try:
                    async with self._connection() as connection:
                        await produce(client, connection, SCHEMA, self._jobs_random)
                except (*DRIVER_ERRORS, BackfillError):
                    await asyncio.sleep(0.2)

    async def _watch(self) -> None:
        """Check the invariant, over and over; ends when it is broken."""
        while True:
            began = time.monotonic()
            with contextlib.suppress(*DRIVER_ERRORS):
                async with self._connection() as connection:
                    while True:
                        began = time.monotonic()
                        self.report.wrong = self._ends + await breaches(connection, SCHEMA)
                        if self.report.wrong:
                            return
                        await asyncio.sleep(max(1.0, 5 * (time.monotonic() - began)))
            await asyncio.sleep(0.2)

    async def _keep_up(self) -> None:
        """Have suspects run soon rather than after minutes, and a new worker for each that has ended."""
        while True:
            await self._replace_ended()
            with contextlib.suppress(*DRIVER_ERRORS):
                async with self._connection() as connection:
                    await connection.execute(with_schema(DUE, SCHEMA) + " and flags::text like '%backfill:crashes%'")
            await asyncio.sleep(1.0)

    async def _replace_ended(self) -> None:
        for place, member in enumerate(self._members):
            if not member.process.runs:
                if not member.leaving:
                    self._note_exit(member.process)
                await member.way.end()
                self._members[place] = await self._hire()

    def _note_exit(self, worker: WorkerProcess) -> None:
        """No outage of the database ends a worker that runs, unless it has handlers that can't be cancelled."""
        code = worker.process.returncode
        if code in DIES:
            how = "its job ended it"
        elif code == 1 and RUNS not in worker.log:
            how = "no server at its start"
        elif code == 1 and PARTS in worker.log:
            how = "no lease, and handlers that can't be cancelled"
        else:
            how = f"exit code {code}"
            self._ends.append(f"worker process {worker.pid} ended by itself, {how}: {worker.log[-2000:]}")
        self.report.exits[how] += 1

    async def _hire(self) -> Member:
        folder = Path(tempfile.mkdtemp(dir=self._folder, prefix="w"))
        way = Way(folder, f"{self._node.folder}/.s.PGSQL.{PORT}")
        await way.start()
        parts = urlsplit(self._node.dsn())
        dsn = f"{parts.scheme}://{parts.username}@/postgres?host={quote(str(folder))}&port={PORT}"
        process = await self._fleet.start("--concurrency", SLOTS, dsn=dsn, BACKFILL_LOG_LEVEL="INFO")
        return Member(process, way, folder)

    @contextlib.asynccontextmanager
    async def _connection(self) -> AsyncIterator[asyncpg.Connection]:
        """A direct connection to the server."""
        connection = await asyncpg.connect(self._node.dsn(), timeout=10, server_settings={"application_name": "chaos"})
        try:
            yield connection
        finally:
            connection.terminate()

    # -- the faults -------------------------------------------------------------------------------

    async def _inflict(self) -> None:
        names = list(self._faults)
        weights = [weight for weight, _ in self._faults.values()]
        while True:
            await asyncio.sleep(self._random.uniform(*BETWEEN))
            (name,) = self._random.choices(names, weights)
            self._say(f"{time.monotonic() - self._began:7.1f} s: {name}")
            self.report.faults[name] += 1
            with contextlib.suppress(*DRIVER_ERRORS):
                await self._faults[name][1]()

    def _any_member(self) -> Member:
        return self._random.choice(self._members)

    def _signal(self, member: Member, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            member.process.signal(number)

    async def _kill(self) -> None:
        await self._kill_member(self._any_member())

    async def _kill_all(self) -> None:
        for member in list(self._members):
            await self._kill_member(member)

    async def _kill_member(self, member: Member) -> None:
        jobs, moment = [], None
        if not member.frozen and not self._served.locked():
            async with self._connection() as connection:
                rows = await connection.fetch(with_schema(RUNNING, SCHEMA), member.process.pid)
                jobs, moment = [row["job"] for row in rows], await connection.fetchval("select clock_timestamp()")
        member.leaving = True
        await member.process.kill()
        if moment is not None:
            self._kills.append((moment, jobs))

    async def _freeze(self) -> None:
        member, seconds = self._any_member(), self._random.uniform(0.5, 12)
        if member.frozen:
            return
        member.frozen = True
        self._signal(member, signal.SIGSTOP)

        def wake() -> None:
            member.frozen = False
            self._signal(member, signal.SIGCONT)

        self._later(seconds, wake)

    async def _stop(self) -> None:
        member = self._any_member()
        member.leaving = True
        self._signal(member, signal.SIGTERM)

    async def _stop_twice(self) -> None:
        member = self._any_member()
        member.leaving = True
        self._signal(member, signal.SIGTERM)
        self._later(self._random.uniform(0.0, 1.0), lambda: self._signal(member, signal.SIGTERM))

    async def _end_one(self) -> None:
        sql = "select pg_terminate_backend(pid) from pg_stat_activity where application_name like 'backfill-%' order by pid offset $1 limit 1"
        async with self._connection() as connection:
            await connection.execute("set statement_timeout = '5s'")
            await connection.fetch(sql, self._random.randrange(12))

    async def _end_all(self) -> None:
        sql = "select pg_terminate_backend(pid) from pg_stat_activity where application_name like 'backfill-%'"
        async with self._connection() as connection:
            await connection.fetch(sql)

    async def _block(self) -> None:
        member, seconds, cuts = self._any_member(), self._random.uniform(0.5, 12), self._random.random() < 0.5
        member.way.block()

        def unblock() -> None:
            if cuts:
                member.way.cut()
            member.way.unblock()

        self._later(seconds, unblock)

    async def _restart(self) -> None:
        await self._down(signal.SIGINT)

    async def _crash(self) -> None:
        await self._down(self._random.choice((signal.SIGQUIT, signal.SIGKILL)))

    async def _down(self, how: signal.Signals) -> None:
        await self._served.acquire()
        await asyncio.to_thread(self._node.end, how)
        await asyncio.sleep(self._random.choice((0.0, 1.0, 8.0)))
        await self._serve()

    async def _serve(self) -> None:
        """Have the server run again."""
        while True:
            try:
                await self._node.start()
            except AssertionError:  # what a kill left of it still holds its memory
                await asyncio.sleep(0.2)
            else:
                break
        self._served.release()

    async def _hold_snapshot(self) -> None:
        await self._hold("select count(*) from ledger", self._random.uniform(5, 20))

    async def _hold_rows(self) -> None:
        sql = "select from graphile_worker._private_jobs where locked_by is not null limit 5 for no key update skip locked"
        await self._hold(with_schema(sql, SCHEMA), self._random.uniform(1, 10))

    async def _hold(self, sql: str, seconds: float) -> None:
        async def hold() -> None:
            with contextlib.suppress(*DRIVER_ERRORS):
                async with self._connection() as connection, connection.transaction(isolation="repeatable_read"):
                    await connection.fetch(sql)
                    await asyncio.sleep(seconds)

        task = asyncio.create_task(hold())
        self._holders.add(task)
        task.add_done_callback(self._holders.discard)

    async def _collect(self) -> None:
        """As Node's clean-up does."""
        sql = "delete from graphile_worker._private_job_queues as queues where locked_at is null"
        used = " and not exists (select from graphile_worker._private_jobs as jobs where jobs.job_queue_id = queues.id)"
        async with self._connection() as connection:
            await connection.execute(with_schema(sql + used, SCHEMA))

    def _later(self, seconds: float, what: Callable[[], None]) -> None:
        async def wait() -> None:
            try:
                await asyncio.sleep(seconds)
            finally:
                what()

        task = asyncio.create_task(wait())
        self._holders.add(task)
        task.add_done_callback(self._holders.discard)
