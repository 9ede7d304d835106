"""When a schedule is met: the five fields, the wall clock of a zone, and the next and the last run.

A run happens at a whole minute of UTC, its *tick*. `matches` says whether one is a tick; `next_run` and `last_run` find one
without going through the minutes between. They agree by these rules:

* A schedule is compared with the wall clock of its zone; without a zone that is UTC, and the rest does not apply.
* A schedule whose hours are all 24 (and one that is a function) follows the time that passes. Where clocks skip an hour it
  has nothing to do in that hour; where they repeat one it runs in both.
* Any other means times of the day. A time that clocks skip is made up for at the first minute after the gap, once for all
  that the gap took; a time that they repeat counts the first time round.
"""

from bisect import bisect_left
from calendar import monthrange
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from functools import lru_cache
from typing import Final, TypeAlias
from zoneinfo import ZoneInfo

MINUTE: Final = timedelta(minutes=1)
_DAY: Final = timedelta(days=1)
_MONTHS_AHEAD: Final = 12 * 9  # from one 29th of February to the next it can be eight years
_MINUTES_AHEAD: Final = 32 * 1440  # how far a function is asked, minute by minute
_BACK: Final = (timedelta(hours=1), _DAY, 32 * _DAY, 366 * _DAY, 9 * 366 * _DAY)
_ZERO: Final = timedelta(0)


@dataclass(frozen=True, slots=True)
class CronPattern:
    """The values that the five fields of a cron line allow; each sorted and without duplicates.

    Attributes:
        minutes: Of 0 to 59.
        hours: Of 0 to 23.
        days: Days of the month, of 1 to 31.
        months: Of 1 to 12.
        weekdays: Of 0 (Sunday) to 6.
    """

    minutes: tuple[int, ...]
    hours: tuple[int, ...]
    days: tuple[int, ...]
    months: tuple[int, ...]
    weekdays: tuple[int, ...]

    @property
    def is_every_hour(self) -> bool:
        """Whether it follows the time that passes, rather than name times of the day."""
        return len(self.hours) == 24

    def allows(self, day: date) -> bool:
        """Whether it runs on that day: if days and weekdays are both restricted, one of them is enough."""
        return day.month in self.months and self._allows_day(day.day, day.isoweekday() % 7)

    def allows_minute(self, wall: datetime) -> bool:
        """Whether it runs in that minute of the wall clock."""
        return wall.minute in self.minutes and wall.hour in self.hours and self.allows(wall)

    def first(self, wall: datetime) -> datetime | None:
        """The first minute of the wall clock, from ``wall`` (naive, a whole minute) on, in which it runs; None = none."""
        today = wall.date()
        for day in self._days_from(today):
            found = self._time_from(wall.hour, wall.minute) if day == today else (self.hours[0], self.minutes[0])
            if found is not None:
                return datetime(day.year, day.month, day.day, *found)  # noqa: DTZ001 - a wall clock has no zone
        return None

    def _allows_day(self, day: int, weekday: int) -> bool:
        by_day, by_weekday = day in self.days, weekday in self.weekdays
        if len(self.days) < 31 and len(self.weekdays) < 7:
            return by_day or by_weekday
        return by_day and by_weekday

    def _days_from(self, start: date) -> Iterator[date]:
        year, month, first = start.year, start.month, start.day
        for _ in range(_MONTHS_AHEAD):
            if month in self.months:
                sunday_based, length = (monthrange(year, month)[0] + 1) % 7, monthrange(year, month)[1]
                for day in range(first, length + 1):
                    if self._allows_day(day, (sunday_based + day - 1) % 7):
                        yield date(year, month, day)
            year, month, first = (year + 1, 1, 1) if month == 12 else (year, month + 1, 1)
            if year > 9999:
                return

    def _time_from(self, hour: int, minute: int) -> tuple[int, int] | None:
        """The first time of a day, from that one on; None when the day has none left."""
        at = bisect_left(self.hours, hour)
        if at < len(self.hours) and self.hours[at] == hour:
            minute_at = bisect_left(self.minutes, minute)
            if minute_at < len(self.minutes):
                return hour, self.minutes[minute_at]
            at += 1
        return (self.hours[at], self.minutes[0]) if at < len(self.hours) else None


@dataclass(frozen=True, slots=True)
class CronMoment:
    """A minute as a function that is a schedule sees it: by the wall clock of the item's zone.

    Attributes:
        minute: 0 to 59.
        hour: 0 to 23.
        day: Of the month, 1 to 31.
        month: 1 to 12.
        weekday: 0 (Sunday) to 6.
    """

    minute: int
    hour: int
    day: int
    month: int
    weekday: int


CronFunction: TypeAlias = Callable[[CronMoment], bool]
CronSchedule: TypeAlias = CronPattern | CronFunction


def whole_minute(time: datetime) -> datetime:
    """The beginning, in UTC, of the minute that the time is in."""
    return time.astimezone(UTC).replace(second=0, microsecond=0)


