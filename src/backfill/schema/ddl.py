"""The DDL that is installed, printed and shipped, all from the same files (``sql/schema``)."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from itertools import count
from typing import Final

from backfill.db.names import check_schema_name, quote_ident
from backfill.sql import with_schema

_BODY: Final = "$body$"
_GRAPHILE_FILES: Final = ("tables", "add_jobs", "manage_jobs")


@dataclass(frozen=True, slots=True)
class Migration:
    """One step of our own, recorded in ``backfill_migrations``; running it twice does no harm.

    Attributes:
        id: Its number in the ledger; never reused.
        name: The file below ``sql/schema/backfill``.
        makes: The object by whose absence one sees that it has to run, as in ``facts``.
    """

    id: int
    name: str
    makes: str


MIGRATIONS: Final[Sequence[Migration]] = (
    Migration(1, "dead_letter_queue", "table backfill_dlq"),
    Migration(2, "to_jsonb", "function backfill_to_jsonb(payload json)"),
    Migration(3, "workers", "table backfill_workers"),
    Migration(
        4,
        "add_job",
        "function backfill_add_job(identifier text, payload json, queue_name text, run_at timestamp with time zone,"
        " max_attempts integer, job_key text, priority integer, flags text[], job_key_mode text)",
    ),
    Migration(5, "cancellations", "table backfill_cancellations"),
)


def graphile_ddl(schema: str) -> str:
    """What makes Graphile Worker's objects, at revision 20, in an existing schema that has none of them."""
    return "\n\n".join(_render(f"graphile/{name}", schema) for name in _GRAPHILE_FILES)


def upgrade_ddl(revision: int, schema: str) -> str:
    """What takes Graphile Worker's objects to a revision from the one before it; nothing for 19, which is only a mark.

    Revision 20 is other bodies of the functions that add jobs: ours, with the signatures and the meaning of upstream's.
    """
    return _render("graphile/add_jobs", schema) if revision == 20 else ""


def ledger_ddl(schema: str) -> str:
    """What makes the ledger of our own migrations, if it is not there."""
    return _render("backfill/ledger", schema)


def migration_ddl(migration: Migration, schema: str) -> str:
    """What one migration of ours does."""
    return _render(f"backfill/{migration.name}", schema)


def script(schema: str) -> str:
    """All the DDL as one script for psql: safe to run again, all or nothing.

    Graphile Worker's objects are made only if the schema has no table of jobs; nothing that somebody else installed is
    replaced, and a schema at revision 18 or 19 stays there (``install`` upgrades it).

    Args:
        schema: The schema's name, unquoted.

    Raises:
        ConfigurationError: PostgreSQL cannot have a schema of that name.
    """
    name = quote_ident(check_schema_name(schema))
    graphile = graphile_ddl(schema)
    tag = _free_tag("install", graphile)
    table = _literal(f"{name}._private_jobs")
    install = (
        f"perform pg_advisory_xact_lock({LOCK_CLASS}, hashtext({_literal(schema)}));\n\n"
        f"if to_regnamespace({_literal(name)}) is null then\n    create schema {name};\nend if;\n\n"
        f"if to_regclass({table}) is null then\n\n{graphile}\n\nend if;"
    )
    parts = [
        f"-- backfill: the schema {name}, Graphile Worker revision 20 and what backfill adds.",
        "-- Objects of Graphile Worker stay as they are; backfill schema install upgrades them from revision 18 or 19.",
        "begin;",
        "set local client_min_messages = warning;",
        f"do {tag}\nbegin\n{install}\nend;\n{tag};",
        ledger_ddl(schema),
    ]
    for migration in MIGRATIONS:
        parts.append(migration_ddl(migration, schema))
        row = f"({migration.id}, {_literal(migration.name)})"
        parts.append(f"insert into {name}.backfill_migrations (id, name) values {row} on conflict do nothing;")  # noqa: S608 - quoted
    parts.append("commit;")
    return "\n\n".join(parts) + "\n"


def dlq_script() -> str:
    """``docs/dlq_schema.sql``: the dead letter queue alone, for ``psql -f`` and for other migration tools."""
    return _source("backfill/psql_header") + "\n" + _source("backfill/dead_letter_queue")


# Two numbers name an advisory lock: this one says that the lock is ours, the other is the hash of the schema's name.
LOCK_CLASS: Final = 1_650_549_612


@cache
def _source(name: str) -> str:
    return files("backfill.sql").joinpath("schema").joinpath(f"{name}.sql").read_text(encoding="utf-8")


def _render(name: str, schema: str) -> str:
    return with_schema(_source(name).replace(_BODY, _free_tag("body", schema)), schema, comments=True).strip()


def _free_tag(word: str, *texts: str) -> str:
    """A dollar quote that occurs in none of the texts."""
    tags = (f"${word}{number or ''}$" for number in count())
    return next(tag for tag in tags if not any(tag in text for text in texts))


def _literal(value: str) -> str:
    escaped = value.replace("'", "''")
    return f"E'{escaped.replace(chr(92), chr(92) * 2)}'" if "\\" in value else f"'{escaped}'"
