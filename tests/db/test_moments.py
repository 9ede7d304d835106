"""Times as numbers: the same moments as the driver would give."""

from datetime import UTC, datetime, timedelta, timezone
from typing import TYPE_CHECKING

import pytest

from backfill.db import connect, moment, read_moments_as_numbers

if TYPE_CHECKING:
    from tests.conftest import Database


@pytest.mark.parametrize(
    "at",
    [
        datetime(2000, 1, 1, tzinfo=UTC),
        datetime(1999, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC),
        datetime(2031, 5, 6, 7, 8, 9, 10, tzinfo=timezone(timedelta(hours=-7, minutes=-30))),
        datetime(1, 1, 2, tzinfo=UTC),
        datetime(9999, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC),
    ],
)
async def test_a_moment_survives_both_ways(db: "Database", at: datetime) -> None:
    connection = await connect(db.dsn)
    await read_moments_as_numbers(connection)
    query = "select $1::timestamptz, to_char($1 at time zone 'UTC', 'YYYY US')"
    ((number, text),) = await connection.fetch(query, at)
    assert moment(number) == at
    assert moment(number).tzinfo is UTC
    assert text == at.astimezone(UTC).strftime("%Y %f").rjust(11, "0")
    await connection.close()


async def test_what_no_datetime_can_be_is_the_nearest(db: "Database") -> None:
    connection = await connect(db.dsn)
    await read_moments_as_numbers(connection)
    (row,) = await connection.fetch(
        "select timestamptz 'infinity', timestamptz '-infinity', timestamptz '4713-01-01 BC'"
    )
    assert [moment(number).year for number in row] == [9999, 1, 1]
    await connection.close()
