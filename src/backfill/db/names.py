"""Names of schemas, as SQL and as users write them."""

from backfill.errors import ConfigurationError
from backfill.sql.quoting import quote_ident

__all__ = ["DEFAULT_SCHEMA", "check_schema_name", "quote_ident"]

DEFAULT_SCHEMA = "graphile_worker"

# NAMEDATALEN - 1: PostgreSQL cuts longer names off without an error, and would then look in another schema.
_MAX_BYTES = 63


def check_schema_name(name: str) -> str:
    """The name itself, if PostgreSQL can have a schema of that name; quotes and blanks in it are fine.

    Raises:
        ConfigurationError: It is empty, longer than 63 bytes, has control characters, or begins with ``pg_``.
    """
    if not name:
        raise ConfigurationError("the schema name is empty; leave it out to use graphile_worker")
    size = len(name.encode("utf-8", errors="replace"))
    if size > _MAX_BYTES:
        raise ConfigurationError(f"schema name {name!r} has {size} bytes; PostgreSQL keeps only {_MAX_BYTES}")
    if any(ord(character) < 0x20 or ord(character) == 0x7F for character in name):
        raise ConfigurationError(f"schema name {name!r} contains control characters")
    if name.startswith("pg_"):
        raise ConfigurationError(f"schema name {name!r}: PostgreSQL keeps names that begin with pg_ for itself")
    return name
