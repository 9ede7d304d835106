"""How far a schema is: absent, complete, or something that must not be touched.

What is there is judged by its objects and their signatures. The number that Graphile Worker's ledger records only rules
schemas out: revisions 19 and 20 mean one thing to Graphile Worker and another to its Rust port, and both are fine.

A schema at revision 18 or 19 is upgraded to 20 if it is Graphile Worker's own, which shows in the functions that the upgrade
replaces: their bodies are those of its releases. Bodies that are not known (the Rust port's, or somebody's own) stay, and
backfill works with them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from backfill.db import Connection
from backfill.errors import SchemaError
from backfill.schema.ddl import MIGRATIONS, Migration
from backfill.schema.facts import live_facts, upstream_facts
from backfill.sql import text

OLDEST_REVISION: Final = 18
NEWEST_REVISION: Final = 20

# Those of the revisions that may have to be applied here that stop workers which do not know them.
_BREAKING: Final = frozenset({19})

# The bodies at revisions 18 and 19, in all releases of Graphile Worker from 0.16.0 to 0.17.3, as function_fingerprints gives them.
_BODIES_BEFORE_20: Final = {
    "add_job": "f28a3b1a3709af8c040fa2b85fa897b5",
    "add_jobs": "7db0e9dc7b29d34e3702446b194dbb6d",
}

_RECENT: Final = 10.0  # seconds for which an unfinished schema is taken for one that is being installed

_SLOWER: Final = "Jobs are added by add_job alone, one by one"

# A schema without any of these kinds of objects of Graphile Worker is nobody's; indexes and the like share their names
# with those of many applications.
_TELLING_KINDS: Final = ("table ", "view ", "type ", "function ")


@dataclass(frozen=True, slots=True)
class State:
    """What a look at a schema found.

    Attributes:
        schema: Its name.
        facts: Everything in it.
        revision: The greatest revision in Graphile Worker's ledger; None without one.
        breaking_revision: The greatest breaking one; None without one.
        pending: The migrations of ours that have to run.
        upgrades: The revisions of Graphile Worker that have to be applied, each with whether it is breaking.
        recorded_ago: Seconds since a revision was recorded last; None without one.
    """

    schema: str
    facts: Mapping[str, str]
    revision: int | None
    breaking_revision: int | None
    pending: Sequence[Migration]
    upgrades: Sequence[tuple[int, bool]] = ()
    recorded_ago: float | None = None

    @property
    def has_upstream(self) -> bool:
        """Whether any object of Graphile Worker is there."""
        return any(thing in self.facts for thing in upstream_facts() if thing.startswith(_TELLING_KINDS))

    @property
    def is_complete(self) -> bool:
        """Whether there is nothing to install."""
        return self.has_upstream and not self.pending and not self.upgrades

    @property
    def is_unfinished(self) -> bool:
        """Whether it looks as if Graphile Worker were installing it at this moment: it commits each revision by itself."""
        if "column migrations.ts" not in self.facts or (self.revision or 0) >= OLDEST_REVISION:
            return False
        if self.recorded_ago is None:  # it begins with an empty ledger
            return bool(self.missing())
        return self.recorded_ago < _RECENT

    @property
    def is_familiar(self) -> bool:
        """Whether the tables are known, so that statements other than Graphile Worker's functions may add rows to them."""
        return (self.revision or 0) <= NEWEST_REVISION and not self.unknown_columns()

    def missing(self) -> list[str]:
        """The objects of Graphile Worker that nothing works without and that are not there, or of another type."""
        found = []
        for thing, fact in upstream_facts().items():
            live = self.facts.get(thing)
            if thing.startswith("column "):
                # A table that is missing is named once, not column by column.
                table = thing.removeprefix("column ").partition(".")[0]
                whole = any(f"{kind}{table}" in self.facts for kind in _TELLING_KINDS)
                if whole and (live is None or _type(live) != _type(fact)):
                    found.append(thing)
            elif thing.startswith(_TELLING_KINDS) and live is None:
                found.append(thing)
        return sorted(found)

    def unknown_columns(self) -> list[str]:
        """Columns of Graphile Worker's tables that its revision 20 has not."""
        known = upstream_facts()
        tables = tuple(thing.replace("table ", "column ", 1) + "." for thing in known if thing.startswith("table "))
        return sorted(thing for thing in self.facts if thing.startswith(tables) and thing not in known)

    def refuse(self) -> None:
        """Return if backfill can work with the schema, once what is pending has been applied.

        Raises:
            SchemaError: It is too old, too new, or only half there; the message says what to do.
        """
        name = repr(self.schema)
        if not self.has_upstream:
            return
        if self.revision is not None and self.revision < OLDEST_REVISION:
            raise SchemaError(
                f"schema {name} is at Graphile Worker revision {self.revision}; backfill works with {OLDEST_REVISION} to"
                f" {NEWEST_REVISION}. Stop its workers and upgrade it with Graphile Worker itself (npx graphile-worker"
                " --schema-only), or use another schema",
            )
        if self.breaking_revision is not None and self.breaking_revision > NEWEST_REVISION:
            raise SchemaError(
                f"schema {name} is at Graphile Worker revision {self.revision}, with the breaking revision"
                f" {self.breaking_revision}; this backfill knows up to {NEWEST_REVISION}, and going on would be unsafe."
                " Upgrade backfill, or use another schema",
            )
        missing = self.missing()
        if missing:
            raise SchemaError(
                f"schema {name} is only in part a Graphile Worker schema; it lacks {_some(missing)}. Either it belongs to"
                " something else: use another schema; or an installation was damaged: restore it or drop the schema",
            )

    def warnings(self) -> list[str]:
        """What the operator should know though backfill goes on."""
        found = self.revision_warnings()
        unknown = self.unknown_columns()
        if unknown and self.has_upstream:
            found.append(f"schema {self.schema!r} has unknown columns: {_some(unknown)}. {_SLOWER}")
        return found

    def revision_warnings(self) -> list[str]:
        """Those about the ledger."""
        if not self.has_upstream:
            return []
        if self.revision is None:
            said = (
                "records no revision in its table migrations: Graphile Worker (Node, Rust) would try to install it again and"
                " fail"
            )
        elif self.revision > NEWEST_REVISION:
            said = (
                f"is at Graphile Worker revision {self.revision}; this backfill knows up to {NEWEST_REVISION}. The revisions"
                f" since are not breaking. {_SLOWER}; look for an upgrade of backfill"
            )
        else:
            return []
        return [f"schema {self.schema!r} {said}"]


