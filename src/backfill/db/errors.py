"""What a driver's error means, and what the reader can do about it."""

import socket
from typing import Final

import asyncpg

from backfill.db.limits import Limit
from backfill.errors import BackfillError, DatabaseError, SchemaError

# What asyncpg raises. InternalClientError too: a statement sent while the server's farewell is being read raises it.
DRIVER_ERRORS: Final = (
    asyncpg.PostgresError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    OSError,
    EOFError,
)

# The server said goodbye, or does not take us now: admin_shutdown, crash_shutdown, cannot_connect_now,
# idle_session_timeout, idle_in_transaction_session_timeout, too_many_connections. The whole class 08 is about connections.
_GOODBYES: Final = frozenset({"57P01", "57P02", "57P03", "57P05", "25P03", "53300"})

# By SQLSTATE, first whole, then by its class (two characters).
_REMEDIES: Final = {
    "28": "check the user name and the password in the database URL, and pg_hba.conf on the server",
    "3D000": "create the database first, or correct its name in the database URL",
    "3F000": "install the schema: backfill schema install",
    "42P01": "install the schema: backfill schema install",
    "42883": "install the schema: backfill schema install",
    "42501": "this role may not do that: work as the owner of the schema's tables or as a member of it",
    "53300": "the server has no connection left: raise max_connections, or use smaller pools or fewer processes",
    "25006": "this server takes no writes (is it a standby?): use the primary's address",
    "57014": "the statement took longer than its time limit",
    "57P03": "the server is starting up or shutting down: try again in a moment",
}

# The tables that only an installed schema has; their absence is no fault of the database.
_SCHEMA_STATES: Final = frozenset({"3F000", "42P01", "42883"})


def is_connection_error(error: BaseException) -> bool:
    """Whether the error says that the connection is gone or could not be made, rather than that a statement failed.

    A statement that was under way when this came may have been done or not. A timeout counts, since a server that takes
    too long cannot be told from one that is gone.
    """
    if isinstance(error, asyncpg.PostgresError):
        state = error.sqlstate or ""
        return state.startswith("08") or state in _GOODBYES
    if isinstance(error, asyncpg.InterfaceError):
        # Raised for every use of a connection that has ended; its other causes, a closed pool too, are the caller's.
        words = str(error)
        return "connection" in words and ("closed" in words or "closing" in words)
    if isinstance(error, DatabaseError):
        cause = error.__cause__
        return cause is not None and is_connection_error(cause)
    return isinstance(error, OSError | EOFError | asyncpg.InternalClientError)


def takes_no_writes(error: BaseException) -> bool:
    """Whether the connection has landed on a server that takes no writes: a standby, or what was the primary before."""
    return isinstance(error, asyncpg.ReadOnlySQLTransactionError)


def overran(error: BaseException, statement: str, limit: Limit | None) -> BaseException | None:
    """The error to raise, ``from`` the given one, for a statement that met its limit; None if that was not the trouble.

    When the server ended it, it was not carried out, and the error is the server's with the limit named in it. When no
    answer came, whether it was carried out is not known.
    """
    if limit is None:
        return None
    if isinstance(error, asyncpg.QueryCanceledError | asyncpg.LockNotAvailableError):
        return type(error)(f"{error} (statement {statement}, limit {limit.name}: {limit.shown})")
    if isinstance(error, TimeoutError):
        return DatabaseError(
            f"no answer to the statement {statement} within {limit.client_seconds:g} s (limit {limit.name})"
        )
    return None


def remedy(error: BaseException, *, connecting: bool = False) -> str | None:
    """What to do about the error, as half a sentence; None when its own words have to do.

    Args:
        error: What the driver raised.
        connecting: Whether it was raised by an attempt to connect.
    """
    if isinstance(error, asyncpg.PostgresError):
        state = error.sqlstate or ""
        return _REMEDIES.get(state) or _REMEDIES.get(state[:2])
    if isinstance(error, socket.gaierror):
        return "the host name does not resolve: correct it in the database URL"
    if isinstance(error, ConnectionRefusedError | FileNotFoundError):
        return "is PostgreSQL running there, and are host and port (or the socket's folder) right?"
    if isinstance(error, asyncpg.TargetServerAttributeNotMatched):
        return "no server of the URL takes writes now: if none is about to, add the primary's address"
    if isinstance(error, TimeoutError) and connecting:
        return "is the address right, and does a firewall let it through?"
    return None


def translate(
    error: BaseException, doing: str, *, connecting: bool = False, limit: Limit | None = None
) -> BackfillError:
    """The error of ours for an error of the driver, to be raised ``from`` it.

    Args:
        error: What the driver raised: an asyncpg error, an OSError or a TimeoutError.
        doing: What was being done, as the beginning of a sentence: ``"cannot enqueue send_email"``.
        connecting: Whether that was an attempt to connect.
        limit: The limit that a TimeoutError means.

    Returns:
        A SchemaError when the schema's objects are missing, else a DatabaseError; an error of ours as it is.
    """
    if isinstance(error, BackfillError):
        return error
    kind = SchemaError if getattr(error, "sqlstate", None) in _SCHEMA_STATES else DatabaseError
    # The driver's text has the server's detail and hint on lines of their own.
    said = "; ".join(str(error).splitlines())
    if isinstance(error, TimeoutError):
        said = (
            "no answer in time"
            if limit is None
            else f"no answer within {limit.client_seconds:g} s (limit {limit.name})"
        )
    advice = remedy(error, connecting=connecting)
    return kind(f"{doing}: {said or type(error).__name__}" + (f" ({advice})" if advice else ""))
