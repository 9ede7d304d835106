from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import click
import pytest

from backfill.cli.params import DURATION, MOMENT, PAYLOAD, PRIORITY, RETRY, ParamType, Payload
from backfill.cli.worker import LaneType
from backfill.model import Priority, RetryPolicy
from backfill.worker import QueueConfig

NOW = datetime(2030, 1, 31, 12, tzinfo=UTC)


def read(kind: ParamType[Any], text: str) -> Any:
    return kind.convert(text, None, None)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("now", NOW),
        ("+5m", NOW + timedelta(minutes=5)),
        ("+1h30m", NOW + timedelta(hours=1, minutes=30)),
        ("+1.5s", NOW + timedelta(seconds=1.5)),
        ("+200ms", NOW + timedelta(milliseconds=200)),
        ("-2d", NOW - timedelta(days=2)),
        ("+1w", NOW + timedelta(weeks=1)),
        ("2030-01-31T09:00:00Z", datetime(2030, 1, 31, 9, tzinfo=UTC)),
        ("2030-01-31t09:00:00.25+01:30", datetime(2030, 1, 31, 9, 0, 0, 250000, timezone(timedelta(hours=1.5)))),
        ("2030-01-31 09:00:00-08:00", datetime(2030, 1, 31, 17, tzinfo=UTC)),
    ],
)
def test_a_moment_is_read(text: str, expected: datetime) -> None:
    assert read(MOMENT, text).by(NOW) == expected


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("2030-01-31T09:00:00", "has no offset"),
        ("2030-01-31", "is no time"),
        ("2030-02-31T09:00:00Z", "is no time"),
        ("tomorrow", "is no time"),
        ("5m", "is no time"),
        ("+5", "is no time"),
        ("+5y", "is no time"),
        ("", "is no time"),
        ("+99999999999999w", "too long"),
        ("0001-01-01T00:00:00+05:00", "is no time"),
    ],
)
def test_what_is_no_moment_is_refused(text: str, says: str) -> None:
    with pytest.raises(click.BadParameter, match=says):
        read(MOMENT, text)


def test_a_moment_beyond_all_dates_is_refused() -> None:
    with pytest.raises(click.UsageError, match="too far away"):
        read(MOMENT, "+500000w").by(NOW)


def test_only_now_is_now() -> None:
    assert read(MOMENT, "now").is_now
    assert not read(MOMENT, "+1ms").is_now
    assert not read(MOMENT, "2030-01-31T09:00:00Z").is_now


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90", 90), ("1.5", 1.5), ("1.5s", 1.5), ("200ms", 0.2), ("5m", 300), ("1h30m", 5400), ("1d", 86400)],
)
def test_a_duration_is_read(text: str, seconds: float) -> None:
    assert read(DURATION, text) == timedelta(seconds=seconds)


@pytest.mark.parametrize("text", ["", "0", "-5", "5 m", "m", "1e3", "9" * 30, "5x"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(click.BadParameter):
        read(DURATION, text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("FAST_HIGH", -10), ("fast-high", -10), ("emergency", -20), ("0", 0), ("-32768", -32768), ("32767", 32767)],
)
def test_a_priority_is_read(text: str, expected: int) -> None:
    assert read(PRIORITY, text) == expected
    assert isinstance(read(PRIORITY, text), Priority)


@pytest.mark.parametrize("text", ["40000", "urgent", "1.5", "", "__new__"])
def test_what_is_no_priority_is_refused(text: str) -> None:
    with pytest.raises(click.BadParameter, match="FAST_HIGH"):
        read(PRIORITY, text)


def test_a_retry_policy_is_read() -> None:
    assert read(RETRY, "fast") == RetryPolicy.fast()
    assert read(RETRY, "0.5/60/1.5/0") == RetryPolicy(8, 0.5, 60.0, 1.5, 0.0)


@pytest.mark.parametrize("text", ["quick", "1/2/3", "5/1/2/0.1", "1/2/0.5/0", ""])
def test_what_is_no_retry_policy_is_refused(text: str) -> None:
    with pytest.raises(click.BadParameter):
        read(RETRY, text)


def test_a_payload_is_read(tmp_path: Path) -> None:
    assert read(PAYLOAD, '{"a": [1, null]}') == Payload({"a": [1, None]})
    assert read(PAYLOAD, "null") == Payload(None)
    (tmp_path / "payload.json").write_text('"ünïcode"')
    assert read(PAYLOAD, f"@{tmp_path}/payload.json") == Payload("ünïcode")


@pytest.mark.parametrize("text", ["{", "hello", "@/nowhere/at/all", "{'a': 1}", ""])
def test_what_is_no_payload_is_refused(text: str) -> None:
    with pytest.raises(click.BadParameter, match="payload"):
        read(PAYLOAD, text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("fast=10,priority=-32768..-1", QueueConfig("fast", 10, priority_range=(-32768, -1))),
        ("fast=10,priority=..-1", QueueConfig("fast", 10, priority_range=(-32768, -1))),
        ("slow=2,priority=5..", QueueConfig("slow", 2, priority_range=(5, 32767))),
        ("one=1,priority=7", QueueConfig("one", 1, priority_range=(7, 7))),
        ("reports=1,queue=reports", QueueConfig("reports", 1, queue_name="reports")),
        ("odd=1,queue=a,b=c", QueueConfig("odd", 1, queue_name="a,b=c")),
        ("rest=5", QueueConfig("rest", 5)),
    ],
)
def test_a_lane_is_read(text: str, expected: QueueConfig) -> None:
    assert read(LaneType(), text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "fast",
        "fast=",
        "=5",
        "fast=0",
        "fast=ten",
        "fast=1,priority=",
        "fast=1,priority=1-2",
        "fast=1,priority=5..1",
        "fast=1,priority=1..99999",
        "fast=1,queue=",
        "fast=1,colour=red",
    ],
)
def test_what_is_no_lane_is_refused(text: str) -> None:
    with pytest.raises(click.BadParameter):
        read(LaneType(), text)
