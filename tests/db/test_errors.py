from typing import TYPE_CHECKING

import asyncpg
import pytest

from backfill.db import DRIVER_ERRORS, connect, is_connection_error, remedy, translate
from backfill.errors import BackfillError, DatabaseError, InvalidJob, SchemaError

if TYPE_CHECKING:
    from tests.conftest import Database


async def failure(connection: asyncpg.Connection, sql: str) -> asyncpg.PostgresError:
    with pytest.raises(asyncpg.PostgresError) as caught:
        await connection.execute(sql)
    return caught.value


async def test_a_backend_that_is_ended_is_a_lost_connection_and_so_is_the_next_use(empty_db: "Database") -> None:
    connection, other = await empty_db.connect(), await empty_db.connect()
    await other.execute("select pg_terminate_backend($1)", connection.get_server_pid())
    for _ in range(2):
        # asyncpg may not have read the server's farewell yet, may be in the middle of it, or have closed the connection
        with pytest.raises(DRIVER_ERRORS) as caught:
            await connection.execute("select 1")
        assert is_connection_error(caught.value)


async def test_a_backend_that_ends_itself_is_a_lost_connection(empty_db: "Database") -> None:
    error = await failure(await empty_db.connect(), "select pg_terminate_backend(pg_backend_pid())")
    assert is_connection_error(error)


async def test_a_refused_connection_counts_as_ours_too() -> None:
    with pytest.raises(DatabaseError) as caught:
        await connect("postgresql://someone@/x?host=/nowhere/at/all")
    assert is_connection_error(caught.value)
    assert not is_connection_error(DatabaseError("of our own"))


async def test_too_many_connections_will_pass(empty_db: "Database") -> None:
    connection = await empty_db.connect()
    await connection.execute(f"alter database {empty_db.name} connection limit 0")
    role = f"role_{empty_db.name}"
    await connection.execute(f"create role {role}")
    try:
        error = await failure(
            connection, f"set session authorization {role}; do $$ begin raise sqlstate '53300'; end $$"
        )
    finally:
        await connection.execute("reset session authorization")
        await connection.execute(f"drop role {role}")
    assert is_connection_error(error)
    assert "smaller pools" in str(remedy(error))


@pytest.mark.parametrize("sql", ["select 1/0", "nonsense", "select * from nothing", "do $$ begin raise 'x'; end $$"])
async def test_a_failed_statement_is_no_lost_connection(empty_db: "Database", sql: str) -> None:
    assert not is_connection_error(await failure(await empty_db.connect(), sql))


async def test_misuse_is_no_lost_connection(empty_db: "Database") -> None:
    connection = await empty_db.connect()
    with pytest.raises(asyncpg.InterfaceError) as caught:
        await connection.execute("select $1::int", "many", "arguments")
    assert not is_connection_error(caught.value)
    pool = await asyncpg.create_pool(empty_db.dsn, min_size=1, max_size=1)
    await pool.close()
    with pytest.raises(asyncpg.InterfaceError) as closed:
        await pool.fetchval("select 1")
    assert not is_connection_error(closed.value)


def test_other_exceptions_are_no_lost_connections() -> None:
    assert not is_connection_error(ValueError("connection closed"))
    assert is_connection_error(ConnectionResetError())
    assert is_connection_error(EOFError())


@pytest.mark.parametrize(
    ("sql", "kind", "advice"),
    [
        ("select * from missing", SchemaError, "install the schema: backfill schema install"),
        ("select missing()", SchemaError, "install the schema: backfill schema install"),
        ("select * from missing.missing", SchemaError, "install the schema: backfill schema install"),
        ("set transaction read only; create table t ()", DatabaseError, "use the primary's address"),
        ("set statement_timeout = 1; select pg_sleep(60)", DatabaseError, "longer than its time limit"),
    ],
)
async def test_an_error_says_what_was_being_done_and_what_to_do(
    empty_db: "Database", sql: str, kind: type[BackfillError], advice: str
) -> None:
    error = await failure(await empty_db.connect(), sql)
    ours = translate(error, "cannot do this")
    assert type(ours) is kind
    assert str(ours).startswith("cannot do this: ")
    assert advice in str(ours)


async def test_an_error_without_advice_keeps_detail_and_hint_on_its_line(empty_db: "Database") -> None:
    sql = "do $$ begin raise 'oops' using detail = 'because', hint = 'try'; end $$"
    ours = translate(await failure(await empty_db.connect(), sql), "cannot do this")
    assert str(ours) == "cannot do this: oops; DETAIL:  because; HINT:  try"


def test_an_error_of_ours_and_an_empty_one() -> None:
    given = InvalidJob("bad")
    assert translate(given, "cannot do this") is given
    assert str(translate(ConnectionResetError(), "cannot do this")) == "cannot do this: ConnectionResetError"
