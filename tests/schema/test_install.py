import asyncio
import logging
from typing import TYPE_CHECKING

import pytest

from backfill.db import check_row_security
from backfill.errors import ConfigurationError, DatabaseError, SchemaError
from backfill.schema import check, install, installed_revision
from backfill.schema.facts import live_facts, our_facts, upstream_facts
from backfill.sql import quote_ident, with_schema

if TYPE_CHECKING:
    from tests.conftest import Database
    from tests.schema.conftest import Roles, Sql

OURS = ["applied dead_letter_queue", "applied to_jsonb", "applied workers", "applied add_job", "applied cancellations"]
ALL = ["installed Graphile Worker revision 20", *OURS]

OWNERS = """
select distinct pg_get_userbyid(owner)
from (
    select relowner from pg_class where relnamespace = $1::text::regnamespace
    union select proowner from pg_proc where pronamespace = $1::text::regnamespace
    union select typowner from pg_type where typnamespace = $1::text::regnamespace
    union select nspowner from pg_namespace where oid = $1::text::regnamespace
) as owners (owner)
"""

DROP_OURS = """
drop table graphile_worker.backfill_dlq, graphile_worker.backfill_workers, graphile_worker.backfill_cancellations,
    graphile_worker.backfill_migrations;
drop function graphile_worker.backfill_to_jsonb, graphile_worker.backfill_add_job;
"""

ANOTHER_BODY = """
create or replace function graphile_worker.complete_jobs(job_ids bigint[])
returns setof graphile_worker._private_jobs language sql
as $$ select * from graphile_worker._private_jobs where id = any(job_ids) $$
"""


async def forget_ours(sql: "Sql") -> None:
    """Have the schema as Graphile Worker itself installs it."""
    await sql.run(DROP_OURS)


async def upstream(sql: "Sql") -> dict[str, str]:
    """Everything about the objects that are not ours, bodies of functions included."""
    facts = {
        thing: fact
        for thing, fact in (await live_facts(sql.connection, sql.schema)).items()
        if "backfill_" not in thing
    }
    bodies = await sql.rows(
        "select oid::text || proname, prosrc from pg_proc where pronamespace = $1::text::regnamespace"
        " and proname not like 'backfill%'",
        quote_ident(sql.schema),
    )
    return facts | dict(map(tuple, bodies)) | {"rows": str(await sql.rows("select * from graphile_worker.migrations"))}


@pytest.mark.parametrize("schema", ["graphile_worker", "jobs", "od\"d na'me $body$ \\ x"])
async def test_everything_is_installed_and_then_left_alone(empty_db: "Database", schema: str) -> None:
    connection = await empty_db.connect()
    assert await install(connection, schema) == [f"created schema {schema}", *ALL]
    assert await install(connection, schema) == []
    assert await installed_revision(connection, schema) == 20
    assert await check(connection, schema) == []


async def test_an_existing_empty_schema_is_used(empty_db: "Database") -> None:
    connection = await empty_db.connect()
    await connection.execute("create table public.users (id int primary key)")
    assert await installed_revision(connection, "public") is None
    assert await install(connection, "public") == ALL


async def test_twenty_installers_at_once_all_succeed(empty_db: "Database") -> None:
    connections = [await empty_db.connect() for _ in range(20)]
    done = await asyncio.gather(*(install(connection, "jobs") for connection in connections))
    assert sorted(done, key=len)[:-1] == [[]] * 19
    assert await connections[0].fetchval("select count(*) from jobs.migrations") == 20


async def test_an_installer_that_meets_another_kind_of_installer_looks_again(empty_db: "Database") -> None:
    """Graphile Worker's own does not take our lock, so the schema can appear while we make it."""
    connection, theirs = await empty_db.connect(), await empty_db.connect()
    watcher = await empty_db.connect()
    transaction = theirs.transaction()
    await transaction.start()
    await install(theirs, "jobs")
    await theirs.execute(with_schema(DROP_OURS, "jobs"))
    # the advisory lock is held by their transaction, which a real one would not: ours waits for it
    ours = asyncio.create_task(install(connection, "jobs"))
    async with asyncio.timeout(30):
        blocked = False
        while not blocked:
            blocked = await watcher.fetchval(
                "select cardinality(pg_blocking_pids($1)) > 0", connection.get_server_pid()
            )
    await transaction.commit()
    assert await ours == OURS


async def test_a_rolled_back_transaction_leaves_nothing(empty_db: "Database") -> None:
    connection = await empty_db.connect()
    transaction = connection.transaction()
    await transaction.start()
    assert await install(connection, "jobs") == ["created schema jobs", *ALL]
    await transaction.rollback()
    assert await connection.fetchval("select to_regnamespace('jobs')") is None


