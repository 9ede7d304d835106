"""Servers that are there and do not take the worker: what it says, how long it waits, and that it comes back by itself."""

import asyncio
import logging
import signal
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import pytest
from tests.conftest import SCHEMA
from tests.support.cluster import PORT, Node
from tests.support.until import until
from tests.worker.faults.conftest import Ran

from backfill.client import BackfillClient
from backfill.db import limits, quote_ident
from backfill.embedded import EmbeddedServer
from backfill.errors import DatabaseError
from backfill.model import task
from backfill.worker import WorkerConfig, WorkerRunner, WorkerRunnerBuilder

if TYPE_CHECKING:
    from tests.conftest import Database

RAN = Ran()


@task("work")
async def work(number: int) -> None:
    RAN.note(number)


def builder(url: str) -> WorkerRunnerBuilder:
    config = WorkerConfig(database_url=url, schema=SCHEMA, poll_interval=timedelta(milliseconds=50))
    return WorkerRunner.builder(config).define_job(work)


@asynccontextmanager
async def limited_role(db: "Database", limit: int) -> AsyncIterator[tuple[str, str]]:
    """A role with so many connections, that may work on the schema: its name, and the URL for it."""
    admin = await db.connect()
    role = f"role_{uuid.uuid4().hex[:12]}"
    await admin.execute(f"create role {role} login connection limit {limit} bypassrls")
    await admin.execute(f"grant {quote_ident(str(await admin.fetchval('select current_user')))} to {role}")
    parts = urlsplit(db.dsn)
    try:
        yield role, parts._replace(netloc=f"{role}@{parts.netloc.rpartition('@')[2]}").geturl()
    finally:
        await admin.execute(f"select pg_terminate_backend(pid, 5000) from pg_stat_activity where usename = '{role}'")
        await admin.execute(f"drop role {role}")


async def test_a_server_without_a_free_connection_is_waited_for(
    db: "Database", caplog: pytest.LogCaptureFixture
) -> None:
    async with limited_role(db, 0) as (role, url):
        building = asyncio.create_task(builder(url).build())
        await until(lambda: "too many connections for role" in caplog.text, "it is said")
        assert "raise max_connections, or use smaller pools" in caplog.text
        assert caplog.text.count("Will try for another") == 1
        await (await db.connect()).execute(f"alter role {role} connection limit -1")
        await (await building).close()


async def test_it_is_not_waited_for_for_ever(db: "Database", monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "START", 0.3)
    async with limited_role(db, 0) as (_, url):
        with pytest.raises(DatabaseError, match="too many connections for role"):
            await builder(url).build()


async def test_a_server_that_starts_up_is_waited_for(caplog: pytest.LogCaptureFixture) -> None:
    primary, standby = Node(), Node()
    try:
        primary.make()
        await primary.start()
        async with BackfillClient(primary.dsn(), SCHEMA):
            pass
        standby.clone(primary)
        primary.end(signal.SIGINT)
        standby.spawn(hot_standby="off")  # it recovers, and takes nobody until then
        await until((standby.folder / f".s.PGSQL.{PORT}").exists, "it is starting")
        building = asyncio.create_task(builder(standby.dsn()).build())
        await until(lambda: "try again in a moment" in caplog.text, "it is said")
        await asyncio.to_thread(standby.run, "pg_ctl", "promote", "-D", str(standby.data))
        await (await building).close()
    finally:
        standby.remove()
        primary.remove()


async def test_a_server_that_takes_no_writes_is_refused_at_once(db: "Database") -> None:
    admin = await db.connect()
    async with limited_role(db, -1) as (role, url):
        await admin.execute(f"alter role {role} set default_transaction_read_only = on")
        with pytest.raises(DatabaseError, match=r"takes no writes: it is a standby, or default_transaction_read_only"):
            await builder(url).build()


@pytest.fixture
def tcp_server() -> Iterator[EmbeddedServer]:
    """A server that asks for passwords."""
    with EmbeddedServer(tcp=True) as server:
        yield server


async def test_a_changed_password_is_said_and_the_worker_goes_on_once_it_fits_again(
    tcp_server: EmbeddedServer, caplog: pytest.LogCaptureFixture
) -> None:
    url = tcp_server.dsn()
    host = urlsplit(url).netloc.rpartition("@")[2]
    secret = uuid.uuid4().hex
    stop = asyncio.Event()
    async with BackfillClient(url, SCHEMA) as admin:
        await admin.pool.execute(f"create role app login password '{secret}'; grant postgres to app")
        as_app = urlsplit(url)._replace(netloc=f"app:{secret}@{host}").geturl()
        async with await builder(as_app).build() as runner:
            running = runner.spawn_background(stop)
            await admin.enqueue("work", 1)
            await until(lambda: RAN.runs[1], "it works")
            await admin.pool.execute("alter role app password 'another'")
            await admin.pool.fetch("select pg_terminate_backend(pid, 5000) from pg_stat_activity where usename = 'app'")
            await until(lambda: caplog.text.count("check the user name and the password") > 1, "it is said")
            await admin.enqueue("work", 2)
            await admin.pool.execute(f"alter role app password '{secret}'")
            await until(lambda: RAN.runs[2], "it works again")
            with pytest.raises(
                DatabaseError, match=r"cannot connect to .*127\.0\.0\.1.*password authentication failed"
            ):
                await builder(as_app.replace(secret, "wrong")).build()
            stop.set()
            await running
    with caplog.at_level(logging.DEBUG):
        assert secret not in caplog.text
