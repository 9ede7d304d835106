"""Which late runs are scheduled, without a database: the policies beside each other."""

from datetime import timedelta

import pytest
from tests.cron.conftest import at

from backfill import CronItem
from backfill.cron.missed import due_runs, missed_runs

HOURLY, MINUTELY = "0 * * * *", "* * * * *"


def shown(item: CronItem, cursor: str, now: str) -> list[str]:
    """The runs to schedule, those that are marked as backfilled with a b."""
    found = due_runs(item, at(cursor), at(now))
    if found is None:
        return []
    return [f"{tick:%H:%M}{'b' if backfilled else ''}" for tick, backfilled in found.ticks(item)]


@pytest.mark.parametrize(
    ("schedule", "policy", "cursor", "now", "runs"),
    [
        (HOURLY, {}, "2024-01-15T04:00", "2024-01-15T04:59:59", []),
        (HOURLY, {}, "2024-01-15T04:00", "2024-01-15T05:10:00", ["05:00"]),
        (HOURLY, {}, "2024-01-15T04:00", "2024-01-15T05:10:01", []),
        (MINUTELY, {}, "2024-01-15T04:00", "2024-01-15T04:03:30", ["04:01", "04:02", "04:03"]),
        (MINUTELY, {}, "2024-01-15T04:00", "2024-01-15T04:11:30", ["04:11"]),
        (MINUTELY, {"missed": "latest"}, "2024-01-15T04:00", "2024-01-15T04:03:30", ["04:03"]),
        (MINUTELY, {"missed": "latest"}, "2024-01-15T04:00", "2024-01-15T09:00:00", ["09:00"]),
        (HOURLY, {"missed": "latest"}, "2024-01-15T04:00", "2024-01-15T09:30:00", ["09:00b"]),
        (HOURLY, {"missed": "latest", "fill": 1800}, "2024-01-15T04:00", "2024-01-15T09:30:00", ["09:00b"]),
        (HOURLY, {"missed": "latest", "fill": 1799}, "2024-01-15T04:00", "2024-01-15T09:30:00", []),
        (HOURLY, {"fill": 5400}, "2024-01-15T04:00", "2024-01-15T09:30:00", ["08:00b", "09:00b"]),
        (HOURLY, {"fill": 86400}, "2024-01-15T04:00", "2024-01-15T07:00:00", ["05:00b", "06:00b", "07:00"]),
        (MINUTELY, {"fill": 30}, "2024-01-15T04:00", "2024-01-15T09:30:20", ["09:30"]),
        (MINUTELY, {"fill": 30}, "2024-01-15T04:00", "2024-01-15T09:30:40", ["09:30"]),
    ],
)
def test_in_a_running_scheduler(
    schedule: str, policy: dict[str, object], cursor: str, now: str, runs: list[str]
) -> None:
    fill = timedelta(seconds=float(str(policy.get("fill", 0))))
    missed = str(policy["missed"]) if "missed" in policy else None
    assert shown(CronItem("task", schedule, fill=fill, missed=missed), cursor, now) == runs


def test_at_a_start_a_fill_beyond_all_time_is_none() -> None:
    item = CronItem("task", "0 0 1 1 *", fill=timedelta(days=999_999_999))
    assert [run.year for run in missed_runs(item, at("2019-06-01T00:00"), None, at("2022-06-01T00:00"))] == [
        2020,
        2021,
        2022,
    ]


def test_at_a_start_the_current_minute_counts_as_missed_once_it_has_begun() -> None:
    item = CronItem("task", MINUTELY, fill=timedelta(minutes=2))
    since = at("2024-01-01T00:00")
    assert [run.minute for run in missed_runs(item, since, None, at("2024-01-15T12:10:00"))] == [8, 9]
    assert [run.minute for run in missed_runs(item, since, None, at("2024-01-15T12:10:01"))] == [9, 10]
