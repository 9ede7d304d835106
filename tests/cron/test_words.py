"""Schedules in words, and items as lines."""

from datetime import timedelta

import pytest
from hypothesis import given, settings
from tests.cron.strategies import PATTERNS, items

from backfill import CronItem, parse_crontab
from backfill.cron import CronPattern, crontab_line, describe
from backfill.cron.words import describe_pattern
from backfill.cron.write import pattern_text
from backfill.errors import CrontabError

FIELDS = [name for name in CronItem.__slots__ if name != "payload_text"]


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ("* * * * *", "Every minute"),
        ("*/5 * * * *", "Every 5 minutes"),
        ("*/30 * * * *", "Every 30 minutes"),
        ("0,15,30,45 * * * *", "Every 15 minutes"),
        ("*/7 * * * *", "At minutes 0, 7, 14, 21, 28, 35, 42, 49 and 56 of every hour"),
        ("*/40 * * * *", "At minutes 0 and 40 of every hour"),
        ("@hourly", "At minute 0 of every hour"),
        ("5-20 * * * *", "At minutes 5 through 20 of every hour"),
        ("0 4 * * *", "At 04:00 every day"),
        ("0 4 * * 1-5", "At 04:00 on Monday through Friday"),
        ("0 4 * * mon-fri", "At 04:00 on Monday through Friday"),
        ("0 4 * * 0,6", "At 04:00 on Saturday and Sunday"),
        ("0 4 * * fri-sun", "At 04:00 on Friday through Sunday"),
        ("0 4 * * 0-2", "At 04:00 on Monday, Tuesday and Sunday"),
        ("30 9,17 * * 1,3,5", "At 09:30 and 17:30 on Monday, Wednesday and Friday"),
        ("0 */4 * * *", "At 00:00, 04:00, 08:00, 12:00, 16:00 and 20:00 every day"),
        ("0 */2 * * *", "At minute 0 in the hours 00, 02, 04, 06, 08, 10, 12, 14, 16, 18, 20 and 22"),
        ("*/10 9-17 * * 1-5", "Every 10 minutes in the hours 09 through 17 on Monday through Friday"),
        ("* 2 * * *", "Every minute in the hour 02"),
        ("0 4 1 * *", "At 04:00 on day 1 of the month"),
        ("0 4 1-7,15 * *", "At 04:00 on days 1 through 7 and 15 of the month"),
        ("0 4 29 2 *", "At 04:00 on day 29 of February"),
        ("@yearly", "At 00:00 on day 1 of January"),
        ("0 4 * 6-8 *", "At 04:00 every day in June through August"),
        ("* * * 1,12 *", "Every minute in January and December"),
        ("0 4 * 1 1", "At 04:00 on Monday in January"),
        ("0 4 13 * 5", "At 04:00 on day 13 of the month, or on Friday"),
        ("0 4 13 1 5", "At 04:00 on day 13 of January, or on Friday of January"),
    ],
)
def test_a_schedule_in_words(fields: str, words: str) -> None:
    assert describe(CronItem("task", fields)) == words


def test_a_zone_is_named() -> None:
    assert describe(CronItem("task", "0 4 * * *", zone="Europe/Berlin")) == "At 04:00 every day (Europe/Berlin)"


def test_a_function_is_named() -> None:
    def full_moon(_: object) -> bool:
        return False

    assert describe(CronItem("task", full_moon)).endswith("full_moon says so")


@settings(max_examples=100, deadline=None)
@given(PATTERNS, PATTERNS)
def test_words_are_exact(one: CronPattern, other: CronPattern) -> None:
    assert (describe_pattern(one) == describe_pattern(other)) == (one == other)


@settings(max_examples=100, deadline=None)
@given(PATTERNS)
def test_a_pattern_is_written_as_it_is_read(pattern: CronPattern) -> None:
    (item,) = parse_crontab(f"{pattern_text(pattern)} task")
    assert item.schedule == pattern


@settings(max_examples=100, deadline=None)
@given(items())
def test_an_item_is_written_as_it_is_read(item: CronItem) -> None:
    (read,) = parse_crontab(crontab_line(item))
    assert read.payload == item.payload
    assert {name: getattr(read, name) for name in FIELDS} == {name: getattr(item, name) for name in FIELDS}


def test_a_line_is_written_as_a_person_would() -> None:
    item = CronItem(
        "reports/daily",
        "0 4 * * 1-5",
        {"to": "a@example.com"},
        identifier="nightly",
        fill=timedelta(days=1, hours=12),
        job_key="nightly report",
        zone="Europe/Berlin",
    )
    assert crontab_line(item) == (
        "0 4 * * 1-5 reports/daily ?id=nightly&fill=1d12h&jobKey=nightly%20report&tz=Europe/Berlin"
        ' {"to":"a@example.com"}'
    )
    assert crontab_line(CronItem("task", "*/10 9-17 1,2 * *")) == "*/10 9-17 1,2 * * task"


@pytest.mark.parametrize(
    "item", [CronItem("task", lambda _: True), CronItem("a.b", "* * * * *"), CronItem("a", "* * * * *", identifier="ä")]
)
def test_what_no_line_can_say_is_refused(item: CronItem) -> None:
    with pytest.raises(CrontabError):
        crontab_line(item)
