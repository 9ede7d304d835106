"""Calls while the database is away: they end, and their errors say whether anything may have been done."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TYPE_CHECKING, Literal

import pytest
from tests.support.proxy import Proxy, Sent, Session

from backfill.client import BackfillClient
from backfill.db import Limit, borrow, open_pool
from backfill.errors import DatabaseError
from backfill.model import JobSpec
from backfill.sql import text

if TYPE_CHECKING:
    from tests.client.conftest import Heard, Raw
    from tests.conftest import Database

When = Literal["before", "after"]
KEYED = JobSpec(job_key="k")


@contextlib.asynccontextmanager
async def struck(
    db: "Database", statement: str, when: When, strike: Callable[[Session], Awaitable[None]] | None = None
) -> AsyncIterator[BackfillClient]:
    """A client whose connection is cut, once, at that statement's Sync."""
    sql, left = text(statement, db.schema), 1

    def rule(sent: Sent) -> When | None:
        nonlocal left
        is_it = (sent.kind, sent.sql) == ("S", sql) and left > 0
        left -= is_it
        return when if is_it else None

    async with (
        Proxy(db.dsn, rule, strike) as proxy,
        BackfillClient(proxy.dsn, schema=db.schema, install=False) as client,
    ):
        yield client


@pytest.mark.parametrize(("when", "added"), [("before", 0), ("after", 1)])
@pytest.mark.parametrize("spec", [None, KEYED])
async def test_a_lost_answer_leaves_it_in_doubt(
    db: "Database", raw: "Raw", spec: JobSpec | None, when: When, added: int
) -> None:
    statement = "insert_job" if spec is None else "add_keyed_job"
    await raw.value("select count(*) from graphile_worker.add_job('task')")
    async with struck(db, statement, when) as client:
        with pytest.raises(DatabaseError, match=r"cannot enqueue task: .*may have been added or not") as caught:
            await client.enqueue("task", 1, spec)
        assert caught.value.in_doubt
        assert len(await raw.jobs()) == 1 + added
        assert (await client.enqueue("task", 1, spec)).is_enqueued  # by another connection
    assert len(await raw.jobs()) == (2 if spec else 2 + added)


async def test_a_job_that_is_there_although_the_answer_was_lost_is_announced(
    db: "Database", raw: "Raw", heard: "Heard"
) -> None:
    await raw.value("select count(*) from graphile_worker.add_job('task')")
    assert len(await heard()) == 1
    async with struck(db, "insert_job", "after") as client:
        client.enqueuer._notifier._quiet_from = asyncio.get_running_loop().time() + 0.1  # so that it is counted
        with pytest.raises(DatabaseError, match="may have been added or not"):
            await client.enqueue("task", 1)
    assert [told["count"] for told in await heard()] == [1]


@pytest.mark.parametrize(("when", "added"), [("before", 0), ("after", 2)])
async def test_a_batch_whose_answer_is_lost_is_there_as_a_whole_or_not(
    db: "Database", raw: "Raw", when: When, added: int
) -> None:
    await raw.value("select count(*) from graphile_worker.add_job('task')")
    async with struck(db, "insert_jobs", when) as client:
        with pytest.raises(DatabaseError, match="either all jobs were added or none") as caught:
            await client.enqueue_many([("task", 1), ("task", 2)])
        assert caught.value.in_doubt
    assert len(await raw.jobs()) == 1 + added


async def test_an_outage_is_told_as_nothing_added_and_ends_with_it(db: "Database", raw: "Raw") -> None:
    proxy = Proxy(db.dsn)
    async with proxy:
        client = BackfillClient(proxy.dsn, schema=db.schema, install=False)
        await client.open()
        await client.enqueue("task")
    for _ in range(3):  # the connection that was open has ended; then none can be made
        with pytest.raises(DatabaseError, match="cannot enqueue task") as caught:
            await client.enqueue("task")
    assert not caught.value.in_doubt
    assert str(caught.value).endswith("the job was not added")
    assert "at /tmp" in str(caught.value)
    await client.close()
    assert len(await raw.jobs()) == 1


async def test_silence_is_not_waited_for_for_ever(db: "Database", monkeypatch: pytest.MonkeyPatch) -> None:
    assert open_pool.__kwdefaults__ is not None
    monkeypatch.setitem(open_pool.__kwdefaults__, "limit", Limit("client call", 0.3, by_server=False))

    async def silence(_: Session) -> None:
        await asyncio.Event().wait()

    async with struck(db, "insert_job", "before", silence) as client:
        await client.enqueue_many([("task", 0)])  # the task is known
        with pytest.raises(
            DatabaseError, match=r"no answer within 0\.3 s \(limit client call\); the job may"
        ) as caught:
            await client.enqueue("task", 1)
        assert caught.value.in_doubt
        assert (await client.enqueue("task", 2)).is_enqueued


async def test_an_exhausted_pool_is_not_waited_for_for_ever(
    client: BackfillClient, monkeypatch: pytest.MonkeyPatch, raw: "Raw"
) -> None:
    monkeypatch.setattr(borrow, "ACQUIRE", 0.1)
    async with contextlib.AsyncExitStack() as held:
        for _ in range(client.pool.get_max_size()):
            await held.enter_async_context(client.pool.acquire())
        with pytest.raises(
            DatabaseError, match=r"all 10 connections of the pool were in use for 0\.1 s; the job was not"
        ):
            await client.enqueue("task")
    assert await raw.jobs() == []


async def test_a_refusal_is_no_doubt(client: BackfillClient, raw: "Raw") -> None:
    await raw.run("alter table graphile_worker._private_jobs add constraint no check (payload::text <> '1')")
    with pytest.raises(DatabaseError, match='violates check constraint "no"') as caught:
        await client.enqueue("task", 1)
    assert not caught.value.in_doubt
    assert await raw.jobs() == []


async def test_a_connection_on_a_server_that_takes_no_writes_is_given_up(client: BackfillClient, raw: "Raw") -> None:
    async with client.pool.acquire() as one:
        before = one.get_server_pid()
    name = await raw.value("select current_database()")
    await raw.run(f"alter database {name} set default_transaction_read_only = on")
    await client.pool.expire_connections()
    with pytest.raises(DatabaseError, match="use the primary's address"):
        await client.enqueue("task")
    await raw.run("set default_transaction_read_only = off")
    await raw.run(f"alter database {name} reset default_transaction_read_only")
    assert (await client.enqueue("task")).is_enqueued
    async with client.pool.acquire() as one:
        assert one.get_server_pid() != before
