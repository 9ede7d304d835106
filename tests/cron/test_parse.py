"""Graphile Worker's grammar (contract section 4.1), our additions, and what is said of a line that does not fit."""

import logging
from datetime import timedelta
from zoneinfo import ZoneInfo

import pytest

from backfill import CronItem, parse_crontab
from backfill.cron import CronPattern, MissedRuns
from backfill.cron.parse import parse_lines
from backfill.errors import CrontabError
from backfill.model import JobKeyMode

ALL = CronPattern(tuple(range(60)), tuple(range(24)), tuple(range(1, 32)), tuple(range(1, 13)), tuple(range(7)))


def one(line: str) -> CronItem:
    (item,) = parse_crontab(line)
    return item


def pattern(fields: str) -> CronPattern:
    schedule = one(f"{fields} task").schedule
    assert isinstance(schedule, CronPattern)
    return schedule


def test_c_055_a_full_featured_file() -> None:
    text = (
        "# a comment\n"
        "\n"
        "* * * * * simple\r\n"
        "0 4 * * 7 weekly-report\n"
        "\t  */30,7\t4-6 1,*/15   */4 1-5\t\treports/daily:all  \t\n"
        "1 2 3 4 5 everything ?id=all_of-it&fill=1w2d3h4m5s&max=3&queue=my-queue_1:x&jobKey=a%20b+c&priority=-5 "
        "{it's: 'not # a comment', list: [1, +2., .5, 0x1F,], \"nested\": {a: null}}\n"
        "   # another\n"
        "0 0 * * * kept ?jobKey=k&jobKeyMode=preserve_run_at&id=kept2\n"
    ).replace("it's", "its")
    simple, weekly, odd, everything, kept = parse_crontab(text)
    assert simple == CronItem("simple", ALL)
    assert (simple.identifier, simple.payload, simple.fill) == ("simple", {}, timedelta(0))
    assert (simple.max_attempts, simple.queue, simple.priority, simple.job_key, simple.job_key_mode) == (None,) * 5
    assert weekly.schedule == CronPattern((0,), (4,), ALL.days, ALL.months, (0,))
    assert odd.task == "reports/daily:all"
    assert odd.schedule == CronPattern((0, 7, 30), (4, 5, 6), (1, 16, 31), (1, 5, 9), (1, 2, 3, 4, 5))
    assert everything == CronItem(
        "everything",
        CronPattern((1,), (2,), (3,), (4,), (5,)),
        {"its": "not # a comment", "list": [1, 2, 0.5, 31], "nested": {"a": None}},
        identifier="all_of-it",
        fill=timedelta(weeks=1, days=2, hours=3, minutes=4, seconds=5),
        max_attempts=3,
        queue="my-queue_1:x",
        job_key="a b c",
        job_key_mode="replace",
        priority=-5,
    )
    assert (kept.identifier, kept.job_key_mode) == ("kept2", JobKeyMode.PRESERVE_RUN_AT)


@pytest.mark.parametrize(
    ("field", "minutes"),
    [
        ("5", (5,)),
        ("005", (5,)),
        ("5,5,4", (4, 5)),
        ("58-59", (58, 59)),
        ("*/1", ALL.minutes),
        ("*/25", (0, 25, 50)),
        ("*/060", (0,)),
        ("*/99999999999999999999999", (0,)),
    ],
)
def test_a_field_is_a_sorted_list_without_duplicates(field: str, minutes: tuple[int, ...]) -> None:
    assert pattern(f"{field} * * * *").minutes == minutes


@pytest.mark.parametrize(
    ("field", "weekdays"),
    [("0", (0,)), ("7", (0,)), ("5-7", (0, 5, 6)), ("0-7", ALL.weekdays), ("*", ALL.weekdays), ("*/2", (0, 2, 4, 6))],
)
def test_the_weekday_7_is_sunday(field: str, weekdays: tuple[int, ...]) -> None:
    assert pattern(f"* * * * {field}").weekdays == weekdays


def test_steps_begin_at_the_fields_lowest_value() -> None:
    assert pattern("* * */10 * *").days == (1, 11, 21, 31)
    assert pattern("* * * */5 *").months == (1, 6, 11)


BLANKS = "\u00a0\u3000\ufeff \t"


