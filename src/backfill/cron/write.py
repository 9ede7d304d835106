"""From an item to the line of a crontab that says the same."""

from collections.abc import Sequence
from urllib.parse import quote

from backfill.cron.fields import FIELDS, Field
from backfill.cron.item import CronItem, MissedRuns
from backfill.cron.match import CronPattern
from backfill.cron.parse import parse_crontab
from backfill.errors import CrontabError, CrontabProblem
from backfill.model import JobKeyMode

_UNITS = (("w", 604_800), ("d", 86_400), ("h", 3600), ("m", 60), ("s", 1))


def pattern_text(pattern: CronPattern) -> str:
    """The five fields of a pattern."""
    values = (pattern.minutes, pattern.hours, pattern.days, pattern.months, pattern.weekdays)
    return " ".join(_field_text(field, value) for field, value in zip(FIELDS, values, strict=True))


def crontab_line(item: CronItem) -> str:
    """The line that `parse_crontab` reads as the item; without an addition that it does not need, so that Node can read it too.

    Raises:
        CrontabError: A line can't say it: its schedule is a function, or the task's name or an option has a character that
            lines don't allow.
    """
    if not isinstance(item.schedule, CronPattern):
        raise CrontabError(
            CrontabProblem(f"a line can't have a function as its schedule, as item {item.identifier} has", "")
        )
    mode = item.job_key_mode
    options = {
        "id": None if item.identifier == item.task else item.identifier,
        "fill": fill_text(item),
        "max": item.max_attempts,
        "queue": item.queue,
        "jobKey": item.job_key,
        "jobKeyMode": None if mode is None or (mode is JobKeyMode.REPLACE and item.job_key is not None) else mode,
        "priority": item.priority,
        "tz": None if item.zone is None else item.zone.key,
        "missed": None if item.missed is (MissedRuns.ALL if item.fill else MissedRuns.SKIP) else item.missed,
    }
    given = "&".join(f"{key}={quote(str(value))}" for key, value in options.items() if value is not None)
    parts = (pattern_text(item.schedule), item.task, f"?{given}" if given else "")
    line = " ".join(part for part in (*parts, item.payload_text if item.payload_text != "{}" else "") if part)
    if not _is_same(parse_crontab(line)[0], item):
        raise CrontabError(CrontabProblem(f"a line can't say what item {item.identifier} is", ""))
    return line


def _is_same(read: CronItem, item: CronItem) -> bool:
    """Whether two items are the same, but for how their payloads are written: 1.0 is read as 1."""
    names = [name for name in CronItem.__slots__ if name != "payload_text"]
    return read.payload == item.payload and all(getattr(read, name) == getattr(item, name) for name in names)


def fill_text(item: CronItem) -> str | None:
    """The item's fill as a line says it, such as ``1d12h``; None when there is none."""
    seconds, found = int(item.fill.total_seconds()), ""
    for unit, size in _UNITS:
        count, seconds = divmod(seconds, size)
        found += f"{count}{unit}" if count else ""
    return found or None


def _field_text(field: Field, values: Sequence[int]) -> str:
    whole = range(field.low, 7 if field.is_weekday else field.high + 1)
    for step in range(1, len(whole) // 2):
        if tuple(values) == tuple(whole[::step]):
            return "*" if step == 1 else f"*/{step}"
    rows: list[list[int]] = []
    for value in values:
        if rows and rows[-1][-1] == value - 1:
            rows[-1].append(value)
        else:
            rows.append([value])
    parts = [[f"{row[0]}-{row[-1]}"] if len(row) > 2 else list(map(str, row)) for row in rows]
    return ",".join(part for found in parts for part in found)
