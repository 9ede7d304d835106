"""What tests of SQL need: statements that name the schema graphile_worker, run on the test's own schema."""

import asyncio
import dataclasses
import json
import uuid
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest

from backfill.sql import quote_ident, with_schema

if TYPE_CHECKING:
    from tests.conftest import Database

MARKER = "that was all"


@dataclasses.dataclass(frozen=True)
class Sql:
    """A connection on which statements mean the test's schema by graphile_worker."""

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

    async def job(self, job_id: int) -> asyncpg.Record:
        return await self.row("select * from graphile_worker._private_jobs where id = $1", job_id)

    async def add(self, identifier: str | None = "task", **given: Any) -> asyncpg.Record:
        """Call add_job with named arguments; a payload as JSON text."""
        names = ["identifier", *given]
        casts = {"payload": "::text::json", "flags": "::text[]"}
        arguments = ", ".join(f"{name} => ${n}{casts.get(name, '')}" for n, name in enumerate(names, start=1))
        return await self.row(f"select * from graphile_worker.add_job({arguments})", identifier, *given.values())

    async def add_many(self, *specs: dict[str, Any], preserve: bool | None = False) -> list[asyncpg.Record]:
        """Call add_jobs; the specs as JSON."""
        return await self.rows(
            "select * from graphile_worker.add_jobs(array(select spec from"
            " json_populate_recordset(null::graphile_worker.job_spec, $1::text::json) as spec), $2)",
            json.dumps(specs),
            preserve,
        )

    async def lock(self, job_id: int, age: str = "0 s", by: str = "someone") -> None:
        """Have the job running, claimed as workers do."""
        await self.run(
            "update graphile_worker._private_jobs set locked_at = now() - $2::text::interval, locked_by = $3,"
            " attempts = attempts + 1 where id = $1",
            job_id,
            age,
            by,
        )

    async def exhaust(self, job_id: int) -> None:
        await self.run("update graphile_worker._private_jobs set attempts = max_attempts where id = $1", job_id)


@pytest.fixture
async def sql(db: "Database") -> Sql:
    return Sql(await db.connect(), db.schema)


@pytest.fixture
async def other(db: "Database") -> Sql:
    """A second session on the same schema."""
    return Sql(await db.connect(), db.schema)


Heard = Callable[[], Any]


@pytest.fixture
async def heard(db: "Database", sql: Sql) -> Heard:
    """A function that gives the payloads of the notifications on jobs:insert since it was last called."""
    listener = await db.connect()
    payloads: list[str] = []
    ended = asyncio.Event()

    def hear(_connection: Any, _pid: int, _channel: str, payload: Any) -> None:
        if payload == MARKER:
            ended.set()
        else:
            payloads.append(payload)

    await listener.add_listener("jobs:insert", hear)

    async def take() -> list[Any]:
        ended.clear()
        await sql.value("select pg_notify('jobs:insert', $1)", MARKER)
        async with asyncio.timeout(30):
            await ended.wait()
        found = [json.loads(payload) if payload else "" for payload in payloads]
        payloads.clear()
        return [item["count"] if isinstance(item, dict) else item for item in found]

    return take


async def until_blocked(watcher: Sql, waiting: Sql) -> None:
    """Return as soon as the second session waits for a lock."""
    pid = waiting.connection.get_server_pid()
    async with asyncio.timeout(30):
        blocked = False
        while not blocked:
            blocked = await watcher.value("select cardinality(pg_blocking_pids($1)) > 0", pid)


@pytest.fixture
def wait_until_blocked() -> Any:
    return until_blocked


@dataclasses.dataclass(frozen=True)
class Roles:
    """Makes roles; they and what they own are dropped after the test."""

    superuser: asyncpg.Connection
    names: list[str]

    async def make(self, *grants: str) -> str:
        """A role with a name that needs quotes. In the statements given, {role} is its quoted name."""
        name = f'ro"le {uuid.uuid4().hex[:12]}'
        self.names.append(name)
        await self.superuser.execute(f"create role {quote_ident(name)}")
        for grant in grants:
            await self.superuser.execute(grant.format(role=quote_ident(name)))
        return name


async def make_roles(database: "Database") -> AsyncIterator[Roles]:
    roles = Roles(await database.connect(), [])
    yield roles
    for name in reversed(roles.names):
        await roles.superuser.execute(f"drop owned by {quote_ident(name)} cascade")
        await roles.superuser.execute(f"drop role {quote_ident(name)}")


@pytest.fixture
async def roles(db: "Database") -> AsyncIterator[Roles]:
    async for found in make_roles(db):
        yield found


@pytest.fixture
async def empty_roles(empty_db: "Database") -> AsyncIterator[Roles]:
    async for found in make_roles(empty_db):
        yield found