def test_white_space_is_that_of_javascript() -> None:
    assert one(f"{BLANKS}*{BLANKS}* * * *\u2003task{BLANKS}").task == "task"
    assert parse_crontab(f"{BLANKS}\r\n{BLANKS}# {BLANKS}\n") == []


@pytest.mark.parametrize(
    ("payload", "value"),
    [
        ("{}", {}),
        ("{a: 'b',}", {"a": "b"}),
        ('{ /* c } */ a : "x\'y\\x41\\u0042\\v" , $_: true } ', {"a": "x'yAB\v", "$_": True}),
        ("{'a': 'it\\'s', a: 2}", {"a": 2}),
        ("{a: [NaN, -Infinity, 1e999]}", {"a": [None, None, None]}),
        ("{a: 1.0, b: 1e3, c: -0, d: 9007199254740993}", {"a": 1, "b": 1000, "c": 0, "d": 9007199254740992}),
        ("{a: 1e300, b: 5.}", {"a": 1e300, "b": 5}),
        ("{\u00e4: '\\ud83d\\ude00', \\u0061b: 1}", {"\u00e4": "😀", "ab": 1}),
        ("{_cron: 1}", {"_cron": 1}),
        ("{a: 1 // c }", None),
    ],
)
def test_the_payload_is_json5(payload: str, value: dict[str, object] | None) -> None:
    if value is None:
        with pytest.raises(CrontabError, match="found the end of the line"):
            one(f"* * * * * task {payload}")
    else:
        assert one(f"* * * * * task {payload}").payload == value


def test_numbers_that_are_whole_are_written_so() -> None:
    assert one("* * * * * task {a: 1.0, b: 1e2}").payload_text == '{"a":1,"b":100}'


