"""Connections to PostgreSQL: pools, single connections, LISTEN, and what their errors mean."""

from backfill.db.borrow import Borrowed, close_pool
from backfill.db.errors import DRIVER_ERRORS, is_connection_error, overran, remedy, takes_no_writes, translate
from backfill.db.hosts import target
from backfill.db.keeper import Keeper
from backfill.db.limits import CALL, CLAIM, LISTEN, MAINTENANCE, RELEASE, Limit
from backfill.db.listen import Listener
from backfill.db.moments import moment, read_moments_as_numbers
from backfill.db.names import DEFAULT_SCHEMA, check_schema_name, quote_ident
from backfill.db.pool import (
    APPLICATION_NAME,
    SMALL_SETTINGS,
    WORKER_SETTINGS,
    Connection,
    Pool,
    PooledConnection,
    connect,
    mark_unchanged,
    open_pool,
)
from backfill.db.security import check_row_security
from backfill.db.session import Session
from backfill.db.start import check_writable, once_ready

__all__ = [
    "APPLICATION_NAME",
    "CALL",
    "CLAIM",
    "DEFAULT_SCHEMA",
    "DRIVER_ERRORS",
    "LISTEN",
    "MAINTENANCE",
    "RELEASE",
    "SMALL_SETTINGS",
    "WORKER_SETTINGS",
    "Borrowed",
    "Connection",
    "Keeper",
    "Limit",
    "Listener",
    "Pool",
    "PooledConnection",
    "Session",
    "check_row_security",
    "check_schema_name",
    "check_writable",
    "close_pool",
    "connect",
    "is_connection_error",
    "mark_unchanged",
    "moment",
    "once_ready",
    "open_pool",
    "overran",
    "quote_ident",
    "read_moments_as_numbers",
    "remedy",
    "takes_no_writes",
    "target",
    "translate",
]
