"""Errors are told in a line or two, with exit code 1; a wrong command line has 2."""

from typing import TYPE_CHECKING

from tests.cli.conftest import CommandLine

if TYPE_CHECKING:
    from tests.conftest import Database

NOWHERE = "postgresql://user:secret@127.0.0.1:1/nothing"


async def test_without_a_database_the_demo_is_named(bare_cli: CommandLine) -> None:
    done = await bare_cli("jobs", "list", code=1)
    assert "set DATABASE_URL" in done.err
    assert "backfill demo" in done.err
    assert done.err.count("\n") == 1


async def test_a_refused_connection(bare_cli: CommandLine) -> None:
    done = await bare_cli("jobs", "list", "--database-url", NOWHERE, "--json", code=1)
    assert "cannot connect to database 'nothing' at 127.0.0.1:1" in done.err
    assert "is PostgreSQL running there" in done.err
    assert "secret" not in done.err + done.out
    assert done.err.count("\n") == 1
    assert done.document["error"]["type"] == "DatabaseError"


async def test_a_traceback_only_when_asked_for(bare_cli: CommandLine) -> None:
    done = await bare_cli("jobs", "list", DATABASE_URL=NOWHERE, BACKFILL_LOG_LEVEL="debug", code=1)
    assert "Traceback" in done.err
    done = await bare_cli("jobs", "list", DATABASE_URL=NOWHERE, code=1)
    assert "Traceback" not in done.err


async def test_a_missing_schema(bare_cli: CommandLine, empty_db: "Database") -> None:
    done = await bare_cli("jobs", "list", "--database-url", empty_db.dsn, code=1)
    assert "'graphile_worker' is not installed" in done.err
    assert "backfill schema install" in done.err


async def test_the_option_comes_before_the_environment(cli: CommandLine, db: "Database") -> None:
    done = await cli(
        "jobs",
        "list",
        "--schema",
        db.schema,
        "--database-url",
        db.dsn,
        DATABASE_URL=NOWHERE,
        GRAPHILE_WORKER_SCHEMA="x",
    )
    assert done.out == "no jobs\n"


async def test_wrong_command_lines(bare_cli: CommandLine) -> None:
    assert "No such command" in (await bare_cli("nonsense", code=2)).err
    assert "Usage: backfill" in (await bare_cli("--help")).out
    assert "is not a valid integer" in (await bare_cli("jobs", "show", "one", code=2)).err
    assert (await bare_cli("--version")).out.startswith("backfill, version ")


async def test_a_bad_log_level_and_a_bad_schema_name(bare_cli: CommandLine) -> None:
    done = await bare_cli("schema", "print", BACKFILL_LOG_LEVEL="loud", code=1)
    assert "there is no log level 'loud'" in done.err
    done = await bare_cli("schema", "print", "--schema", "pg_mine", code=1)
    assert "begin with pg_" in done.err
    done = await bare_cli("schema", "print", "--schema", "", code=1)
    assert "empty" in done.err


async def test_an_embedded_url_needs_a_folder_with_data(bare_cli: CommandLine) -> None:
    done = await bare_cli("jobs", "list", "--database-url", f"embedded://{bare_cli.folder}/none", code=1)
    assert "no embedded PostgreSQL server's data" in done.err
    assert not (bare_cli.folder / "none").exists()
    done = await bare_cli("jobs", "list", "--database-url", "embedded:folder", code=1)
    assert "three slashes" in done.err


async def test_what_the_encoding_cannot_hold_ends_no_command(cli: CommandLine) -> None:
    await cli("enqueue", "grüße")
    done = await cli("jobs", "list", PYTHONIOENCODING="ascii")
    assert "gr\\xfc\\xdfe" in done.out
