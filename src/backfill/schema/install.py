"""Installing a schema, and adding ours to one that is there.

One transaction under an advisory lock, so that any number of processes may try at once: the first installs, the others
find it done. Graphile Worker's own installer does not take our lock; when both install at once, one meets the other's
objects, and looks again.
"""

import logging

import asyncpg

from backfill.db import DRIVER_ERRORS, Connection, check_schema_name, quote_ident, translate
from backfill.db.names import DEFAULT_SCHEMA
from backfill.errors import SchemaError
from backfill.schema.ddl import LOCK_CLASS, graphile_ddl, ledger_ddl, migration_ddl
from backfill.schema.state import NEWEST_REVISION, State, look
from backfill.sql import text

logger = logging.getLogger(__name__)

# Somebody else was faster with an object of the same name.
_CLASHES = (
    asyncpg.UniqueViolationError,
    asyncpg.DuplicateSchemaError,
    asyncpg.DuplicateTableError,
    asyncpg.DuplicateObjectError,
    asyncpg.DuplicateFunctionError,
)
_TRIES = 3


async def install(connection: Connection, schema: str = DEFAULT_SCHEMA, owner: str | None = None) -> list[str]:
    """Install what is missing of the schema; a complete one is left as it is, whoever installed it.

    Objects of Graphile Worker are only made where there are none: an existing schema is never altered or upgraded.

    Args:
        connection: A connection; when it is in a transaction, everything happens in that.
        schema: The schema's name, unquoted.
        owner: The role that shall own what is made; the connection's role must be able to become it. By default the
            connection's own role, or for additions to an existing schema the owner of its tables if it can become that.

    Returns:
        What was done, in words; empty when nothing was missing.

    Raises:
        SchemaError: The schema is too old, too new, half there, or belongs to something else.
        DatabaseError: The role lacks a right, or the database failed.
        ConfigurationError: PostgreSQL cannot have a schema of that name.
    """
    check_schema_name(schema)
    try:
        state = await look(connection, schema)
        _judge(state)
        for _ in range(_TRIES):
            if state.is_complete:
                return []
            try:
                return await _install_locked(connection, schema, owner)
            except _CLASHES as error:
                clash = error
                state = await look(connection, schema)
    except DRIVER_ERRORS as error:
        raise translate(error, f"cannot install schema {schema!r}") from error
    raise SchemaError(
        f"cannot install schema {schema!r}: {clash}. Something else in it has a name that is needed; use another schema",
    ) from clash


async def installed_revision(connection: Connection, schema: str = DEFAULT_SCHEMA) -> int | None:
    """The revision that the schema's own ledger records; None when there is no schema, no ledger, or no row in it.

    It tells less than it seems: revisions 19 and 20 are other things to Graphile Worker and to its Rust port.
    """
    return (await look(connection, schema)).revision


def _judge(state: State) -> None:
    state.refuse()
    for warning in state.warnings():
        logger.warning("%s", warning)


async def _install_locked(connection: Connection, schema: str, owner: str | None) -> list[str]:
    # What others committed while we waited for the lock must be seen.
    inside = connection.is_in_transaction()
    async with connection.transaction() if inside else connection.transaction(isolation="read_committed"):
        await connection.execute(text("lock_schema_changes", schema), LOCK_CLASS, schema)
        state = await look(connection, schema)
        state.refuse()
        if state.is_complete:
            return []
        before = await connection.fetchval(text("current_role_setting", schema))
        done = await _make_schema(connection, schema, owner)
        if not state.has_upstream:
            await connection.execute(graphile_ddl(schema))
            done.append(f"installed Graphile Worker revision {NEWEST_REVISION}")
        await connection.execute(ledger_ddl(schema))
        for step in state.pending:
            await connection.execute(migration_ddl(step, schema))
            await connection.execute(text("record_migration", schema), step.id, step.name)
            done.append(f"applied {step.name}")
        await connection.fetchval(text("become_role", schema), before)
    return done


async def _make_schema(connection: Connection, schema: str, owner: str | None) -> list[str]:
    """Have the schema, and from here on the role that shall own what is made in it."""
    done = []
    found = await connection.fetchrow(text("schema_owners", schema), schema)
    if found is None:
        authorization = f" authorization {quote_ident(owner)}" if owner else ""
        await connection.execute(f"create schema {quote_ident(schema)}{authorization}")
        done.append(f"created schema {schema}")
    elif owner is None and found["jobs_owner_usable"] and found["jobs_owner"] != found["current_role_name"]:
        # Who works on the tables must be able to work on ours.
        owner = found["jobs_owner"]
    if owner is not None:
        await connection.fetchval(text("become_role", schema), owner)
    return done
