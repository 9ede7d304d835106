"""Installing, checking and printing the schema. See ``docs/database.md`` for what an operator needs to know."""

from backfill.schema.check import check
from backfill.schema.ddl import dlq_script, script
from backfill.schema.install import install, installed_revision, open_schema
from backfill.schema.state import is_familiar

__all__ = ["check", "dlq_script", "install", "installed_revision", "is_familiar", "open_schema", "script"]
