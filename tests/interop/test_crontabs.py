"""Crontabs as Node reads them (C-054, C-055, C-056), and missed runs as Node makes up for them (X-07)."""

import contextlib
import logging
import random
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from tests.cron.test_parse import WRONG

from backfill import CronItem, parse_crontab
from backfill.cron import CronPattern, CronScheduler
from backfill.errors import CrontabError
from backfill.sql import with_schema

if TYPE_CHECKING:
    from tests.conftest import Database
    from tests.interop.conftest import StartNode

LOWEST, HIGHEST = (0, 0, 1, 1, 0), (59, 23, 31, 12, 7)
BAD_PARTS = ("60", "-1", "1-", "*/0", "", "5-3", "1-2-3", "*/", "**", "1/2", "99999", "*-5", "+1")
TASKS = ("a/b:c-d_1", "_t", "T", "/x", "a.b", "9t", "täsk", "t{}", "t?id=x", "-a")
OPTIONS = (
    *("id=x", "id=a-b_1", "id=1", "id=", "id", "fill=1d", "fill=4h3m", "fill=1s1s", "fill=0s", "fill=d", "fill=1D"),
    *("fill=1.5h", "max=3", "max=007", "max=-1", "max=1e3", "max=", "queue=q", "queue=a:b-c_d", "queue=a.b", "queue="),
    *(
        "queue=a%3Ab",
        "jobKey=k",
        "jobKey=a%20b",
        "jobKey=a+b",
        "jobKey=%zz",
        "jobKey=a=b",
        "jobKey=%C3%A4",
        "jobKey=%ff",
    ),
    *("jobKeyMode=replace", "jobKeyMode=preserve_run_at", "jobKeyMode=unsafe_dedupe", "priority=3", "priority=-3"),
    *(
        "priority=+3",
        "priority=0",
        "priority=",
        "priority=1.5",
        "Id=x",
        "job_key=x",
        "foo=1",
        "%69d=x",
        "",
        "=",
        "id =x",
    ),
)
VALUES = (
    *(
        "1",
        "-2",
        "1.50",
        ".5",
        "5.",
        "0x1f",
        "+3",
        "1e3",
        "1E-2",
        "null",
        "true",
        "NaN",
        "-Infinity",
        "-0",
        "01",
        "1_0",
    ),
    *(
        "9007199254740993",
        "1e400",
        "1e21",
        "undefined",
        "--1",
        "'a'",
        '"b"',
        "'it\\'s'",
        '"\\x41\\u0042"',
        '"a#b"',
        "'\\1'",
    ),
    *("'\\n\\t\\v'", "'\\z'", '"\\u12"', '""', "'ä😀'", "'\\ud83d\\ude00'", '"a\tb"', "'a\u2028b'", "'unclosed"),
)
KEYS = ("a", "b_1", "$x", "_", "'q'", '"dq"', "ä", "\\u0061b", "1", "if", "a-b", "_cron", "a\u200cb", "constructor")
# Node takes these: all but the last two (a period of two billion years, a NUL) only to fail with them at each run.
ONLY_NODE = ("max=0", "jobKey=", "priority=40000", "t" * 129, "fill=99999999999w", "'\\0'")


