"""Installing a schema, and adding ours to one that is there.

One transaction under an advisory lock, so that any number of processes may try at once: the first installs, the others
find it done. Graphile Worker's own installer does not take our lock, and commits each of its revisions by itself. When both
install at once, one meets the other's objects, and looks again; a schema below revision 18 that has just moved is waited for.
"""

import asyncio
import logging
import time
from typing import Final

import asyncpg

from backfill.db import DRIVER_ERRORS, Connection, check_row_security, check_schema_name, quote_ident, translate
from backfill.db.names import DEFAULT_SCHEMA
from backfill.errors import SchemaError
from backfill.schema.ddl import LOCK_CLASS, graphile_ddl, ledger_ddl, migration_ddl, upgrade_ddl
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
_TRIES: Final = 10

_PATIENCE: Final = 5.0  # seconds without progress after which another's installation is taken for abandoned
_BETWEEN_LOOKS: Final = 0.05


class _UnfinishedError(Exception):
    """Somebody else is installing."""


async def install(connection: Connection, schema: str = DEFAULT_SCHEMA, owner: str | None = None) -> list[str]:
    """Install what is missing of the schema; a complete one is left as it is, whoever installed it.

    Objects of Graphile Worker are made where there are none. Its own schema at revision 18 or 19 is upgraded to 20, as it would
    do itself, which stops workers of its releases before 0.17. Nothing else that exists is altered.

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
    done, _ = await _install(connection, check_schema_name(schema), owner)
    return done


async def open_schema(connection: Connection, schema: str = DEFAULT_SCHEMA, *, installing: bool) -> State:
    """Find that backfill can work with the schema, installing it if asked to; how far it then is.

    Args:
        connection: A connection as the role that is to work.
        schema: The schema's name, unquoted.
        installing: Whether to ``install`` what is missing.

    Raises:
        SchemaError: As for ``install``; or it is not installed, or row-level security hides its jobs from the role.
        DatabaseError: As for ``install``.
        ConfigurationError: PostgreSQL cannot have a schema of that name.
    """
    check_schema_name(schema)
    if installing:
        done, state = await _install(connection, schema, None)
    try:
        if not installing or done:
            state = await look(connection, schema)
            state.refuse()
        if not installing:
            _warn(state)
        await check_row_security(connection, schema)
    except DRIVER_ERRORS as error:
        raise translate(error, f"cannot open schema {schema!r}") from error
    return state


async def _install(connection: Connection, schema: str, owner: str | None) -> tuple[list[str], State]:
    """``install``; what was done, and the state before it."""
    clashes = 0
    try:
        while True:
            state = await _settled(connection, schema)
            state.refuse()
            if clashes == 0:
                _warn(state)
            if state.is_complete:
                return [], state
            try:
                return await _install_locked(connection, schema, owner), state
            except _UnfinishedError:
                continue
            except _CLASHES as error:
                clashes += 1
                if clashes == _TRIES:
                    raise SchemaError(
                        f"cannot install schema {schema!r}: {error}. Something else in it has a name that is needed; use another"
                        " schema",
                    ) from error
    except DRIVER_ERRORS as error:
        raise translate(error, f"cannot install schema {schema!r}") from error


async def _settled(connection: Connection, schema: str) -> State:
    """The state, once no installation of somebody else's seems to be under way."""
    progress, until = -1, 0.0
    while True:
        state = await look(connection, schema)
        if not state.is_unfinished:
            return state
        if (state.revision or 0) != progress:
            progress, until = state.revision or 0, time.monotonic() + _PATIENCE
        elif time.monotonic() > until:
            return state
        await asyncio.sleep(_BETWEEN_LOOKS)


async def installed_revision(connection: Connection, schema: str = DEFAULT_SCHEMA) -> int | None:
    """The revision that the schema's own ledger records; None when there is no schema, no ledger, or no row in it.

    It tells less than it seems: revisions 19 and 20 are other things to Graphile Worker and to its Rust port.
    """
    return (await look(connection, schema)).revision


def _warn(state: State) -> None:
    for warning in state.warnings():
        logger.warning("%s", warning)


async def _install_locked(connection: Connection, schema: str, owner: str | None) -> list[str]:
    # What others committed while we waited for the lock must be seen.
    inside = connection.is_in_transaction()
    async with connection.transaction() if inside else connection.transaction(isolation="read_committed"):
        await connection.execute(text("lock_schema_changes", schema), LOCK_CLASS, schema)
        state = await look(connection, schema)
        if state.is_unfinished:
            raise _UnfinishedError
        state.refuse()
        if state.is_complete:
            return []
        before = await connection.fetchval(text("current_role_setting", schema))
        done = await _make_schema(connection, schema, owner)
        done += await _upgrade(connection, state)
        if not state.has_upstream:
            await connection.execute(graphile_ddl(schema))
            done.append(f"installed Graphile Worker revision {NEWEST_REVISION}")
        if state.pending:
            await connection.execute(ledger_ddl(schema))
        for step in state.pending:
            await connection.execute(migration_ddl(step, schema))
            await connection.execute(text("record_migration", schema), step.id, step.name)
            done.append(f"applied {step.name}")
        await connection.fetchval(text("become_role", schema), before)
    return done


async def _upgrade(connection: Connection, state: State) -> list[str]:
    """Apply what revisions are missing; left out, with a warning, when the role does not own what they change."""
    if not state.upgrades:
        return []
    row = await connection.fetchrow(text("schema_owners", state.schema), state.schema)
    if row is None or row["jobs_owner"] != row["current_role_name"]:
        logger.warning(
            "schema %r stays at Graphile Worker revision %d, with which backfill works: only the owner of its objects can"
            " upgrade it",
            state.schema,
            state.revision,
        )
        return []
    done = []
    for revision, breaking in state.upgrades:
        await connection.execute(text("record_revision", state.schema), revision, breaking)
        if statements := upgrade_ddl(revision, state.schema):
            await connection.execute(statements)
        done.append(f"upgraded Graphile Worker's objects to revision {revision}")
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
