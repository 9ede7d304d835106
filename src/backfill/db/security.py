"""Telling a role that row-level security would blind.

The tables have row-level security on and no policies: a role with every GRANT, but not the owner, a member of it or
BYPASSRLS, reads no rows and gets no error. Better to refuse to work than to look idle.
"""

from backfill.db.names import quote_ident
from backfill.db.pool import Connection
from backfill.errors import SchemaError
from backfill.sql import text


async def check_row_security(connection: Connection, schema: str) -> None:
    """Return if the connection's role can work on the schema's tables.

    Args:
        connection: A connection as the role that is to work.
        schema: The schema's name, unquoted.

    Raises:
        SchemaError: The schema is not installed; or row-level security hides the jobs from this role, or it lacks rights
            on ``backfill_dlq``. The message has the GRANT that mends it.
    """
    row = await connection.fetchrow(text("role_and_rights", schema), schema)
    if row is None:
        raise SchemaError(
            f"schema {schema!r} is not installed in this database, or not visible to role {await _role(connection)!r}:"
            " run backfill schema install",
        )
    role = quote_ident(row["role"])
    if row["blinded"]:
        raise SchemaError(
            f"role {row['role']!r} would see no jobs in schema {schema!r}: row-level security lets only the tables' owner"
            f" and its members work. Run as {row['owner']!r} or as a superuser:"
            f" {_grant(row['owner'], role, member=row['is_member'], version=row['server_version'])}",
        )
    if row["dlq_owner"] is not None and not row["dlq_rights"]:
        raise SchemaError(
            f"role {row['role']!r} lacks rights on the dead letter queue of schema {schema!r}. Run as"
            f" {row['dlq_owner']!r} or as a superuser: GRANT {quote_ident(row['dlq_owner'])} TO {role};",
        )


async def _role(connection: Connection) -> str:
    return str(await connection.fetchval("select current_user::text"))


def _grant(owner: str, role: str, *, member: bool, version: int) -> str:
    """The statement that lets the role work; a member that does not inherit needs that, not the membership."""
    grant = f"GRANT {quote_ident(owner)} TO {role}"
    if not member:
        return f"{grant};"
    return f"{grant} WITH INHERIT TRUE;" if version >= 160000 else f"ALTER ROLE {role} INHERIT;"
