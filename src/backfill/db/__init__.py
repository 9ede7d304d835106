"""Connections to PostgreSQL: pools, single connections, LISTEN, and what their errors mean."""

from backfill.db.errors import DRIVER_ERRORS, is_connection_error, remedy, translate
from backfill.db.listen import Listener
from backfill.db.names import DEFAULT_SCHEMA, check_schema_name, quote_ident
from backfill.db.pool import (
    APPLICATION_NAME,
    WORKER_SETTINGS,
    Connection,
    Pool,
    connect,
    mark_unchanged,
    open_pool,
    target,
)
from backfill.db.security import check_row_security

__all__ = [
    "APPLICATION_NAME",
    "DEFAULT_SCHEMA",
    "DRIVER_ERRORS",
    "WORKER_SETTINGS",
    "Connection",
    "Listener",
    "Pool",
    "check_row_security",
    "check_schema_name",
    "connect",
    "is_connection_error",
    "mark_unchanged",
    "open_pool",
    "quote_ident",
    "remedy",
    "target",
    "translate",
]
