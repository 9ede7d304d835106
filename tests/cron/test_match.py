"""When a schedule is met (contract section 4.2), by an oracle that goes through the minutes one by one."""

from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from itertools import pairwise
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.cron.strategies import PATTERNS, ZONE_NAMES, ZONES

from backfill import CronItem
from backfill.cron import CronMoment, CronPattern, match
from backfill.cron.match import MINUTE, last_run, matches, next_run, runs

HOUR, DAY = timedelta(hours=1), timedelta(days=1)
WHEN = st.integers(1975 * 525_960, 2070 * 525_960).map(lambda n: datetime(1, 1, 1, tzinfo=UTC) + (n - 525_960) * MINUTE)
FEW = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))


def at(text: str) -> datetime:
    return datetime.fromisoformat(text).astimezone(UTC)


def item(fields: str, zone: str | None = None) -> CronItem:
    return CronItem("task", fields, zone=zone)


def times(found: CronItem, start: str, end: str) -> list[str]:
    """The runs from a time to another, by the wall clock of the item's zone."""
    return [
        tick.astimezone(found.zone or UTC).strftime("%d %H:%M%z") for tick in found.runs(at(start) - MINUTE, at(end))
    ]


class Oracle:
    """Goes through real minutes in order, and knows nothing but the wall clock of each and of the one before."""

    def __init__(self, pattern: CronPattern, zone: str | None) -> None:
        self.pattern = pattern
        self.zone = UTC if zone is None else ZoneInfo(zone)

    def met(self, year: int, month: int, day: int, hour: int, minute: int) -> bool:
        p = self.pattern
        by_day, by_weekday = day in p.days, (date(year, month, day).weekday() + 1) % 7 in p.weekdays
        either = by_day or by_weekday if len(p.days) != 31 and len(p.weekdays) != 7 else by_day and by_weekday
        return minute in p.minutes and hour in p.hours and month in p.months and either

    def runs(self, start: datetime, end: datetime) -> list[datetime]:
        """Every minute from start to end, both included, in which it runs."""
        found, seen = [], set()
        named = len(self.pattern.hours) < 24
        tick = start - 26 * HOUR  # so that what the clock has shown before is known
        last = None
        while tick <= end:
            local = tick.astimezone(self.zone)
            wall = (local.year, local.month, local.day, local.hour, local.minute)
            met = self.met(*wall) and not (named and wall in seen)
            if named and last is not None:
                naive = local.replace(tzinfo=None)
                skipped = last + MINUTE
                while skipped < naive:
                    met = met or self.met(skipped.year, skipped.month, skipped.day, skipped.hour, skipped.minute)
                    skipped += MINUTE
            last = local.replace(tzinfo=None)
            seen.add(wall)
            if met and tick >= start:
                found.append(tick)
            tick += MINUTE
        return found


def changes(zone: str, year: int) -> list[datetime]:
    """The minutes of a year at which the zone's offset changes."""
    where = ZoneInfo(zone)
    hours = [datetime(year, 1, 1, tzinfo=UTC) + n * HOUR for n in range(366 * 24)]
    return [b for a, b in pairwise(hours) if a.astimezone(where).utcoffset() != b.astimezone(where).utcoffset()]


@FEW
@given(PATTERNS, ZONE_NAMES, WHEN)
def test_the_oracle_agrees_on_any_day(pattern: CronPattern, zone: str | None, start: datetime) -> None:
    expected = Oracle(pattern, zone).runs(start, start + 12 * HOUR)
    check(pattern, zone, start, start + 12 * HOUR, expected)


@pytest.mark.parametrize("zone", ZONES)
@settings(FEW, max_examples=8)
@given(PATTERNS, st.integers(1980, 2036), st.integers(0, 3), st.integers(-180, 120))
def test_the_oracle_agrees_where_clocks_change(
    zone: str, pattern: CronPattern, year: int, which: int, minutes: int
) -> None:
    found = changes(zone, year) or [datetime(year, 4, 1, tzinfo=UTC)]
    start = found[which % len(found)] + minutes * MINUTE
    expected = Oracle(pattern, zone).runs(start, start + 5 * HOUR)
    check(pattern, zone, start, start + 5 * HOUR, expected)