# What is wrong, where, and in which words. The parts of C-056 come first.
WRONG = [
    ("* * * *", 8, "expected minute hour day month weekday task, found the end of the line"),
    ("* * * * * two words", 15, "expected ?options, a payload in { }, or the end of the line, found 'words'"),
    ("60 * * * * task", 1, "expected minutes of 0-59, found '60'"),
    ("*/0 * * * * task", 1, "expected a step of at least 1 in the minutes, found '*/0'"),
    (
        "* * * * * task ?unknown=3",
        17,
        "expected an option of id, fill, max, queue, jobKey, jobKeyMode, priority, tz, missed, found 'unknown'",
    ),
    ("* * * * * task {a: }", 20, "expected a value in the payload, found '}'"),
    ("* * * * task", 9, "expected weekdays of 0-7 or sun-sat: a number, a range a-b, * or */n, found 'task'"),
    ("* 24 * * * task", 3, "expected hours of 0-23, found '24'"),
    ("* * 0 * * task", 5, "expected days of 1-31, found '0'"),
    ("* * * 1,13 * task", 9, "expected months of 1-12 or jan-dec, found '13'"),
    ("* * * * 8 task", 9, "expected weekdays of 0-7 or sun-sat, found '8'"),
    ("1,,2 * * * * task", 3, "expected minutes of 0-59: a number, a range a-b, * or */n, found ''"),
    ("1-9/2 * * * * task", 1, "expected minutes of 0-59: a number, a range a-b, * or */n, found '1-9/2'"),
    (
        "5-5 * * * * task",
        1,
        "expected a range of minutes that goes upwards (for others, write two: a list has commas), found '5-5'",
    ),
    ("1-99 * * * * task", 3, "expected minutes of 0-59, found '99'"),
    ("* * * foo * task", 7, "expected months of 1-12 or jan-dec, found 'foo'"),
    ("mon * * * * task", 1, "expected minutes of 0-59, found 'mon'"),
    ("* * * * *", 10, "expected a task after minute hour day month weekday, found the end of the line"),
    (
        "* * * * * task.name",
        15,
        "expected a task's name: a letter or _, then letters, digits, _ : - /, found '.' in 'task.name'",
    ),
    ("* * * * * 9task", 11, "expected a task's name: a letter or _, then letters, digits, _ : - /, found '9' in '9task'"),
    ("* * * * * task ?", 16, "expected options after the ?, as in ?id=nightly&fill=1d, found '?'"),
    ("* * * * * task ?id=9", 17, "expected id=a letter or _, then letters, digits, _ -, found 'id=9'"),
    ("* * * * * task ?max=3&id=a&id=b", 28, "expected the option id once, found 'id'"),
    ("* * * * * task ?fill=1y", 17, "expected fill=numbers with the units s m h d w, as in 1d12h, found 'fill=1y'"),
    ("* * * * * task ?fill=", 17, "expected fill=numbers with the units s m h d w, as in 1d12h, found 'fill='"),
    (
        "* * * * * task ?fill=99999999999w",
        17,
        "expected fill=numbers with the units s m h d w, as in 1d12h, found 'fill=99999999999w'",
    ),
    ("* * * * * task ?max=0", 17, "expected max=1 to 32767, found 'max=0'"),
    ("* * * * * task ?max=-1", 17, "expected max=1 to 32767, found 'max=-1'"),
    ("* * * * * task ?priority=40000", 17, "expected priority=-32768 to 32767, found 'priority=40000'"),
    ("* * * * * task ?queue=a.b", 17, "expected queue=letters, digits, _ - :, found 'queue=a.b'"),
    ("* * * * * task ?jobKey=", 17, "expected jobKey=1 to 512 characters, found 'jobKey='"),
    (
        "* * * * * task ?jobKeyMode=unsafe_dedupe",
        17,
        "expected jobKeyMode=replace or preserve_run_at, found 'jobKeyMode=unsafe_dedupe'",
    ),
    (
        "* * * * * task ?tz=Mars/Base",
        17,
        "expected tz=a time zone of this machine (pip install tzdata adds all), as in Europe/Berlin, found 'tz=Mars/Base'",
    ),
    ("* * * * * task ?missed=some", 17, "expected missed=skip, latest or all, found 'missed=some'"),
    ("* * * * * task ?missed=all", 11, "missed 'all' needs a fill, which says how old a run may be to be made up for"),
    (
        "* * * * * task ?missed=skip&fill=1d",
        11,
        "missed 'skip' and a fill exclude each other: a fill is for making up for missed runs",
    ),
    ("* * * * * task [1]", 16, "expected ?options, a payload in { }, or the end of the line, found '[1]'"),
    ("* * * * * task{a:1}", 15, "expected a task's name: a letter or _, then letters, digits, _ : - /, found '{' in 'task{a:1}'"),
    ("* * * * * task {a:1} // c", 25, "expected a payload that ends with }, and nothing after it, found 'c'"),
    ("* * * * * task {a:1} {b:2}", 22, "expected nothing after the payload, or the end of the line in the payload, found '{'"),
    ("* * * * * task {'a' 1}", 21, "expected ':' after the key in the payload, found '1'"),
    ("* * * * * task {a:1 b:2}", 21, "expected ',' or '}' in the payload, found 'b'"),
    ("* * * * * task {a:[1 2]}", 22, "expected ',' or ']' in the payload, found '2'"),
    ("* * * * * task {1a:1}", 17, "expected a key in the payload, found '1a'"),
    ("* * * * * task {a:01}", 19, "expected a value in the payload, found '01'"),
    ("* * * * * task {a:'}", 21, "expected the closing ' of the string at column 19 in the payload, found the end of the line"),
    ("* * * * * task {a:'\\u00g0'}", 20, "expected the hexadecimal digits of \\u in the payload, found '\\\\'"),
    ("* * * * * task {a:'\\1'}", 20, "expected an escape that JSON5 knows in the payload, found '\\\\'"),
    ("* * * * * task {a:'\\0'}", 19, "expected a string without NUL, which PostgreSQL cannot store, in the payload, found \"'\""),
    ("* * * * * task {a: 'b\u2028c'}", 22, "expected no line break in the payload, found '\\u2028'"),
    ("* * * * * task {/* }", 17, "expected the end of the comment, */, in the payload, found '/'"),
    (
        "@reboot task",
        1,
        "expected one of @hourly, @daily, @midnight, @weekly, @monthly, @yearly, @annually, found '@reboot'",
    ),
    ("@daily", 7, "expected a task after minute hour day month weekday, found the end of the line"),
    ("* * * * * " + "t" * 129, 11, f"expected a task's name of at most 128 characters, found '{'t' * 40}…'"),
]  # fmt: skip