async def look(connection: Connection, schema: str) -> State:
    """Find out how far the schema is. Changes nothing, and works for any role that may read the ledgers."""
    facts = await live_facts(connection, schema)
    revision = breaking = recorded_ago = None
    if "column migrations.id" in facts and "column migrations.ts" in facts:
        row = await connection.fetchrow(text("schema_revision", schema))
        revision, recorded_ago = (None, None) if row is None else row
        if "column migrations.breaking" in facts:  # schemas of before revision 11 have no such column
            breaking = await connection.fetchval(text("schema_breaking_revision", schema))
    applied: set[int] = set()
    if "table backfill_migrations" in facts:
        applied = {row["id"] for row in await connection.fetch(text("ledger", schema))}
    pending = [step for step in MIGRATIONS if step.id not in applied or step.makes not in facts]
    upgrades = await _upgrades(connection, schema, revision, breaking)
    return State(schema, facts, revision, breaking, pending, upgrades, recorded_ago)


async def is_familiar(connection: Connection, schema: str) -> bool:
    """``State.is_familiar`` by itself, without looking at anything else."""
    columns = [thing.removeprefix("column ") for thing in upstream_facts() if thing.startswith("column ")]
    return bool(await connection.fetchval(text("tables_are_known", schema), schema, columns, NEWEST_REVISION))


async def _upgrades(
    connection: Connection, schema: str, revision: int | None, breaking: int | None
) -> list[tuple[int, bool]]:
    """The revisions that Graphile Worker's own schema lacks; none for one that is not its own."""
    if revision is None or not OLDEST_REVISION <= revision < NEWEST_REVISION:
        return []
    if revision in _BREAKING and breaking != revision:  # the Rust port's
        return []
    bodies = await connection.fetch(text("function_fingerprints", schema), schema)
    if {row["name"]: row["digest"] for row in bodies} != _BODIES_BEFORE_20:
        return []
    return [(missing, missing in _BREAKING) for missing in range(revision + 1, NEWEST_REVISION + 1)]


def _type(fact: str) -> str:
    for word in (" not null", " generated", " default"):
        fact = fact.split(word, 1)[0]
    return fact


def _some(things: Sequence[str]) -> str:
    shown = ", ".join(things[:4])
    return shown if len(things) <= 4 else f"{shown} and {len(things) - 4} more"
