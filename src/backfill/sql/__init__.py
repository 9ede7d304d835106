"""Every statement that backfill sends, by name.

The ``.sql`` files of this folder hold named statements and write the schema as ``graphile_worker``, so that each runs in
psql as it stands:

    -- name: queue_of_job
    -- The queue's name; no row when the job has none.
    -- takes: job_id int8
    -- gives: queue_name text
    select …

A piece that several statements share is written once, as a fragment (see ``backfill.sql.fragments``).
``takes`` and ``gives`` are what the Python side binds and reads, in PostgreSQL's short type names; the SQL check prepares
every statement on an installed schema and compares. The DDL is in the folder ``schema``.
"""

from backfill.sql.loader import Statement, UnknownStatementError, parse, statement, statements, text
from backfill.sql.quoting import quote_ident, with_schema

__all__ = [
    "Statement",
    "UnknownStatementError",
    "parse",
    "quote_ident",
    "statement",
    "statements",
    "text",
    "with_schema",
]
