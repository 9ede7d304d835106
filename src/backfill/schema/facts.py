"""What a schema consists of: the live one, and what the packaged catalogues say it should be.

A fact is a pair: the object (``column _private_jobs.id``) and its properties in words (``bigint not null …``). Facts do
not hold the schema's name, and leave out bodies of functions, owners and grants.

``catalog.json`` is Graphile Worker's catalogue at revision 20; ``ours.json`` holds the facts about what backfill adds.
"""

import json
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.resources import files
from typing import Any

from backfill.db import Connection
from backfill.sql import text

Facts = dict[str, str]


async def live_facts(connection: Connection, schema: str) -> Facts:
    """The facts of the schema in the database; empty when there is no such schema, or nothing in it."""
    transaction = connection.transaction()
    await transaction.start()
    try:
        await connection.execute(text("empty_search_path", schema))
        rows = await connection.fetch(text("schema_facts", schema), schema)
    finally:
        await transaction.rollback()
    return {row["object"]: row["fact"] for row in rows}


@cache
def upstream_facts() -> Mapping[str, str]:
    """The facts of Graphile Worker's own objects at revision 20. Shared: do not change it."""
    catalogue = json.loads(files("backfill.schema").joinpath("catalog.json").read_text(encoding="utf-8"))
    return dict(_from_catalogue(catalogue))


@cache
def our_facts() -> Mapping[str, str]:
    """The facts of the objects that backfill adds. Shared: do not change it."""
    facts: Facts = json.loads(files("backfill.schema").joinpath("ours.json").read_text(encoding="utf-8"))
    return facts


def _from_catalogue(catalogue: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for name, table in catalogue["tables"].items():
        yield f"table {name}", "row level security" if table["rls_enabled"] else ""
        yield from _columns(name, table["columns"])
        for constraint, properties in table["constraints"].items():
            yield f"constraint {name}.{constraint}", properties["definition"]
        for index, properties in table["indexes"].items():
            yield f"index {index}", _index(name, properties)
    for name, view in catalogue["views"].items():
        yield f"view {name}", ""
        yield from _columns(name, view["columns"])
    for name, composite in catalogue["types"].items():
        yield f"type {name}", ""
        yield from _columns(name, composite["attributes"])
    for name, sequence in catalogue["sequences"].items():
        yield f"sequence {name}", sequence["type"]
    for name, function in catalogue["functions"].items():
        fact = f"{function['arguments']} returns {function['returns']} {function['language']} {function['volatility']}"
        fact += " strict" if function["strict"] else ""
        fact += " security definer" if function["security_definer"] else ""
        yield f"function {name}", fact


def _columns(table: str, columns: list[Mapping[str, Any]]) -> Iterator[tuple[str, str]]:
    for column in columns:
        fact = column["type"]
        if not column.get("nullable", True):
            fact += " not null"
        if column.get("identity") == "always":
            fact += " generated always as identity"
        if "generated_stored" in column:
            fact += f" generated as {column['generated_stored']}"
        elif "default_expr" in column:
            fact += f" default {column['default_expr']}"
        yield f"column {table}.{column['name']}", fact


def _index(table: str, index: Mapping[str, Any]) -> str:
    unique = "unique " if index["is_unique"] else ""
    included = f" include ({', '.join(index['included_columns'])})" if "included_columns" in index else ""
    predicate = f" where {index['predicate']}" if "predicate" in index else ""
    return f"{unique}{index['method']} on {table} ({', '.join(index['key_columns'])}){included}{predicate}"
