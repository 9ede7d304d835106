"""Which runs of an item are scheduled when they come late, by its policy for missed runs."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

from backfill.cron.item import CronItem, MissedRuns
from backfill.cron.match import MINUTE, last_run, whole_minute

GRACE: Final = timedelta(minutes=10)  # how late a run may be to be simply done


@dataclass(frozen=True, slots=True)
class DueRuns:
    """The runs of an item that are due.

    Attributes:
        oldest: The oldest of them.
        kept: The oldest that is to be scheduled; those before are left out for good. Later than ``until`` when none is.
        until: The minute it is.
        is_late: Whether the oldest is so late that the item's policy decided.
    """

    oldest: datetime
    kept: datetime
    until: datetime
    is_late: bool

    def ticks(self, item: CronItem) -> Iterator[tuple[datetime, bool]]:
        """The runs to schedule, each with whether it makes up for a missed one."""
        for tick in item.runs(self.kept - MINUTE, self.until):
            yield tick, self.is_late and tick < self.until


def due_runs(item: CronItem, cursor: datetime, now: datetime) -> DueRuns | None:
    """The runs of a running scheduler's item that are due; None when none is.

    Args:
        item: The item.
        cursor: The minute up to which its runs are settled.
        now: The wall clock.
    """
    until = whole_minute(now)
    oldest = next(item.runs(cursor, until), None)
    if oldest is None:
        return None
    is_late = now - oldest > GRACE
    kept = oldest
    if is_late and item.missed is MissedRuns.SKIP:
        kept = until
    elif is_late and item.fill:
        kept = max(oldest, min(until, minute_from(_before(now, item.fill))))
    if item.missed is MissedRuns.LATEST:
        kept = last_run(item.schedule, item.zone, kept, until + MINUTE) or until + MINUTE
    return DueRuns(oldest, kept, until, is_late)


def missed_runs(
    item: CronItem, known_since: datetime, last_execution: datetime | None, start: datetime
) -> list[datetime]:
    """The runs before a start that are to be made up for, of an item that was known before.

    Args:
        item: The item.
        known_since: When it became known.
        last_execution: The latest minute for which it was scheduled.
        start: The wall clock.
    """
    if item.missed is MissedRuns.SKIP:
        return []
    end = minute_from(start)
    since = minute_from(known_since) if last_execution is None else whole_minute(last_execution) + MINUTE
    if item.fill:
        since = max(since, minute_from(_before(start, item.fill)))
    if item.missed is MissedRuns.LATEST:
        last = last_run(item.schedule, item.zone, since, end)
        return [] if last is None else [last]
    return list(item.runs(since - MINUTE, end - MINUTE))


def minute_from(time: datetime) -> datetime:
    """The first whole minute from that time on."""
    minute = whole_minute(time)
    return minute if minute == time else minute + MINUTE


def _before(now: datetime, distance: timedelta) -> datetime:
    try:
        return now - distance
    except OverflowError:
        return datetime(1, 1, 2, tzinfo=UTC)
