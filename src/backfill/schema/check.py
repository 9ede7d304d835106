"""Comparing a schema with what it should be, and our statements with the schema."""

from collections.abc import Iterator, Mapping

import asyncpg

from backfill.db import DRIVER_ERRORS, Connection, check_row_security, check_schema_name, translate
from backfill.errors import SchemaError
from backfill.schema.facts import our_facts, upstream_facts
from backfill.schema.state import look
from backfill.sql import Statement, statements, with_schema


async def check(connection: Connection, schema: str) -> list[str]:
    """Everything that is not as it should be, in words for an operator; empty when all is well.

    Compares the live objects with the packaged catalogues, has the server prepare every statement that backfill sends,
    compares the types of parameters and results with what the code binds and reads, and sees whether the connection's
    role can work on the tables. Changes nothing. Objects that others added are no fault, but columns on Graphile
    Worker's tables are.

    Args:
        connection: A connection as the role that is to work.
        schema: The schema's name, unquoted.

    Raises:
        DatabaseError: The database failed.
        ConfigurationError: PostgreSQL cannot have a schema of that name.
    """
    check_schema_name(schema)
    try:
        state = await look(connection, schema)
        if not state.has_upstream:
            return [f"schema {schema!r} is not installed in this database: run backfill schema install"]
        found: list[str] = []
        try:
            state.refuse()
            found += state.revision_warnings()
            await check_row_security(connection, schema)
        except SchemaError as error:
            found.append(str(error))
        found += differences(upstream_facts(), state.facts)
        found += [f"{thing} is unknown" for thing in state.unknown_columns()]
        found += [
            f"revision {revision} of Graphile Worker was not applied: run backfill schema install"
            for revision, _ in state.upgrades
        ]
        found += [f"migration {step.name} was not applied: run backfill schema install" for step in state.pending]
        found += differences(our_facts(), state.facts)
        found += [
            problem
            for statement in statements().values()
            for problem in await prepare_problems(connection, statement, schema)
        ]
    except DRIVER_ERRORS as error:
        raise translate(error, f"cannot check schema {schema!r}") from error
    return found


def differences(expected: Mapping[str, str], live: Mapping[str, str]) -> Iterator[str]:
    """What the live facts lack or have otherwise, each in words; more than is expected is no difference."""
    for thing, fact in sorted(expected.items()):
        if thing not in live:
            yield f"{thing} is missing"
        elif live[thing] != fact:
            yield f"{thing} is {live[thing]!r}, not {fact!r}"


async def prepare_problems(connection: Connection, statement: Statement, schema: str) -> list[str]:
    """What is wrong between a statement, the installed schema, and what the statement declares; empty when nothing is."""
    where = f"statement {statement.name} ({statement.file})"
    try:
        prepared = await connection.prepare(with_schema(statement.sql, schema))
    except asyncpg.PostgresError as error:
        return [f"{where} cannot be prepared: {error}"]
    problems = []
    takes = tuple(parameter.name for parameter in prepared.get_parameters())
    declared = tuple(kind for _, kind in statement.takes)
    if takes != declared:
        problems.append(f"{where} takes {_listed(takes)}, but declares {_listed(declared)}")
    gives = tuple((attribute.name, attribute.type.name) for attribute in prepared.get_attributes())
    if gives != statement.gives:
        shown, said = ([f"{name} {kind}" for name, kind in columns] for columns in (gives, statement.gives))
        problems.append(f"{where} gives {_listed(shown)}, but declares {_listed(said)}")
    return problems


def _listed(words: "tuple[str, ...] | list[str]") -> str:
    return ", ".join(words) or "nothing"