@pytest.mark.parametrize(
    "as_found",
    [
        "delete from graphile_worker.migrations where id > 18",
        "delete from graphile_worker.migrations where id > 19",
        "select",
        """update graphile_worker.migrations set breaking = false where id > 18;
        create table graphile_worker._private_workers (id text primary key)""",
        "delete from graphile_worker.migrations where id = 5",
    ],
    ids=["node 18", "node 19", "node 20", "rust 20", "gap"],
)
async def test_a_schema_that_somebody_else_installed_is_accepted_as_it_is(sql: "Sql", as_found: str) -> None:
    await forget_ours(sql)
    await sql.run(as_found)
    await sql.run(ANOTHER_BODY)
    before = await upstream(sql)
    assert await install(sql.connection, sql.schema) == OURS
    assert await upstream(sql) == before
    assert await check(sql.connection, sql.schema) == []


@pytest.mark.parametrize(
    ("as_found", "complaint"),
    [
        ("delete from graphile_worker.migrations where id > 17", "revision 17; backfill works with 18 to 20"),
        (
            """delete from graphile_worker.migrations where id > 10;
            alter table graphile_worker.migrations drop column breaking;
            drop table graphile_worker._private_jobs cascade""",
            "revision 10; .*npx graphile-worker --schema-only",
        ),
        ("insert into graphile_worker.migrations values (21, now(), true)", "breaking revision 21; .*Upgrade backfill"),
        (
            "insert into graphile_worker.migrations values (21, now(), true), (22, now(), false)",
            "revision 22, with the breaking revision 21",
        ),
        ("drop function graphile_worker.remove_job", r"in part .* lacks function remove_job\(job_key text\)\."),
        ("alter table graphile_worker._private_jobs drop column flags cascade", "column _private_jobs.flags"),
        (
            "alter table graphile_worker._private_jobs alter payload drop default, alter payload type jsonb",
            "lacks column",
        ),
        ("drop view graphile_worker.jobs", "view jobs"),
        ("drop table graphile_worker._private_tasks cascade", "table _private_tasks"),
    ],
)
@pytest.mark.parametrize("ours", [True, False])
async def test_a_schema_that_does_not_fit_is_refused_untouched(
    sql: "Sql", as_found: str, complaint: str, ours: bool
) -> None:
    if not ours:
        await forget_ours(sql)
    await sql.run(as_found)
    before = await live_facts(sql.connection, sql.schema)
    with pytest.raises(SchemaError, match=complaint) as caught:
        await install(sql.connection, sql.schema)
    assert repr(sql.schema) in str(caught.value)
    assert await live_facts(sql.connection, sql.schema) == before


async def test_another_applications_table_of_migrations_is_not_taken_for_ours(empty_db: "Database") -> None:
    connection = await empty_db.connect()
    await connection.execute("create table public.migrations (id serial, migration text, batch int)")
    with pytest.raises(SchemaError, match="belongs to something else: use another schema"):
        await install(connection, "public")


async def test_a_name_that_is_taken_by_something_else_is_refused(empty_db: "Database") -> None:
    connection = await empty_db.connect()
    await connection.execute("create table public.jobs (id int primary key)")
    with pytest.raises(SchemaError, match=r'relation "jobs" already exists. Something else in it has a name'):
        await install(connection, "public")
    assert set(await live_facts(connection, "public")) == {
        "table jobs",
        "column jobs.id",
        "constraint jobs.jobs_pkey",
        "index jobs_pkey",
    }


@pytest.mark.parametrize(
    ("as_found", "warning"),
    [
        ("insert into graphile_worker.migrations values (21, now(), false)", "is at Graphile Worker revision 21"),
        (
            "alter table graphile_worker._private_jobs add column extra int",
            "unknown columns: column _private_jobs.extra",
        ),
        ("delete from graphile_worker.migrations", "records no revision"),
    ],
)
async def test_what_may_become_a_problem_is_warned_of(
    sql: "Sql", caplog: pytest.LogCaptureFixture, as_found: str, warning: str
) -> None:
    await sql.run(as_found)
    with caplog.at_level(logging.WARNING, "backfill"):
        assert await install(sql.connection, sql.schema) == []
    assert warning in caplog.text