def check(pattern: CronPattern, zone: str | None, start: datetime, end: datetime, expected: list[datetime]) -> None:
    where = None if zone is None else ZoneInfo(zone)
    assert list(runs(pattern, where, start - MINUTE, end)) == expected
    count = (end - start) // MINUTE + 1
    assert [tick for n in range(count) if matches(pattern, where, tick := start + n * MINUTE)] == expected
    assert last_run(pattern, where, start, end + MINUTE) == (expected[-1] if expected else None)


@FEW
@given(PATTERNS, ZONE_NAMES, WHEN)
def test_no_day_on_which_it_runs_is_passed_over(pattern: CronPattern, zone: str | None, start: datetime) -> None:
    """Over years: from one run to the next there is no day that the fields allow, but where clocks change."""
    where = UTC if zone is None else ZoneInfo(zone)
    found = next_run(pattern, None if zone is None else ZoneInfo(zone), start)
    oracle = Oracle(pattern, zone)
    day = start.astimezone(where).date() + DAY
    end = date(day.year + 9, 1, 1) if found is None else found.astimezone(where).date()
    while day < end:
        noon = datetime(day.year, day.month, day.day, 12, tzinfo=where)
        allowed = oracle.met(day.year, day.month, day.day, pattern.hours[0], pattern.minutes[0])
        assert not allowed or noon.utcoffset() != (noon - DAY).utcoffset()
        day += DAY


# -- the contract's cases -------------------------------------------------------------------------------------------------


def test_c_054_every_minute() -> None:
    assert list(item("* * * * *").runs(at("2020-02-28T23:58:30Z"), at("2020-02-29T00:01Z"))) == [
        at("2020-02-28T23:59Z"),
        at("2020-02-29T00:00Z"),
        at("2020-02-29T00:01Z"),
    ]


def test_c_054_a_range_of_weekdays() -> None:
    weekdays = item("0 4 * * 1-5")
    assert weekdays.next_run(at("2021-06-04T04:00Z")) == at("2021-06-07T04:00Z")  # Friday to Monday
    assert not weekdays.matches(at("2021-06-05T04:00Z"))
    assert weekdays.matches(at("2021-06-07T04:00:59Z"))


def test_c_054_day_or_weekday() -> None:
    either = item("0 0 13 * 5")
    assert [tick.day for tick in either.runs(at("2021-08-01T00:00Z"), at("2021-08-31T00:00Z"))] == [6, 13, 20, 27]
    assert [tick.day for tick in either.runs(at("2021-09-01T00:00Z"), at("2021-09-30T00:00Z"))] == [3, 10, 13, 17, 24]
    # All 31 days, or all weekdays, is no restriction, however it is written.
    assert [tick.day for tick in item("0 0 1-31 9 5").runs(at("2021-08-31T00:00Z"), at("2021-09-30T00:00Z"))] == [
        *(3, 10, 17, 24)
    ]
    assert [tick.day for tick in item("0 0 13 9 0-7").runs(at("2021-08-31T00:00Z"), at("2021-09-30T00:00Z"))] == [13]


