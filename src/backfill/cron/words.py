"""A schedule in words, exactly: two schedules with the same words run at the same times."""

from collections.abc import Sequence
from typing import Final

from backfill.cron.item import CronItem
from backfill.cron.match import CronPattern

_MONTHS: Final = (
    *("January", "February", "March", "April", "May", "June"),
    *("July", "August", "September", "October", "November", "December"),
)
_WEEKDAYS: Final = ("Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday")
_MOST_TIMES: Final = 8  # of the day, that are written one by one


def describe(item: CronItem) -> str:
    """When an item runs, in words: ``At 04:00 on Monday through Friday (Europe/Berlin)``."""
    if not isinstance(item.schedule, CronPattern):
        name = getattr(item.schedule, "__qualname__", type(item.schedule).__name__)
        words = f"Whenever {name} says so"
    else:
        words = describe_pattern(item.schedule)
    return words if item.zone is None else f"{words} ({item.zone.key})"


def describe_pattern(pattern: CronPattern) -> str:
    """When a pattern is met, in words: ``Every 5 minutes``."""
    times, is_daily = _times(pattern)
    days = _days(pattern)
    if is_daily and not days:
        return f"{times} every day"
    if is_daily and days.startswith("in "):
        return f"{times} every day {days}"
    return f"{times} {days}".rstrip()


def _times(pattern: CronPattern) -> tuple[str, bool]:
    """The times of the day, and whether they are times rather than an interval."""
    minutes, hours = pattern.minutes, pattern.hours
    within = _within_hour(minutes)
    if len(hours) == 24:
        return (f"{within} of every hour" if within.startswith("At") else within), False
    if len(minutes) * len(hours) <= _MOST_TIMES:
        return "At " + _listed([f"{hour:02}:{minute:02}" for hour in hours for minute in minutes]), True
    names = [f"{hour:02}" for hour in range(24)]
    return f"{within} in the {_plural('hour', hours)} {_ranges(names, hours)}", False


def _within_hour(minutes: Sequence[int]) -> str:
    step = _step(minutes)
    if step is not None:
        return "Every minute" if step == 1 else f"Every {step} minutes"
    return f"At {_plural('minute', minutes)} {_ranges([str(minute) for minute in range(60)], minutes)}"


def _step(minutes: Sequence[int]) -> int | None:
    """The n of "every n minutes": only where that goes on evenly from one hour to the next."""
    step = 60 // len(minutes)
    return step if step < 60 and tuple(minutes) == tuple(range(0, 60, step)) and 60 % step == 0 else None


def _days(pattern: CronPattern) -> str:
    """The days: empty when it is every one."""
    by_day = len(pattern.days) < 31
    by_weekday = len(pattern.weekdays) < 7
    months = "" if len(pattern.months) == 12 else _ranges(_MONTHS, [month - 1 for month in pattern.months])
    weekdays = f"on {_ranges(_WEEKDAYS, _from_monday(pattern.weekdays))}"
    numbers = _ranges([str(day) for day in range(1, 32)], [day - 1 for day in pattern.days])
    days = f"on {_plural('day', pattern.days)} {numbers} of {months or 'the month'}"
    if by_day and by_weekday:
        return f"{days}, or {weekdays}" + (f" of {months}" if months else "")
    if by_day:
        return days
    if by_weekday:
        return weekdays + (f" in {months}" if months else "")
    return f"in {months}" if months else ""


def _from_monday(weekdays: Sequence[int]) -> list[int]:
    """Weekdays in the order of a week that begins on Monday."""
    return sorted(weekdays, key=lambda day: (day - 1) % 7)


def _ranges(names: Sequence[str], positions: Sequence[int]) -> str:
    """The names at those positions, three and more in a row as ``first through last``; at the week's end it goes round."""
    found: list[list[int]] = []
    for position in positions:
        if found and (position - found[-1][-1]) in (1, 1 - len(names)):
            found[-1].append(position)
        else:
            found.append([position])
    parts: list[str] = []
    for row in found:
        if len(row) > 2:
            parts.append(f"{names[row[0]]} through {names[row[-1]]}")
        else:
            parts += [names[position] for position in row]
    return _listed(parts)


def _listed(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def _plural(noun: str, values: Sequence[int]) -> str:
    return noun if len(values) == 1 else f"{noun}s"
