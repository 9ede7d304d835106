from typing import TYPE_CHECKING

import pytest

from backfill.errors import ConfigurationError, DatabaseError
from backfill.schema import check
from backfill.sql import quote_ident

if TYPE_CHECKING:
    from tests.conftest import Database
    from tests.schema.conftest import Roles, Sql


async def test_a_fresh_schema_is_as_it_should_be(sql: "Sql") -> None:
    assert await check(sql.connection, sql.schema) == []


async def test_what_users_add_to_the_dead_letter_queue_is_no_fault(sql: "Sql") -> None:
    await sql.run(
        "alter table graphile_worker.backfill_dlq add column team text;"
        "create index by_team on graphile_worker.backfill_dlq (team);"
        "create table graphile_worker.notes (id int primary key)",
    )
    assert await check(sql.connection, sql.schema) == []


@pytest.mark.parametrize(
    ("damage", "found"),
    [
        ("drop index graphile_worker.jobs_main_index", "index jobs_main_index is missing"),
        (
            """drop index graphile_worker.jobs_main_index;
            create index jobs_main_index on graphile_worker._private_jobs (run_at)""",
            "index jobs_main_index is 'btree on _private_jobs (run_at)', not 'btree on _private_jobs (priority, run_at)",
        ),
        (
            "alter table graphile_worker._private_jobs alter max_attempts set default 3",
            "column _private_jobs.max_attempts is 'smallint not null default 3', not 'smallint not null default 25'",
        ),
        (
            "alter table graphile_worker._private_jobs drop constraint jobs_key_check",
            "constraint _private_jobs.jobs_key_check is missing",
        ),
        (
            "insert into graphile_worker.migrations values (21, now(), false)",
            "revision 21; this backfill knows up to 20",
        ),
        ("delete from graphile_worker.migrations", "records no revision"),
        ("alter table graphile_worker._private_jobs add column extra int", "column _private_jobs.extra is unknown"),
        ("alter table graphile_worker._private_tasks disable row level security", "table _private_tasks is ''"),
        ("alter function graphile_worker.remove_job(text) security definer", "security definer', not"),
        ("drop function graphile_worker.remove_job(text)", "lacks function remove_job(job_key text)"),
        ("delete from graphile_worker.migrations where id > 17", "revision 17; backfill works with 18 to 20"),
        (
            "delete from graphile_worker.backfill_migrations where id = 2",
            "migration to_jsonb was not applied: run backfill schema install",
        ),
        ("drop index graphile_worker.idx_backfill_dlq_failed_at", "index idx_backfill_dlq_failed_at is missing"),
        ("alter table graphile_worker.backfill_dlq drop column history", "column backfill_dlq.history is missing"),
        (
            "alter table graphile_worker.backfill_dlq alter column failure_reason type varchar(9)",
            "column backfill_dlq.failure_reason is 'character varying(9) not null', not 'text not null'",
        ),
        ("alter table graphile_worker.backfill_migrations rename id to number", "cannot check schema"),
        (
            "alter table graphile_worker._private_known_crontabs rename known_since to since",
            "known_crontabs.known_since",
        ),
    ],
)
async def test_damage_is_named(sql: "Sql", damage: str, found: str) -> None:
    await sql.run(damage)
    try:
        differences = await check(sql.connection, sql.schema)
    except DatabaseError as error:
        differences = [str(error)]
    assert any(found in difference for difference in differences), differences


async def test_statements_that_no_longer_fit_are_named(sql: "Sql") -> None:
    await sql.run("alter table graphile_worker.backfill_dlq rename column job_key to k")
    differences = await check(sql.connection, sql.schema)
    assert any("cannot be prepared: column" in difference for difference in differences), differences


async def test_a_schema_that_is_not_there_is_one_line(empty_db: "Database") -> None:
    connection = await empty_db.connect()
    assert await check(connection, "jobs") == [
        "schema 'jobs' is not installed in this database: run backfill schema install"
    ]
    with pytest.raises(ConfigurationError):
        await check(connection, "")


async def test_a_blinded_role_is_told(sql: "Sql", roles: "Roles") -> None:
    quoted = quote_ident(sql.schema)
    role = await roles.make(
        f"grant usage on schema {quoted} to {{role}}", f"grant all on all tables in schema {quoted} to {{role}}"
    )
    await sql.run(f"set session authorization {quote_ident(role)}")
    differences = await check(sql.connection, sql.schema)
    assert len(differences) == 1
    assert f"TO {quote_ident(role)};" in differences[0]
