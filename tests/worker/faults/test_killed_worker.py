"""A worker that dies at any point of its talk with the database leaves each job in exactly one place.

The worker is a process of its own whose connections go through a proxy. For every n, the process is killed by SIGKILL just
before its n-th message is passed on to the server, and, in another run, just after the server has answered it and before the
worker hears that. Its connections are cut at the same moment, so nothing that it had sent besides gets through.

How n is counted: for each of the worker's roles by itself (its claims, its releases, its listening, its pool), over all
connections of that role, from the first message of the first connection. What a worker sends in one role follows one order,
while the order between roles changes from run to run: with one count for all, an n would mean another message each time, and
some messages would never be met. A role's count ends with the first n that a worker did not reach before its orderly end.

Why this is complete: the database changes only by what the server has received, and a role's statements are sent one after the
other. Between two messages of a role nothing can be cut that is not equal to one of the two cuts here, as far as that role's
transactions go. "Before n" and "after n - 1" differ in whether the worker has acted upon the answer.
"""

import asyncio
import itertools
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal

import asyncpg
import pytest
from tests.conftest import SCHEMA, Server, copy_database, execute
from tests.support.forks import Child, ForkServer
from tests.support.places import contradictions, locks, misplaced, places
from tests.support.proxy import Proxy, Sent, Session
from tests.support.until import until_alone
from tests.worker.faults.workload import JOBS, may_be, prepare, read_ledger, work_in_process

from backfill.client import BackfillClient
from backfill.sql import text

AT_ONCE = 6  # workers at the same time
When = Literal["before", "after"]
WHENS: tuple[When, When] = ("before", "after")

# What a complete run sends in each role, whatever else: each of these is to be cut at its Bind, Execute and Sync.
MUST_MEET = {
    "claim": ["claim_jobs", "claim_queue_head", "register_tasks", "next_due"],
    "release": ["release_completed", "release_completed_requeued", "release_failed", "hand_back"],
    "backfill": ["bury_exhausted_jobs", "add_job"],
    "listen": ["prove_listen"],
}


@pytest.fixture
async def loaded(db: Any, client: BackfillClient) -> str:
    """The name of a database with the jobs in it, to be copied."""
    await prepare(client)
    await client.close()
    name: str = db.name
    return name


class Killing:
    """Runs workers, each in a database of its own, and kills each at one message."""

    def __init__(self, server: Server, loaded: str, forks: ForkServer, folder: Path, role: str) -> None:
        self.met: Counter[tuple[str, str, When]] = Counter()
        self._server = server
        self._loaded = loaded
        self._forks = forks
        self._folder = folder
        self._role = role
        self._runs = 0

    async def run(self, when: When, is_it: Callable[[Sent], bool]) -> bool:
        """Run a worker and kill it at the first message of the role that fits; whether there was one."""
        self._runs += 1
        name = f"{self._loaded}_{self._runs}"
        await copy_database(self._server, name, self._loaded)
        try:
            return await self._run(name, when, is_it)
        finally:
            await execute(self._server, f"drop database {name} with (force)")

    async def _run(self, name: str, when: When, is_it: Callable[[Sent], bool]) -> bool:
        struck: list[Sent] = []
        ledger = self._folder / name
        born: asyncio.Future[Child] = asyncio.get_running_loop().create_future()

        def rule(sent: Sent) -> When | None:
            if sent.role != self._role or struck or not is_it(sent):
                return None
            struck.append(sent)
            return when

        async def kill(_: Session) -> None:
            (await born).kill()
            proxy.cut()

        async with Proxy(self._server.dsn(name), rule, kill) as proxy:
            child = await self._forks.start(dsn=proxy.dsn, schema=SCHEMA, ledger=str(ledger))
            born.set_result(child)
            code = await child.wait()
        assert code == (-9 if struck else 0), f"the worker ended with {code}"
        for sent in struck:
            self.met[sent.kind, sent.sql, when] += 1
        await self._check(name, ledger, where=f"killed {when} {struck}", whole=not struck)
        return bool(struck)

    async def _check(self, name: str, ledger: Path, *, where: str, whole: bool) -> None:
        noted = read_ledger(ledger)
        if whole:
            allowed = {planned.number: {planned.end} for planned in JOBS}
            allowed[21].add("queue")  # the worker need not have looked for used-up jobs before its end
        else:
            allowed = {planned.number: may_be(planned, noted) for planned in JOBS}
        connection = await asyncpg.connect(self._server.dsn(name))
        try:
            await until_alone(connection)
            wrong = misplaced(await places(connection, SCHEMA), allowed)
            wrong += await contradictions(connection, SCHEMA)
            if whole:
                wrong += [f"{token} holds a lock" for token in await locks(connection, SCHEMA)]
            assert not wrong, where
        finally:
            await connection.close()

    async def run_for_every_number(self) -> None:
        """Kill at the first message, the second, and so on, until workers come to their end."""
        numbers = iter(range(1, 1000))
        ended = asyncio.Event()

        async def take_turns() -> None:
            while not ended.is_set():
                is_it = partial(_has_number, next(numbers))
                reached = [await self.run("before", is_it), await self.run("after", is_it)]
                if not any(reached):
                    ended.set()

        async with asyncio.TaskGroup() as group:
            for _ in range(AT_ONCE):
                group.create_task(take_turns())

    async def run_for_what_was_missed(self) -> None:
        """Kill at each message of the statements that matter which no number has met."""
        for statement, kind, when in itertools.product(MUST_MEET[self._role], "BES", WHENS):
            sql = text(statement, SCHEMA)
            if not self.met[kind, sql, when]:
                reached = await self.run(when, partial(_is_of, kind, sql))
                assert reached, f"the worker never sent {statement}"


def _has_number(number: int, sent: Sent) -> bool:
    return sent.number == number


def _is_of(kind: str, sql: str, sent: Sent) -> bool:
    return (sent.kind, sent.sql) == (kind, sql)


@pytest.mark.timeout(240)
@pytest.mark.parametrize("role", MUST_MEET)
async def test_each_job_is_in_exactly_one_place(server: Server, loaded: str, tmp_path: Path, role: str) -> None:
    async with ForkServer(work_in_process) as forks:
        killing = Killing(server, loaded, forks, tmp_path, role)
        await killing.run_for_every_number()
        await killing.run_for_what_was_missed()