@pytest.mark.parametrize("zone", [None, "Europe/Berlin"])
def test_leap_days_are_found_without_going_through_the_minutes(
    zone: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = 0

    def counted(function: Callable[..., Any]) -> Callable[..., Any]:
        def count(*args: Any) -> Any:
            nonlocal looks
            looks += 1
            return function(*args)

        return count

    leap = item("0 4 29 2 *", zone)
    monkeypatch.setattr(CronPattern, "_allows_day", counted(CronPattern._allows_day))
    monkeypatch.setattr(match, "_offset", counted(match._offset))
    found = leap.next_run(at("2096-02-29T05:00Z"))
    assert found is not None
    assert (found.year, found.month, found.day) == (2104, 2, 29)
    assert looks < 10_000  # there are 4.2 million minutes


def test_what_never_runs_is_known() -> None:
    assert item("0 0 30 2 *").never_runs
    assert item("0 0 31 4,6,9,11 *", "Europe/Berlin").next_run(at("2020-01-01T00:00Z")) is None
    assert not item("0 0 30 2 1").never_runs  # Mondays of February
    assert not item("0 0 29 2 *").never_runs


def test_the_end_of_time_is_no_error() -> None:
    assert item("0 0 1 1 *").next_run(at("9999-06-01T00:00Z")) is None
    assert item("* * * * *").next_run(at("9999-12-31T23:59Z")) is None
    assert item("0 0 1 1 *", "America/New_York").next_run(at("9999-06-01T00:00Z")) is None


# -- zones and the changes of their clocks --------------------------------------------------------------------------------


def test_an_item_runs_by_the_wall_clock_of_its_zone() -> None:
    nightly = item("0 4 * * *", "Europe/Berlin")
    assert nightly.next_run(at("2024-01-15T00:00Z")) == at("2024-01-15T03:00Z")
    assert nightly.next_run(at("2024-07-15T00:00Z")) == at("2024-07-15T02:00Z")
    assert item("0 9 * * mon", "Asia/Tokyo").next_run(at("2024-01-13T00:00Z")) == at("2024-01-15T00:00Z")


SPRING = ("2024-03-31T00:00+01:00", "2024-03-31T04:30+02:00")  # Berlin: from 02:00 to 03:00
AUTUMN = ("2024-10-27T00:00+02:00", "2024-10-27T04:30+01:00")  # Berlin: from 03:00 back to 02:00


def test_a_time_that_clocks_skip_runs_right_after_the_gap() -> None:
    assert times(item("30 2 * * *", "Europe/Berlin"), *SPRING) == ["31 03:00+0200"]


def test_several_times_of_one_gap_run_once() -> None:
    assert times(item("*/15 2 * * *", "Europe/Berlin"), *SPRING) == ["31 03:00+0200"]
    assert times(item("30 2,3 * * *", "Europe/Berlin"), *SPRING) == ["31 03:00+0200", "31 03:30+0200"]
    assert times(item("0,30 2,3 * * *", "Europe/Berlin"), *SPRING) == ["31 03:00+0200", "31 03:30+0200"]


def test_a_time_that_clocks_repeat_runs_once() -> None:
    assert times(item("30 2 * * *", "Europe/Berlin"), *AUTUMN) == ["27 02:30+0200"]
    assert times(item("0 3 * * *", "Europe/Berlin"), *AUTUMN) == ["27 03:00+0100"]


def test_what_runs_in_every_hour_follows_the_time_that_passes() -> None:
    hourly = item("0 * * * *", "Europe/Berlin")
    assert times(hourly, *SPRING) == ["31 00:00+0100", "31 01:00+0100", "31 03:00+0200", "31 04:00+0200"]
    found = times(hourly, *AUTUMN)
    assert found == [*("27 00:00+0200", "27 01:00+0200", "27 02:00+0200", "27 02:00+0100", "27 03:00+0100"), "27 04:00+0100"]  # fmt: skip


def test_gaps_at_midnight_and_of_a_whole_day() -> None:
    assert times(item("0 0 * * *", "Asia/Beirut"), "2022-03-26T12:00+02:00", "2022-03-27T12:00+03:00") == [
        "27 01:00+0300"
    ]
    # Samoa had no 30 December 2011.
    assert times(item("0 12 * * *", "Pacific/Apia"), "2011-12-29T00:00-10:00", "2011-12-31T23:00+14:00") == [
        *("29 12:00-1000", "31 00:00+1400", "31 12:00+1400")
    ]


def test_half_an_hour() -> None:
    assert times(item("15 2 * * *", "Australia/Lord_Howe"), "2024-10-05T12:00Z", "2024-10-06T12:00Z") == [
        "06 02:30+1100"
    ]
    assert times(item("45 1 * * *", "Australia/Lord_Howe"), "2024-04-06T12:00Z", "2024-04-07T12:00Z") == [
        "07 01:45+1100"
    ]


# -- functions ------------------------------------------------------------------------------------------------------------


def test_a_function_is_asked_by_the_wall_clock_of_the_zone() -> None:
    asked: list[CronMoment] = []

    def last_friday(moment: CronMoment) -> bool:
        asked.append(moment)
        return moment.weekday == 5 and moment.day > 24 and (moment.hour, moment.minute) == (9, 0)

    found = CronItem("task", last_friday, zone="Europe/Berlin")
    assert found.next_run(at("2024-05-24T00:00Z")) == at("2024-05-31T07:00Z")
    assert asked[0] == CronMoment(minute=1, hour=2, day=24, month=5, weekday=5)
    assert not found.never_runs
    assert CronItem("task", lambda _: False).next_run(at("2024-05-01T00:00Z")) is None
    ticks = CronItem("task", lambda moment: moment.minute % 20 == 0).runs(
        at("2024-05-01T00:00Z"), at("2024-05-01T01:00Z")
    )
    assert [tick.minute for tick in ticks] == [20, 40, 0]
