"""The DDL as text: what `backfill schema print` prints, and docs/dlq_schema.sql, run by psql."""

import asyncio
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from backfill.embedded import find_binaries
from backfill.schema import check, dlq_script, install, script
from backfill.schema.facts import live_facts, our_facts

if TYPE_CHECKING:
    from tests.conftest import Database

DLQ_FILE = Path(__file__).parents[2] / "docs" / "dlq_schema.sql"

# The table of the Rust crate backfill: narrower, and without the columns that are ours.
RUST_TABLE = """
create table {schema}.backfill_dlq (
    id bigserial primary key,
    original_job_id bigint,
    task_identifier varchar(200) not null,
    payload jsonb not null,
    queue_name varchar(100) not null default 'default',
    priority integer not null default 0,
    job_key varchar(200),
    max_attempts integer,
    failure_reason text not null,
    failure_count integer not null default 1,
    last_error jsonb,
    original_created_at timestamptz,
    original_run_at timestamptz,
    failed_at timestamptz not null default now(),
    requeued_count integer not null default 0,
    last_requeued_at timestamptz,
    notes text
);
create index idx_backfill_dlq_task_identifier on {schema}.backfill_dlq (task_identifier);
insert into {schema}.backfill_dlq (task_identifier, payload, failure_reason, job_key) values ('t', '{{}}', 'r', 'k');
"""


def psql_program() -> Path:
    beside = find_binaries() / "psql"
    found = beside if beside.exists() else shutil.which("psql")
    assert found, "psql is part of every PostgreSQL client installation"
    return Path(found)


def psql(dsn: str, *, file: Path | None = None, text: str | None = None) -> str:
    """Run a script, stopping at errors; what it printed."""
    told = subprocess.run(
        [psql_program(), "--no-psqlrc", "--quiet", "--set", "ON_ERROR_STOP=1", "--dbname", dsn, "--file", file or "-"],
        input=text,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert told.returncode == 0, told.stderr
    return told.stdout


def dlq_facts(facts: dict[str, str]) -> dict[str, str]:
    return {thing: fact for thing, fact in facts.items() if "backfill_dlq" in thing}


def test_the_shipped_file_is_the_script() -> None:
    assert DLQ_FILE.read_text(encoding="utf-8") == dlq_script()


@pytest.mark.parametrize("schema", ["graphile_worker", "jobs", "od\"d na'me $install$ $body$ \\ x"])
async def test_the_printed_schema_is_what_is_installed(empty_db: "Database", schema: str) -> None:
    assert psql(empty_db.dsn, text=script(schema)) == ""
    connection = await empty_db.connect()
    assert await install(connection, schema) == []
    assert await check(connection, schema) == []


async def test_the_printed_schema_does_no_harm_to_an_installed_one(db: "Database") -> None:
    connection = await db.connect()
    before = await connection.fetch("select oid, xmin from pg_proc where proname = 'add_job'")
    psql(db.dsn, text=script(db.schema))
    assert await connection.fetch("select oid, xmin from pg_proc where proname = 'add_job'") == before
    assert await check(connection, db.schema) == []


async def test_the_printed_schema_is_all_or_nothing(empty_db: "Database") -> None:
    connection = await empty_db.connect()
    await connection.execute("create schema jobs; create table jobs.jobs (id int)")
    with pytest.raises(AssertionError, match='relation "jobs" already exists'):
        psql(empty_db.dsn, text=script("jobs"))
    assert set(await live_facts(connection, "jobs")) == {"table jobs", "column jobs.id"}


async def test_the_dlq_file_runs_on_an_empty_database_and_again(empty_db: "Database") -> None:
    connection = await empty_db.connect()
    for _ in range(2):
        psql(empty_db.dsn, file=DLQ_FILE)
        assert dlq_facts(await live_facts(connection, "graphile_worker")) == dlq_facts(dict(our_facts()))


@pytest.mark.parametrize("name", ["your_schema", '"my schema"'])
async def test_the_dlq_file_can_be_renamed_by_sed(empty_db: "Database", name: str) -> None:
    renamed = await asyncio.to_thread(
        subprocess.run,
        ["sed", f"s/graphile_worker/{name}/g", str(DLQ_FILE)],
        capture_output=True,
        text=True,
        check=True,
    )
    for _ in range(2):
        psql(empty_db.dsn, text=renamed.stdout)
    connection = await empty_db.connect()
    facts = await live_facts(connection, name.strip('"'))
    assert dlq_facts(facts) == dlq_facts(dict(our_facts()))
    assert await live_facts(connection, "graphile_worker") == {}


async def test_a_schema_installed_after_the_dlq_file_accepts_it(empty_db: "Database") -> None:
    psql(empty_db.dsn, file=DLQ_FILE)
    connection = await empty_db.connect()
    await connection.execute(
        "insert into graphile_worker.backfill_dlq (task_identifier, payload, failure_reason) values ('t', '{}', 'r')",
    )
    assert await install(connection) == [
        "installed Graphile Worker revision 20",
        "applied dead_letter_queue",
        "applied to_jsonb",
        "applied workers",
        "applied add_job",
        "applied cancellations",
    ]
    assert await check(connection, "graphile_worker") == []
    assert await connection.fetchval("select count(*) from graphile_worker.backfill_dlq") == 1


@pytest.mark.parametrize("by", ["install", "file"])
async def test_a_table_of_the_rust_crate_is_widened_and_extended(empty_db: "Database", by: str) -> None:
    connection = await empty_db.connect()
    await connection.execute("create schema graphile_worker;" + RUST_TABLE.format(schema="graphile_worker"))
    if by == "file":
        psql(empty_db.dsn, file=DLQ_FILE)
    else:
        await install(connection)
    assert dlq_facts(await live_facts(connection, "graphile_worker")) == dlq_facts(dict(our_facts()))
    await connection.execute(
        "update graphile_worker.backfill_dlq set queue_name = repeat('q', 128), job_key = repeat('k', 512)"
    )
    await install(connection)
    assert await check(connection, "graphile_worker") == []


async def test_a_view_on_the_finished_table_does_not_stop_the_file(empty_db: "Database") -> None:
    psql(empty_db.dsn, file=DLQ_FILE)
    connection = await empty_db.connect()
    await connection.execute("create view dashboard as select queue_name, job_key from graphile_worker.backfill_dlq")
    psql(empty_db.dsn, file=DLQ_FILE)


async def test_the_file_needs_no_right_to_create_schemas_when_there_is_one(empty_db: "Database") -> None:
    connection = await empty_db.connect()
    role = f"role_{empty_db.name}"
    await connection.execute(f"create role {role}; create schema graphile_worker authorization {role}")
    try:
        async with connection.transaction():
            await connection.execute(f"set local role {role}")
            await connection.execute(dlq_script())
        assert await connection.fetchval("select to_regclass('graphile_worker.backfill_dlq')") is not None
    finally:
        await connection.execute(f"drop owned by {role} cascade; drop role {role}")
