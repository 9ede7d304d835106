"""Where a worker finds its database and its tasks: C-024, C-025, R-8, R-10."""

import sys
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, unquote, urlsplit

import asyncpg
import pytest

from backfill import BackfillClient, JobSpec, TaskHandler, WorkerConfig, WorkerContext, WorkerRunner, task
from backfill.cli.load import load
from backfill.errors import ConfigurationError, DatabaseError

if TYPE_CHECKING:
    from tests.conftest import Database
    from tests.worker.conftest import Sql


@task("one")
async def one(payload: int) -> None: ...


@task("two")
async def two(payload: int) -> None: ...


@dataclass
class Three(TaskHandler):
    """A class as a definition."""

    IDENTIFIER = "three"

    async def run(self, ctx: WorkerContext) -> None: ...


async def test_without_a_database_the_error_says_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """C-024, R-8."""
    monkeypatch.delenv("DATABASE_URL", raising=False)
    with pytest.raises(ConfigurationError, match="DATABASE_URL"):
        WorkerConfig.from_env()
    with pytest.raises(ConfigurationError, match="no database"):
        WorkerConfig(database_url="")


async def test_a_database_that_is_not_there_is_named(db: "Database") -> None:
    """C-024."""
    url = db.dsn.replace(db.name, "there_is_none")
    with pytest.raises(DatabaseError, match="there_is_none"):
        await WorkerRunner.builder(WorkerConfig(database_url=url)).define_job(one).build()


async def test_each_way_to_name_a_database_suffices(db: "Database", monkeypatch: pytest.MonkeyPatch) -> None:
    """C-025: DATABASE_URL; a URL; an empty one that PG… variables fill in; a pool, of one connection (R-8)."""
    parts = urlsplit(db.dsn)
    host = parse_qs(parts.query).get("host", [parts.hostname])[0]
    variables = {"PGHOST": host, "PGPORT": parts.port, "PGUSER": parts.username, "PGPASSWORD": parts.password}
    monkeypatch.setenv("DATABASE_URL", db.dsn)
    configs = [WorkerConfig.from_env(schema=db.schema), WorkerConfig(database_url=db.dsn, schema=db.schema)]
    for name, value in variables.items():
        if value:
            monkeypatch.setenv(name, unquote(str(value)))
    monkeypatch.setenv("PGDATABASE", db.name)
    configs.append(WorkerConfig(database_url="postgresql://", schema=db.schema))
    for config in configs:
        async with await WorkerRunner.builder(config).define_job(one).build() as runner:
            await runner.client.enqueue("one", 1)
            assert await runner.process_available_jobs() == 1
    pool = asyncpg.create_pool(db.dsn, min_size=1, max_size=1)
    async with pool, BackfillClient(pool, schema=db.schema) as client:
        await client.enqueue("new task", 1, JobSpec(queue="new queue"))
        async with pool.acquire() as connection, connection.transaction():
            await client.enqueue("newer task", 1, JobSpec(job_key="k"), connection=connection)
        assert await client.count_jobs() == 2


async def test_definitions_run_singly_and_as_a_list(
    db: "Database", sql: "Sql", monkeypatch: pytest.MonkeyPatch
) -> None:
    """R-10: the list is a module's, as the command line loads it."""
    module = ModuleType("exported")
    vars(module)["TASKS"] = [one, two, Three]
    monkeypatch.setitem(sys.modules, "exported", module)
    config = WorkerConfig(database_url=db.dsn, schema=db.schema)
    singly = WorkerRunner.builder(config).define_job(one).define_job(two).define_job(Three)
    for builder in (singly, load(["exported:TASKS"]).builder(lambda: config)):
        async with await builder.build() as runner:
            for name in ("one", "two", "three"):
                await sql.add(name, 1 if name != "three" else {})
            assert await runner.process_available_jobs() == 3
    assert await sql.count() == 0