@pytest.mark.parametrize(
    ("dropped", "again"),
    [
        ("drop table graphile_worker.backfill_dlq", OURS[:1]),
        ("drop function graphile_worker.backfill_to_jsonb", OURS[1:2]),
        ("drop table graphile_worker.backfill_workers", OURS[2:3]),
        ("drop function graphile_worker.backfill_add_job", OURS[3:4]),
        ("drop table graphile_worker.backfill_cancellations", OURS[4:5]),
        ("drop table graphile_worker.backfill_migrations", OURS),
    ],
)
async def test_what_is_missing_of_ours_comes_back(sql: "Sql", dropped: str, again: list[str]) -> None:
    await sql.run(dropped)
    assert await install(sql.connection, sql.schema) == again
    assert await install(sql.connection, sql.schema) == []
    assert await check(sql.connection, sql.schema) == []


async def test_an_owner_gets_all_of_it_from_a_privileged_installer(empty_db: "Database", empty_roles: "Roles") -> None:
    owner = await empty_roles.make()
    connection = await empty_db.connect()
    me = await connection.fetchval("select current_user")
    async with connection.transaction():
        await install(connection, "jobs", owner=owner)
        assert await connection.fetchval("select current_user") == me
    assert [row[0] for row in await connection.fetch(OWNERS, "jobs")] == [owner]
    await connection.execute(f"set session authorization {quote_ident(owner)}")
    await check_row_security(connection, "jobs")
    assert await check(connection, "jobs") == []
    assert await connection.fetchval("select (jobs.add_job('t')).id") == 1


async def test_additions_belong_to_the_owner_of_the_tables(empty_db: "Database", empty_roles: "Roles") -> None:
    owner = await empty_roles.make()
    connection = await empty_db.connect()
    await install(connection, "jobs", owner=owner)
    await connection.execute(with_schema(DROP_OURS, "jobs"))
    assert await install(connection, "jobs") == OURS
    assert [row[0] for row in await connection.fetch(OWNERS, "jobs")] == [owner]


async def test_additions_belong_to_the_installer_where_it_cannot_become_the_owner(
    empty_db: "Database", empty_roles: "Roles"
) -> None:
    owner = await empty_roles.make()
    connection = await empty_db.connect()
    await install(connection, "jobs", owner=owner)
    await connection.execute(with_schema(DROP_OURS, "jobs"))
    role = await empty_roles.make(
        "grant all on schema jobs to {role}", "grant all on all tables in schema jobs to {role}"
    )
    await connection.execute(f"set session authorization {quote_ident(role)}")
    assert await install(connection, "jobs") == OURS
    assert {row[0] for row in await connection.fetch(OWNERS, "jobs")} == {owner, role}


async def test_a_role_without_the_right_to_install_may_use_what_is_installed(db: "Database", roles: "Roles") -> None:
    role = await roles.make(f"grant usage on schema {quote_ident(db.schema)} to {{role}}")
    await roles.superuser.execute(
        f"grant select on all tables in schema {quote_ident(db.schema)} to {quote_ident(role)}"
    )
    connection = await db.connect()
    await connection.execute(f"set session authorization {quote_ident(role)}")
    assert await install(connection, db.schema) == []
    with pytest.raises(
        DatabaseError, match=r"cannot install schema 'elsewhere': permission denied for database .*role may not"
    ):
        await install(connection, "elsewhere")


@pytest.mark.parametrize("name", ["", "x" * 64, "a\nb", "pg_jobs"])
async def test_an_impossible_name_is_refused(empty_db: "Database", name: str) -> None:
    with pytest.raises(ConfigurationError, match="schema name"):
        await install(await empty_db.connect(), name)


async def test_the_packaged_catalogues_are_what_an_installation_is(db: "Database") -> None:
    live = await live_facts(await db.connect(), db.schema)
    ours = {thing: fact for thing, fact in live.items() if "backfill_" in thing}
    assert ours == our_facts()
    assert {thing: fact for thing, fact in live.items() if thing not in ours} == upstream_facts()


async def test_the_ledgers_record_what_was_done(sql: "Sql") -> None:
    rows = await sql.rows("select id, breaking from graphile_worker.migrations order by id")
    assert [row["id"] for row in rows] == list(range(1, 21))
    assert [row["id"] for row in rows if row["breaking"]] == [1, 3, 11, 13, 14, 16, 19]
    ours = await sql.rows("select id, name from graphile_worker.backfill_migrations order by id")
    assert [tuple(row) for row in ours] == [
        (1, "dead_letter_queue"),
        (2, "to_jsonb"),
        (3, "workers"),
        (4, "add_job"),
        (5, "cancellations"),
    ]


async def test_a_lost_connection_is_a_database_error(empty_db: "Database") -> None:
    connection = await empty_db.connect()
    await connection.close()
    with pytest.raises(DatabaseError, match=r"cannot install schema 'jobs': .*closed"):
        await install(connection, "jobs")
