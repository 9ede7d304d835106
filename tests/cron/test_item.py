"""Items in code (contract section 4.3)."""

import json
from collections.abc import Callable
from dataclasses import FrozenInstanceError, dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from backfill import CronItem, TaskHandler, task
from backfill.cron import CronPattern, MissedRuns
from backfill.errors import CrontabError

EVERY_MINUTE = "* * * * *"


def test_c_057_the_backfill_period_defaults_to_zero() -> None:
    item = CronItem("task", EVERY_MINUTE)
    assert (item.fill, item.missed) == (timedelta(0), MissedRuns.SKIP)
    assert (item.payload, item.identifier) == ({}, "task")


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ("* * * *", "expected five fields: minute, hour, day, month, weekday, found '* * * *'"),
        ("* * * * * task", "expected five fields: minute, hour, day, month, weekday, found"),
        ("61 * * * *", "expected minutes of 0-59, found '61' in '61 * * * *'"),
        ("@nightly", "expected one of @hourly, @daily, @midnight, @weekly, @monthly, @yearly, @annually, found '@nightly'"),
        ("", "expected five fields: minute, hour, day, month, weekday, found ''"),
    ],
)  # fmt: skip
def test_c_057_a_bad_pattern(fields: str, words: str) -> None:
    with pytest.raises(CrontabError) as caught:
        CronItem("task", fields)
    assert str(caught.value).startswith(f"bad cron item: {words}")


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: CronItem("", EVERY_MINUTE), "task identifier must not be empty"),
        (lambda: CronItem("t", 5), "schedule must be the five fields of a cron line or a function"),  # type: ignore[arg-type] # wrong on purpose
        (lambda: CronItem("t", EVERY_MINUTE, [1]), "payload must be a JSON object, as `_cron` is added to it, not [1]"),
        (lambda: CronItem("t", EVERY_MINUTE, {"a": float("nan")}), "payload has nan"),
        (lambda: CronItem("t", EVERY_MINUTE, identifier=""), "identifier must not be empty"),
        (lambda: CronItem("t", EVERY_MINUTE, fill=60), "fill must be a timedelta, not 60 (int)"),  # type: ignore[arg-type] # idem
        (lambda: CronItem("t", EVERY_MINUTE, fill=timedelta(seconds=-1)), "fill must be zero or more whole seconds"),
        (lambda: CronItem("t", EVERY_MINUTE, fill=timedelta(seconds=0.5)), "fill must be zero or more whole seconds"),
        (lambda: CronItem("t", EVERY_MINUTE, missed="never"), "missed must be 'skip', 'latest' or 'all', not 'never'"),
        (lambda: CronItem("t", EVERY_MINUTE, missed="all"), "missed 'all' needs a fill"),
        (lambda: CronItem("t", EVERY_MINUTE, missed="skip", fill=timedelta(1)), "missed 'skip' and a fill exclude each other"),
        (lambda: CronItem("t", EVERY_MINUTE, max_attempts=0), "max_attempts must be 1 to 32767, not 0"),
        (lambda: CronItem("t", EVERY_MINUTE, priority=40000), "priority must be -32768 to 32767, not 40000"),
        (lambda: CronItem("t", EVERY_MINUTE, queue=""), "queue must not be empty"),
        (lambda: CronItem("t", EVERY_MINUTE, job_key="k" * 513), "job_key has 513 characters"),
        (lambda: CronItem("t", EVERY_MINUTE, job_key_mode="unsafe_dedupe"), "job_key_mode must be 'replace' or 'preserve_run_at'"),
        (lambda: CronItem("t", EVERY_MINUTE, zone="Mars/Base"), "zone must be an IANA name of a time zone"),
        (lambda: CronItem("t", EVERY_MINUTE, zone="../etc/passwd"), "zone must be an IANA name of a time zone"),
    ],
)  # fmt: skip
def test_a_bad_item_is_refused_when_it_is_made(make: Callable[[], CronItem], words: str) -> None:
    with pytest.raises(CrontabError) as caught:
        make()
    assert words in str(caught.value)


def test_an_item_is_a_value() -> None:
    one, other = (CronItem("task", EVERY_MINUTE, {"a": [1]}, zone="Europe/Berlin") for _ in range(2))
    assert one == other
    assert hash(one) == hash(other)
    assert one.zone == ZoneInfo("Europe/Berlin")
    with pytest.raises(FrozenInstanceError):
        one.task = "other"  # type: ignore[misc] # that it can't be set is the point
    one.payload["a"].append(2)
    assert one.payload == {"a": [1]}


def test_tasks_and_objects_can_be_given() -> None:
    @task("greet")
    async def greet(payload: Any) -> None: ...

    @dataclass
    class Resize(TaskHandler):
        IDENTIFIER = "resize"
        width: int

        async def run(self, ctx: Any) -> None: ...

    assert CronItem(greet, EVERY_MINUTE).task == "greet"
    assert CronItem(Resize, EVERY_MINUTE, Resize(3)).payload == {"width": 3}
    pattern = CronItem(greet, "1 * * * *").schedule
    assert isinstance(pattern, CronPattern)
    assert CronItem(greet, pattern).schedule is pattern


def test_the_payload_of_a_job_has_the_shape_that_node_gives_it() -> None:
    tick = datetime(2024, 2, 29, 4, 0, tzinfo=UTC)
    item = CronItem("task", EVERY_MINUTE, {"a": 1, "_cron": "mine", "z": 2})
    text = item.job_payload(tick, backfilled=False)
    assert text == '{"a":1,"_cron":{"ts":"2024-02-29T04:00:00.000Z","backfilled":false},"z":2}'
    assert json.loads(CronItem("task", EVERY_MINUTE).job_payload(tick, backfilled=True)) == {
        "_cron": {"ts": "2024-02-29T04:00:00.000Z", "backfilled": True}
    }