def matches(schedule: CronSchedule, zone: ZoneInfo | None, tick: datetime) -> bool:
    """Whether the schedule runs in that minute (aware, in UTC, whole)."""
    wall = _wall(tick, zone)
    if not isinstance(schedule, CronPattern):
        return bool(schedule(CronMoment(wall.minute, wall.hour, wall.day, wall.month, wall.isoweekday() % 7)))
    if zone is None or schedule.is_every_hour:
        return schedule.allows_minute(wall)
    if schedule.allows_minute(wall) and not _is_repeated(tick, zone):
        return True
    before = _wall(tick - MINUTE, zone)
    return wall - before > MINUTE and _runs_within(schedule, before + MINUTE, wall)


def next_run(schedule: CronSchedule, zone: ZoneInfo | None, after: datetime) -> datetime | None:
    """The first run after a whole minute of UTC; None when there is none (for a function: in 32 days)."""
    try:
        if not isinstance(schedule, CronPattern):
            minutes = (after + n * MINUTE for n in range(1, _MINUTES_AHEAD + 1))
            return next((tick for tick in minutes if matches(schedule, zone, tick)), None)
        if zone is None:
            found = schedule.first(_wall(after + MINUTE, None))
            return None if found is None else found.replace(tzinfo=UTC)
        return _next_in_zone(schedule, zone, after)
    except OverflowError:  # beyond the year 9999
        return None


def last_run(schedule: CronSchedule, zone: ZoneInfo | None, since: datetime, before: datetime) -> datetime | None:
    """The last run of whole minutes of UTC, from ``since`` on and before ``before``; None = none (for a function: in 32 days)."""
    for back in _BACK if isinstance(schedule, CronPattern) else _BACK[:3]:
        start = max(since, before - back)
        latest: datetime | None = None
        for tick in runs(schedule, zone, start - MINUTE, before - MINUTE):
            latest = tick
        if latest is not None or start == since:
            return latest
    return None


def runs(schedule: CronSchedule, zone: ZoneInfo | None, after: datetime, until: datetime) -> Iterator[datetime]:
    """The runs after a whole minute of UTC, up to and including another."""
    if not isinstance(schedule, CronPattern):
        minutes = (after + n * MINUTE for n in range(1, (until - after) // MINUTE + 1))
        yield from (minute for minute in minutes if matches(schedule, zone, minute))
        return
    tick = next_run(schedule, zone, after)
    while tick is not None and tick <= until:
        yield tick
        tick = next_run(schedule, zone, tick)


def _next_in_zone(schedule: CronPattern, zone: ZoneInfo, after: datetime) -> datetime | None:
    """`next_run` for a pattern in a zone: from one change of the zone's offset to the next, where that is constant."""
    low = after  # what is up to here has been dealt with
    while True:
        offset = _offset(low, zone)
        found = schedule.first((low + MINUTE + offset).replace(tzinfo=None))
        if found is None:
            return None
        tick = _up_to_minute(found.replace(tzinfo=UTC) - offset)
        change = _first_change(zone, low, tick)
        if change is None:
            if schedule.is_every_hour or not _is_repeated(tick, zone):
                return tick
            low = tick
        elif matches(schedule, zone, change):
            return change
        else:
            low = change


def _first_change(zone: ZoneInfo, low: datetime, high: datetime) -> datetime | None:
    """The first minute, after ``low`` and up to ``high``, whose offset from UTC is not that of ``low``; None = none.

    Looks once a day: no zone changes its offset twice in one and ends where it began.
    """
    offset = _offset(low, zone)
    while low < high:
        step = min(low + _DAY, high)
        if _offset(step, zone) != offset:
            while step - low > MINUTE:
                middle = low + (step - low) // MINUTE // 2 * MINUTE
                low, step = (middle, step) if _offset(middle, zone) == offset else (low, middle)
            return step
        low = step
    return None


def _runs_within(schedule: CronPattern, start: datetime, end: datetime) -> bool:
    """Whether it runs in a minute of the wall clock from ``start`` to before ``end``."""
    found = schedule.first(start)
    return found is not None and found < end


def _wall(tick: datetime, zone: ZoneInfo | None) -> datetime:
    """The wall clock in that minute, without a zone."""
    if zone is None:
        return tick.replace(tzinfo=None)
    return tick.astimezone(zone).replace(second=0, tzinfo=None, fold=0)


def _is_repeated(tick: datetime, zone: ZoneInfo) -> bool:
    """Whether the wall clock shows that time for the second time."""
    return tick.astimezone(zone).fold == 1


def _offset(tick: datetime, zone: ZoneInfo) -> timedelta:
    return tick.astimezone(zone).utcoffset() or _ZERO


def _up_to_minute(time: datetime) -> datetime:
    """The whole minute from that time on: offsets had seconds before 1972."""
    return time if time.second == 0 else time.replace(second=0) + MINUTE


@lru_cache(maxsize=4096)
def never_runs(pattern: CronPattern) -> bool:
    """Whether there is no day on which the pattern runs, as with 30 February."""
    return pattern.first(datetime(2000, 1, 1)) is None  # noqa: DTZ001 - a wall clock has no zone; 2000 is a leap year