class Lines:
    """Lines of crontabs at random: most nearly right, and some of them right."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)

    def odds(self, chance: float) -> bool:
        return self.random.random() < chance

    def line(self) -> str:
        pick = self.random.choice
        parts = [self.field(number) for number in range(5)]
        parts.append(pick(TASKS) if self.odds(0.1) else "task")
        if self.odds(0.5):
            parts.append("?" + "&".join(pick(OPTIONS) for _ in range(self.random.randint(1, 2))))
        if self.odds(0.5):
            parts.append(self.object(0))
        if self.odds(0.05):
            parts.append(pick(["x", "// c", "{}", "[1]", "?id=z", "/* } */ }", "# c"]))
        line = pick(["", "", " ", "\t"])
        for part in parts:
            line += part + (pick(["  ", "\t", " \t ", "\u00a0", "\u3000"]) if self.odds(0.1) else " ")
        if self.odds(0.04):
            at = self.random.randrange(len(line))
            line = line[:at] + pick(list("*/,-?{}[]&=%#\\\"'a0 ")) + line[at:]
        return line

    def field(self, number: int) -> str:
        return ",".join(self.part(number) for _ in range(1 if self.odds(0.7) else 3))

    def part(self, number: int) -> str:
        low, high = LOWEST[number], HIGHEST[number]
        ends = sorted(self.random.randint(low, high) for _ in range(2))
        kinds = [
            "*",
            str(ends[0]),
            f"0{ends[1]}",
            f"{ends[0]}-{ends[1]}",
            f"*/{self.random.choice([1, 2, 5, 7, 40, 100])}",
        ]
        return self.random.choice(BAD_PARTS if self.odds(0.03) else kinds)

    def value(self, depth: int) -> str:
        if self.odds(0.6) or depth > 2:
            return self.random.choice(VALUES)
        if self.odds(0.5):
            return f"[{', '.join(self.value(depth + 1) for _ in range(self.random.randint(0, 3)))}]"
        return self.object(depth + 1)

    def object(self, depth: int) -> str:
        keys = [self.random.choice(KEYS) for _ in range(self.random.randint(0, 3))]
        pairs = ",".join(f"{key}{self.random.choice([':', ': ', ' :'])}{self.value(depth)}" for key in keys)
        start, end = self.random.choice(["", " ", "/*c*/", "\u00a0"]), self.random.choice(["", "", ",", " "])
        return "{" + start + pairs + end + "}"


def moments(seed: int) -> list[dict[str, int]]:
    chance = random.Random(seed)
    names = ("min", "hour", "date", "month", "dow")
    return [
        {name: chance.randint(low, min(high, 6) if name == "dow" else high) for name, low, high in zip(names, LOWEST, HIGHEST, strict=True)}
        for _ in range(200)
    ]  # fmt: skip


def read(text: str) -> list[CronItem] | None:
    try:
        return parse_crontab(text)
    except CrontabError:
        return None


def as_node(item: CronItem, at: list[dict[str, int]]) -> dict[str, Any]:
    """An item in the shape in which the peer tells those of Node."""
    schedule = item.schedule
    assert isinstance(schedule, CronPattern)
    return {
        "task": item.task,
        "identifier": item.identifier,
        "payload": item.payload,
        "options": {
            "backfillPeriod": item.fill.total_seconds() * 1000,
            "maxAttempts": item.max_attempts,
            "queueName": item.queue,
            "priority": item.priority,
            "jobKey": item.job_key,
            "jobKeyMode": item.job_key_mode,
        },
        "matches": [
            one["min"] in schedule.minutes
            and one["hour"] in schedule.hours
            and one["month"] in schedule.months
            and schedule._allows_day(one["date"], one["dow"])
            for one in at
        ],
    }


def of_node(item: dict[str, Any]) -> dict[str, Any]:
    """Without what JavaScript calls undefined."""
    options = {name: item["options"].get(name) for name in as_node(CronItem("t", "* * * * *"), [])["options"]}
    names = ("task", "identifier", "matches")
    return {**{name: item[name] for name in names}, "payload": item["payload"] or {}, "options": options}


async def test_c_054_c_055_c_056_crontabs_mean_the_same(
    db: "Database", node: "StartNode", caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL)  # of lines that are never met
    lines = Lines(1)
    texts = [lines.line() for _ in range(3000)]
    texts += [line for line, _, _ in WRONG if not any(part in line for part in ONLY_NODE)]
    texts += ["* * * * * a\n* * * * * a", "* * * * * a\r\n\r\n # c\n* * * * * a ?id=b", "", "\ufeff* * * * * a"]
    at = moments(2)
    peer = await node(db)
    taken = 0
    for text, theirs in zip(texts, await peer.ask("parseCrontabs", texts, at), strict=True):
        ours = read(text)
        assert (ours is None) == (theirs is None), text
        if ours is not None:
            assert [as_node(item, at) for item in ours] == [of_node(item) for item in theirs], text
            taken += bool(ours)
    assert taken > 500  # most others are refused by both
    assert taken < len(texts) / 2


async def test_x_07_missed_runs_are_made_up_for_alike(db: "Database", node: "StartNode") -> None:
    """Both start with the same rows, each on a schema of its own; then each finds nothing left to do on the other's."""
    opposite = (datetime.now(UTC).hour + 12) % 24  # no run is near
    crontab = (
        f"0 {opposite} * * * daily ?fill=5d {{a: 1}}\n30 {opposite} * * * short ?fill=2d&jobKey=k\n0 {opposite} * * * none\n"
        f"0,30 {opposite} * * * new ?fill=1w"
    )
    since = datetime.now(UTC) - timedelta(days=4)
    connection = await db.connect()
    theirs = "theirs"
    peer = await node(db, schema=theirs)
    await peer.ask("migrate")
    for schema in (db.schema, theirs):
        known = with_schema("insert into graphile_worker._private_known_crontabs values ($1, $2, $3)", schema)
        await connection.execute(known, "daily", since, None)
        await connection.execute(known, "short", since, since + timedelta(days=3))
        await connection.execute(known, "none", since, None)
    await peer.ask("run", {"crontab": crontab, "events": ["cron:started"], "tasks": ["idle"]})
    await peer.event("cron:started")

    async def jobs(schema: str) -> list[Any]:
        return await connection.fetch(
            with_schema(
                "select identifier, payload::text, run_at, max_attempts, priority, key, flags::text, attempts"
                " from graphile_worker._private_jobs as jobs"
                " join graphile_worker._private_tasks as tasks on tasks.id = task_id order by jobs.id",
                schema,
            )
        )

    def scheduler(schema: str) -> CronScheduler:
        return CronScheduler(parse_crontab(crontab), schema, lambda: contextlib.nullcontext(connection))

    ours = await scheduler(db.schema).run_once(datetime.now(UTC))
    assert len(ours.scheduled) >= 5
    assert await jobs(db.schema) == await jobs(theirs)
    assert (await scheduler(theirs).run_once(datetime.now(UTC))).scheduled == []
    await peer.ask("stop")