@pytest.mark.parametrize(("line", "column", "words"), WRONG)
def test_c_056_a_bad_line_is_told_with_its_place(line: str, column: int, words: str) -> None:
    with pytest.raises(CrontabError) as caught:
        parse_crontab(f"# first\n{line}\n")
    (problem,) = caught.value.problems
    assert (problem.line, problem.column, problem.text) == (2, column, line)
    assert str(caught.value).splitlines()[0] == f"bad crontab: line 2, column {column}: {words}"


def test_the_place_is_marked_under_the_line() -> None:
    with pytest.raises(CrontabError) as caught:
        parse_crontab("\t0  24-25 * * * task")
    assert str(caught.value) == (
        "bad crontab: line 1, column 5: expected hours of 0-23, found '24'\n   0  24-25 * * * task\n      ^^"
    )


def test_of_a_long_line_what_is_around_the_place_is_shown() -> None:
    with pytest.raises(CrontabError) as caught:
        parse_crontab(f"* * * * * task {{a: '{'x' * 500}', b: oops}}")
    said, shown, marks = str(caught.value).splitlines()
    assert said.endswith("expected a value in the payload, found 'oops'")
    assert shown[marks.index("^") :] == "oops}"
    assert len(shown) < 130


def test_all_bad_lines_are_told_together() -> None:
    with pytest.raises(CrontabError) as caught:
        parse_crontab("* * * * * good\n60 * * * * a\n\n* * * * * b c\n* * * * * good ?priority=1\n")
    assert [(problem.line, problem.column) for problem in caught.value.problems] == [(2, 1), (4, 13), (5, 1)]
    assert str(caught.value).startswith(
        "bad crontab, 3 problems:\nline 2, column 1: expected minutes of 0-59, found '60'\n"
    )
    assert "found 'good' again, which is that of line 1" in str(caught.value)


def test_identifiers_make_two_items_of_one_task() -> None:
    first, second = parse_crontab("* * * * * task\n* * * * * task ?id=other")
    assert (first.identifier, second.identifier) == ("task", "other")


def test_a_line_that_is_never_met_is_allowed_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "backfill.cron"):
        (item,) = parse_crontab("* * 30 2 * task")
    assert item.never_runs
    assert [record.getMessage() for record in caplog.records] == [
        "cron item task (line 1 of the crontab) never runs: none of its months has such a day"
    ]


# -- additions ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "same"),
    [
        ("0 4 * * mon-fri", "0 4 * * 1-5"),
        ("0 4 * * fri-sun", "0 4 * * 5-7"),
        ("0 4 * * sun-tue", "0 4 * * 0-2"),
        ("0 4 * JAN,Mar-may Sat", "0 4 * 1,3-5 6"),
        ("@hourly", "0 * * * *"),
        ("@daily", "0 0 * * *"),
        ("@Midnight", "0 0 * * *"),
        ("@weekly", "0 0 * * 0"),
        ("@monthly", "0 0 1 * *"),
        ("@yearly", "0 0 1 1 *"),
        ("@annually", "0 0 1 1 *"),
    ],
)
def test_names_stand_for_numbers(fields: str, same: str) -> None:
    assert pattern(fields) == pattern(same)


def test_a_zone_and_a_policy() -> None:
    item = one("0 4 * * * task ?tz=Europe%2FBerlin&missed=latest")
    assert (item.zone, item.missed) == (ZoneInfo("Europe/Berlin"), MissedRuns.LATEST)
    assert one("0 4 * * * task").missed is MissedRuns.SKIP
    assert one("0 4 * * * task ?fill=1d").missed is MissedRuns.ALL


@pytest.mark.parametrize(
    ("line", "additions"),
    [
        ("0 4 * * 1 task ?fill=1d&jobKey=x {a: 1}", ()),
        ("0 4 * * mon task", ("names of months or weekdays",)),
        ("@daily task ?tz=UTC&missed=latest", ("@daily", "the option tz", "the option missed")),
    ],
)
def test_what_node_would_refuse_is_known(line: str, additions: tuple[str, ...]) -> None:
    (found,) = parse_lines(line)
    assert found.additions == additions
