"""Runs of the workload's worker, each struck at one message of its talk with the database, for every message there is."""

import asyncio
import itertools
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Literal

import asyncpg
from tests.conftest import SCHEMA, Server, copy_database, execute
from tests.support.forks import Child, ForkServer
from tests.support.places import contradictions, locks, misplaced, places
from tests.support.proxy import STARTUP, Proxy, Sent, Session
from tests.support.until import until_alone
from tests.worker.faults.workload import JOBS, Ledger, may_be

from backfill.sql import text

AT_ONCE = 6  # workers at the same time
LONGEST = 30.0  # seconds that a worker's life may take; it takes less than one
When = Literal["before", "after"]

# The client sends Parse, Describe, Flush (PDH) at once, and Bind, Execute, Sync (BES): only then does it wait for answers.
EVERY = frozenset({STARTUP, *"QPDHBESX"})
AWAITED = frozenset({STARTUP, *"QHS"})
FIRST_OR_LAST = frozenset({STARTUP, *"QPBSX"})

# What a complete run sends in each role, whatever else.
MUST_MEET = {
    "claim": ["claim_jobs", "claim_queue_head", "register_tasks", "next_due"],
    "release": ["release_completed", "release_completed_requeued", "release_failed", "hand_back"],
    "pool": ["add_job"],
    "maintenance": ["bury_exhausted_jobs"],
    "listen": ["prove_listen"],
}


class Striking:
    """Strikes the workers' messages of one role: kills the worker, or cuts the connection that sent the message.

    Attributes:
        met: What was struck.
    """

    def __init__(
        self, server: Server, loaded: str, forks: ForkServer, folder: Path, role: str, *, deadly: bool
    ) -> None:
        """Prepare it.

        Args:
            server: Has the databases.
            loaded: The name of the database with the jobs in it; each worker gets a copy.
            forks: Starts workers.
            folder: For the workers' ledgers.
            role: Whose messages count.
            deadly: Kill the worker, and cut all its connections.
        """
        self.met: Counter[tuple[str, str, When]] = Counter()
        self._server = server
        self._loaded = loaded
        self._forks = forks
        self._folder = folder
        self._role = role
        self._deadly = deadly
        self._runs = 0

    async def at_every(self, when: When, kinds: frozenset[str]) -> None:
        """Strike at every message of these kinds, and surely at those of the statements that matter."""
        await self._at_every_number(when, kinds)
        for statement, kind in itertools.product(MUST_MEET[self._role], kinds & {*"BES"}):
            sql = text(statement, SCHEMA)
            if not self.met[kind, sql, when]:
                reached = await self.run(when, partial(_is_of, kind, sql))
                assert reached, f"the worker never sent {statement}"

    async def _at_every_number(self, when: When, kinds: frozenset[str]) -> None:
        """Strike at the first message of these kinds, the second, and so on, until workers come to their end before."""
        numbers = iter(range(1, 1000))
        ended = asyncio.Event()

        async def take_turns() -> None:
            while not ended.is_set():
                left = next(numbers)

                def is_it(sent: Sent) -> bool:
                    nonlocal left
                    left -= sent.kind in kinds
                    return left == 0

                if not await self.run(when, is_it):
                    ended.set()

        async with asyncio.TaskGroup() as group:
            for _ in range(AT_ONCE):
                group.create_task(take_turns())

    async def run(self, when: When, is_it: Callable[[Sent], bool]) -> bool:
        """Run a worker and strike at the first message of the role that fits; whether there was one."""
        self._runs += 1
        name = f"{self._loaded}_{self._runs}"
        await copy_database(self._server, name, self._loaded)
        try:
            return await self._run(name, when, is_it)
        finally:
            await execute(self._server, f"drop database {name} with (force)")

    async def _run(self, name: str, when: When, is_it: Callable[[Sent], bool]) -> bool:
        struck: list[Sent] = []
        ledger = Ledger(self._folder / name)
        born: asyncio.Future[Child] = asyncio.get_running_loop().create_future()

        def rule(sent: Sent) -> When | None:
            if sent.role != self._role or struck or not is_it(sent):
                return None
            struck.append(sent)
            return when

        async def strike(session: Session) -> None:
            if self._deadly:
                (await born).kill()
                proxy.cut()
            else:
                session.cut()

        async with Proxy(self._server.dsn(name), rule, strike) as proxy:
            child = await self._forks.start(dsn=proxy.dsn, schema=SCHEMA, ledger=str(ledger.path))
            born.set_result(child)
            code = await _end_of(child)
        where = "".join(f"{when} message {s.number} ({s.kind}) of {s.role}: {s.sql.split()[:40]}" for s in struck)
        died = bool(struck) and self._deadly
        assert code == (-9 if died else 0), f"the worker ended with {code}, {where}, {ledger.lines}"
        for sent in struck:
            self.met[sent.kind, sent.sql, when] += 1
        connection = await asyncpg.connect(self._server.dsn(name))
        try:
            await until_alone(connection)
            wrong = await (_wrong_after_death if died else _wrong_at_the_end)(connection, ledger)
        finally:
            await connection.close()
        assert not wrong, where
        return bool(struck)


async def _end_of(child: Child) -> int:
    try:
        async with asyncio.timeout(LONGEST):
            return await child.wait()
    except TimeoutError:
        child.kill()
        return 0xDEAD


async def _wrong_after_death(connection: asyncpg.Connection, ledger: Ledger) -> list[str]:
    """What is wrong after a worker was killed somewhere."""
    allowed = {planned.number: may_be(planned, ledger) for planned in JOBS}
    return misplaced(await places(connection, SCHEMA), allowed) + await contradictions(connection, SCHEMA)


async def _wrong_at_the_end(connection: asyncpg.Connection, ledger: Ledger) -> list[str]:
    """What is wrong after a worker ran all jobs and stopped in order."""
    allowed = {planned.number: {planned.end} for planned in JOBS}
    allowed[21].add("queue")  # it need not have looked for used-up jobs before its end
    wrong = misplaced(await places(connection, SCHEMA), allowed) + await contradictions(connection, SCHEMA)
    wrong += [f"{token} holds a lock" for token in await locks(connection, SCHEMA)]
    runs = Counter(ledger.numbers("begin"))
    wrong += [
        f"job {planned.number} ran {runs[planned.number]} times, not {planned.runs}"
        for planned in JOBS
        if runs[planned.number] != planned.runs
    ]
    return wrong


def _is_of(kind: str, sql: str, sent: Sent) -> bool:
    return (sent.kind, sent.sql) == (kind, sql)
