"""Connections that go silent: nothing passes any more, and nobody says so. Each of the worker's connections, one by one.

The limits are those of the module `limits`, made short; what happens is the same.
"""

import asyncio
import itertools
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Literal

import pytest
from tests.support.proxy import Proxy, Sent, Session
from tests.support.until import until
from tests.worker.conftest import RunWorker, Sql
from tests.worker.faults.conftest import Ran, is_empty
from tests.worker.faults.test_ended_backends import LANES, WAVE, wave

from backfill.client import BackfillClient
from backfill.db import Limit, limits, open_pool
from backfill.errors import ConnectionTimeout, ValidationFailed
from backfill.model import task
from backfill.sql import text
from backfill.worker import QueueConfig, WorkerContext, connections, worker

if TYPE_CHECKING:
    from tests.conftest import Database

When = Literal["before", "after"]

SHORT = 1.0  # seconds
STATEMENTS = {
    "claim": "claim_free_jobs",
    "release": "release_completed",
    "listen": "prove_listen",
    "heartbeat": "beat",
    "maintenance": "locks_of_worker",
}
LEASE = timedelta(seconds=5)
END = "select count(pg_terminate_backend(pid)) from pg_stat_activity where application_name = $1"


@pytest.fixture(autouse=True)
def short_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "GRACE", 0.2)
    for limit in (limits.CLAIM, limits.RELEASE, limits.LISTEN, limits.MAINTENANCE):
        short = Limit(limit.name, SHORT, limit.lock_seconds)
        monkeypatch.setattr(connections, limit.name.upper(), short)
        if limit is not limits.MAINTENANCE:
            monkeypatch.setattr(worker, limit.name.upper(), short)
    call = Limit(limits.CALL.name, SHORT, by_server=False)
    assert open_pool.__kwdefaults__ is not None
    monkeypatch.setitem(open_pool.__kwdefaults__, "limit", call)


class Silence:
    """A proxy on which a session goes silent, at a statement of a role, once it is armed.

    Attributes:
        struck: How many sessions have.
    """

    def __init__(self, dsn: str, role: str, sql: str, when: When) -> None:
        self.proxy = Proxy(dsn, self._rule, self._strike)
        self.struck = 0
        self.armed = False
        self._place = (role, "S", sql)
        self._when = when

    def _rule(self, sent: Sent) -> When | None:
        if not self.armed or (sent.role, sent.kind, sent.sql) != self._place:
            return None
        self.armed = False
        return self._when

    async def _strike(self, _session: Session) -> None:
        self.struck += 1
        await asyncio.Event().wait()


@pytest.mark.parametrize("place", [*itertools.product(STATEMENTS, ["before", "after"])], ids="-".join)
async def test_no_job_is_lost_or_run_twice(
    db: "Database", client: BackfillClient, sql: Sql, run_worker: RunWorker, place: tuple[str, When]
) -> None:
    ran, (role, when) = Ran(), place

    @task("work")
    async def work(number: int, ctx: WorkerContext) -> None:
        await asyncio.sleep(0)
        ran.note((number, ctx.attempt))
        if number % 20 == 5:
            raise ValidationFailed("for good")
        if number % 10 == 3 and ctx.attempt == 1:
            raise ConnectionTimeout("once")

    silence = Silence(db.dsn, role, text(STATEMENTS[role], db.schema), when)
    async with (
        silence.proxy,
        run_worker(work, database_url=silence.proxy.dsn, queue_configs=LANES, lease=LEASE) as running,
    ):
        listener, heartbeat = running.worker.listener, running.worker.heartbeat
        silence.armed = True
        if role == "maintenance":
            await sql.value(END, f"{running.worker.id}:claim")  # then locks and memory are compared
        if role == "listen":
            listener._check_timeout = SHORT
            listener.doubt()
        await client.enqueue_many(wave(0))
        await until(lambda: silence.struck, "it is silent")
        beats = heartbeat.beats
        await until(partial(is_empty, sql), "all is done")
        await until(lambda: not running.worker.releaser.held, "all replies have come")
        await until(lambda: heartbeat.beats > beats + 1, "it lives on")
        assert running.worker.lease.fence.stands()
        if role == "listen":
            await until(lambda: listener.connected_count > 1, "it listens again")
        assert running.worker.claimer.polls == 0
    numbers = range(WAVE)
    assert ran.runs == {(n, 1): 1 for n in numbers} | {(n, 2): 1 for n in numbers if n % 10 == 3}
    assert await sql.locks() == (0, 0)
    assert sorted(int(row["payload"]) for row in await sql.dead()) == [n for n in numbers if n % 20 == 5]


async def test_a_silent_connection_of_the_pool_costs_its_job_an_attempt(
    db: "Database", client: BackfillClient, sql: Sql, run_worker: RunWorker, ran: Ran
) -> None:
    mark = "select 'a handler''s own'"

    @task("work")
    async def work(number: int, ctx: WorkerContext) -> None:
        ran.note((number, ctx.attempt))
        await ctx.pool.fetchval(mark)

    silence = Silence(db.dsn, "pool", mark, "before")
    async with silence.proxy, run_worker(work, database_url=silence.proxy.dsn):
        silence.armed = True
        await client.enqueue_many([("work", number) for number in range(20)])
        await until(lambda: silence.struck, "it is silent")
        await until(partial(is_empty, sql), "all is done", limit=60)
    assert {number for number, _ in ran.runs} == set(range(20))
    assert [attempt for _, attempt in ran.runs].count(2) == 1
    assert await sql.dead() == []


async def test_handlers_that_hold_the_whole_pool_do_not_stop_the_worker(
    client: BackfillClient, sql: Sql, run_worker: RunWorker, ran: Ran
) -> None:
    may_go_on = asyncio.Event()

    @task("hog")
    async def hog(ctx: WorkerContext) -> None:
        async with ctx.pool.acquire() as connection:
            ran.note("hog")
            await may_go_on.wait()
            await connection.fetchval("select 1")

    @task("free")
    async def free() -> None:
        ran.note("free")

    async with run_worker(hog, free, queue_configs=[QueueConfig.default_queue(12)]) as running:
        size = running.runner.client.pool.get_max_size()
        await client.enqueue_many([("hog",)] * size)
        await ran.total(size)
        await sql.value(END, f"{running.worker.id}:claim")
        await client.enqueue("free")
        await until(lambda: ran.runs["free"], "it claims all the same")
        may_go_on.set()
        await until(partial(is_empty, sql), "all is done")
    assert ran.runs == {"hog": size, "free": 1}
