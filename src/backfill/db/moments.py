"""Points in time as the numbers that PostgreSQL sends, for connections that read many and look at few.

Making a ``datetime`` takes asyncpg longer than all the rest of a claimed job's row.
"""

from datetime import UTC, datetime, timedelta
from operator import itemgetter
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from backfill.db.session import Session

_EPOCH: Final = datetime(2000, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)


async def read_moments_as_numbers(connection: "Session") -> None:
    """Have every ``timestamptz`` of the connection come as a number, for ``moment``; parameters are ``datetime`` as always."""
    await connection.set_type_codec(
        "timestamptz", schema="pg_catalog", encoder=_encoded, decoder=itemgetter(0), format="tuple"
    )


def moment(number: int) -> datetime:
    """The time in UTC, that one nearest to it that a ``datetime`` can be."""
    try:
        return _EPOCH + number * _MICROSECOND
    except OverflowError:
        return datetime.max.replace(tzinfo=UTC) if number > 0 else datetime.min.replace(tzinfo=UTC)


def _encoded(value: datetime) -> tuple[int]:
    return ((value - _EPOCH) // _MICROSECOND,)
