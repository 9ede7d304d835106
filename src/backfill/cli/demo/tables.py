"""The demo's schema: its own, marked as such, with a queue and three tables in it."""

import contextlib
import logging
from collections.abc import AsyncIterator
from functools import cache
from importlib.resources import files
from typing import Final

import asyncpg

from backfill.db import Connection, connect
from backfill.errors import ConfigurationError, SchemaError
from backfill.schema import install
from backfill.sql import parse, with_schema

logger = logging.getLogger(__name__)

SCHEMA: Final = "backfill_demo"
_MARK: Final = "made by backfill demo"  # as in mark_schema


@cache
def sql(name: str, schema: str) -> str:
    """The demo's statement of that name for a schema."""
    source = files("backfill.cli.demo").joinpath("demo.sql").read_text(encoding="utf-8")
    return next(with_schema(found.sql, schema) for found in parse(source, "demo.sql") if found.name == name)


@contextlib.asynccontextmanager
async def demo_schema(url: str, schema: str, *, keep: bool) -> AsyncIterator[Connection]:
    """Make the demo's schema, in place of the one that an earlier demo left; drop it at the end.

    Args:
        url: The database.
        schema: The schema's name.
        keep: Leave it as it is in the end.

    Returns:
        A connection for the demo's own looks at its tables.

    Raises:
        SchemaError: There is a schema of that name that no demo made, or another demo is at work in it.
        ConfigurationError: The URL leads through a connection pooler.
    """
    connection = await connect(url)
    try:
        if connection.has_pooler:
            raise ConfigurationError(
                "the demo holds a lock of its session while it runs, which a connection pooler does not carry: give it a"
                " direct address of the database"
            )
        await _make(connection, schema)
        try:
            yield connection
        finally:
            if not keep:
                await _drop(connection, schema)
    finally:
        await connection.close()


async def _make(connection: Connection, schema: str) -> None:
    if not await connection.fetchval(sql("lock_demo", schema), schema):
        raise SchemaError(f"another backfill demo is at work in schema {schema!r} of this database: let it end first")
    found = await connection.fetchrow(sql("find_schema", schema), schema)
    if found is not None and found["comment"] != _MARK:
        raise SchemaError(
            f"this database has a schema {schema!r} that no backfill demo made, so it is left alone: use another database,"
            " or another name by --schema"
        )
    async with connection.transaction():
        if found is not None:
            await connection.execute(sql("drop_schema", schema))
        await connection.execute(sql("make_schema", schema))
        await connection.execute(sql("mark_schema", schema))
        await install(connection, schema)
        for table in ("make_files", "make_totals", "make_notes"):
            await connection.execute(sql(table, schema))


async def _drop(connection: Connection, schema: str) -> None:
    try:
        await connection.execute(sql("drop_schema", schema))
    except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        logger.warning("the demo's schema %s could not be dropped; the next demo replaces it: %s", schema, error)
