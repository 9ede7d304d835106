"""Installing: C-001, C-002, C-004, R-1, R-2, R-3, R-5, R-7, R-11, R-71. With Node's own installer: tests/interop/test_schema.py."""

import asyncio
import logging
import random
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest
from tests.support.until import until

from backfill import BackfillClient, JobSpec, WorkerConfig, WorkerRunner, task
from backfill.db import quote_ident
from backfill.errors import DatabaseError, SchemaError
from backfill.schema import install
from backfill.schema.ddl import graphile_ddl

if TYPE_CHECKING:
    from tests.conftest import Database

BREAKING = {1, 3, 11, 13, 14, 16, 19}


async def ledger(connection: asyncpg.Connection) -> list[tuple[int, bool]]:
    return [tuple(row) for row in await connection.fetch("select id, breaking from jobs.migrations order by id")]


async def test_all_revisions_are_recorded_and_more_runs_change_nothing(empty_db: "Database") -> None:
    """C-001, R-1."""
    connection = await empty_db.connect()
    await install(connection, "jobs")
    assert await ledger(connection) == [(number, number in BREAKING) for number in range(1, 21)]
    await connection.execute("select jobs.add_job('task', '{\"a\": 1}', queue_name => 'q', job_key => 'k')")
    before = [
        await connection.fetch(f"select * from jobs.{table}")
        for table in ("_private_jobs", "_private_tasks", "_private_job_queues", "migrations")
    ]
    for _ in range(3):
        assert await install(connection, "jobs") == []
    after = [
        await connection.fetch(f"select * from jobs.{table}")
        for table in ("_private_jobs", "_private_tasks", "_private_job_queues", "migrations")
    ]
    assert after == before


@pytest.mark.parametrize("at_once", [4, 20])
async def test_installers_at_once_all_succeed(empty_db: "Database", at_once: int) -> None:
    """C-002, R-2."""
    connections = [await empty_db.connect() for _ in range(at_once)]
    done = await asyncio.gather(*(install(connection, "jobs") for connection in connections))
    assert sum(bool(what) for what in done) == 1
    assert [number for number, _ in await ledger(connections[0])] == list(range(1, 21))


async def test_an_installer_that_takes_no_lock_of_ours_counts_as_another(empty_db: "Database") -> None:
    """R-3: its objects clash with ours; ours looks again, and finds that it was done."""
    connection, theirs, watcher = [await empty_db.connect() for _ in range(3)]
    async with theirs.transaction():
        await theirs.execute("create schema jobs")
        await theirs.execute(graphile_ddl("jobs"))
        ours = asyncio.create_task(install(connection, "jobs"))
        blocked = "select cardinality(pg_blocking_pids($1)) > 0"
        await until(lambda: watcher.fetchval(blocked, connection.get_server_pid()), "it waits for the other")
    assert not any("revision" in what for what in await ours)
    assert [number for number, _ in await ledger(connection)] == list(range(1, 21))


async def test_what_is_no_clash_is_an_error(empty_db: "Database") -> None:
    """R-3, the other half: such as a right that the role has not."""
    connection = await empty_db.connect()
    role = f"nobody_{random.randrange(10**9)}"
    await connection.execute(f"create role {role}")
    try:
        await connection.execute(f"set role {role}")
        with pytest.raises(DatabaseError, match="permission denied"):
            await install(connection, "jobs")
        await connection.execute("reset role")
        assert await connection.fetchval("select to_regnamespace('jobs')") is None
    finally:
        await connection.execute(f"reset role; drop owned by {role}; drop role {role}")


async def test_a_breaking_revision_of_the_future_is_refused_with_both_numbers(empty_db: "Database") -> None:
    """C-004, R-5: in words of our own; and nothing is touched."""
    connection = await empty_db.connect()
    await install(connection, "jobs")
    await connection.execute("insert into jobs.migrations (id, breaking) values (999999, true)")
    for opening in (install(connection, "jobs"), BackfillClient(empty_db.dsn, schema="jobs").open()):
        with pytest.raises(SchemaError, match=r"breaking revision 999999.* knows up to 20"):
            await opening
    assert len(await ledger(connection)) == 21


async def test_a_revision_of_the_future_that_breaks_nothing_is_only_warned_of(
    empty_db: "Database", caplog: pytest.LogCaptureFixture
) -> None:
    """C-004, its other half."""
    connection = await empty_db.connect()
    await install(connection, "jobs")
    await connection.execute("insert into jobs.migrations (id, breaking) values (21, false)")
    with caplog.at_level(logging.WARNING):
        assert await install(connection, "jobs") == []
    assert "revision 21" in caplog.text


@pytest.mark.parametrize("ends", ["commit", "rollback"])
async def test_installing_belongs_to_the_callers_transaction(empty_db: "Database", ends: str) -> None:
    """R-7."""
    connection = await empty_db.connect()
    transaction = connection.transaction()
    await transaction.start()
    await connection.execute("create table mine (id int)")
    await install(connection, "jobs")
    assert connection.is_in_transaction()
    await (transaction.commit() if ends == "commit" else transaction.rollback())
    found = await connection.fetchrow("select to_regclass('jobs._private_jobs')::text, to_regclass('mine')::text")
    assert tuple(found or ()) == (("jobs._private_jobs", "mine") if ends == "commit" else (None, None))


@pytest.mark.parametrize("schema", ["MixedCase", 'od"d; name', "ünï $1 %s {}"])
async def test_a_schema_of_any_name_works_from_end_to_end(empty_db: "Database", schema: str) -> None:
    """R-11: a job that ends well, and one that fails for good and is requeued."""
    failing = True
    ran: list[Any] = []

    @task("task")
    async def sometimes(payload: str) -> None:
        ran.append(payload)
        if payload == "bad" and failing:
            raise ValueError("not so")

    builder = WorkerRunner.builder(WorkerConfig(database_url=empty_db.dsn, schema=schema))
    async with await builder.define_job(sometimes).build() as runner:
        await runner.client.enqueue("task", "good", JobSpec(queue="q"))
        await runner.client.enqueue("task", "bad", JobSpec(job_key="k"))
        assert await runner.process_available_jobs() == 2
        (entry,) = (await runner.client.list_dlq_jobs()).jobs
        failing = False
        await runner.client.requeue_dlq_job(entry.id)
        assert await runner.process_available_jobs() == 1
        assert (await runner.client.list_dlq_jobs()).total == 0
    assert sorted(ran) == ["bad", "bad", "good"]


async def test_names_are_quoted_as_postgresql_quotes_them(empty_db: "Database") -> None:
    """R-71: format('%I') gives the same, but for quotes that a plain name can do without."""
    connection, dice = await empty_db.connect(), random.Random(3)
    letters = "abzAZ09_$\"'\\ .;-%{}\t\u00e4\u4e2d\U0001f600"
    names = [
        "a",
        "A",
        "user",
        "select",
        "1a",
        '"',
        '""',
        "a.b",
        *("".join(dice.choices(letters, k=n % 20 + 1)) for n in range(500)),
    ]
    theirs = await connection.fetch("select format('%I', name) as quoted from unnest($1::text[]) as name", names)
    for name, (quoted,) in zip(names, theirs, strict=True):
        assert quote_ident(name) in (quoted, f'"{quoted}"')
        assert quoted == quote_ident(name) or quoted == name
