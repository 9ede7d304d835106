"""`backfill cron`, and `backfill worker --crontab`."""

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from tests.cli.conftest import TERM, CommandLine

from backfill.client import BackfillClient

if TYPE_CHECKING:
    from tests.cli.conftest import Rows

CRONTAB = """
# for both
0 4 * * 1-5 reports/daily ?id=nightly&fill=12h&jobKey=k&max=3&queue=q&priority=-2 {to: "x"}
30 2 * * * clean ?tz=Europe/Berlin&missed=latest
0 0 30 2 * never
"""
BUILDER = """
from backfill import CronItem, WorkerRunner, task

@task("greet")
async def greet(payload): ...

def make(config):
    return (
        WorkerRunner.builder(config)
        .define_job(greet)
        .add_cron_schedule(CronItem(greet, lambda moment: moment.minute == 7, identifier="odd"))
        .add_cron_schedule("0 4 * * * greet ?id=daily")
    )
"""


def write(cli: CommandLine, text: str = CRONTAB) -> None:
    (cli.folder / "crontab").write_text(text)
    (cli.folder / "mycron.py").write_text(BUILDER)


async def test_check_explains_each_item(bare_cli: CommandLine) -> None:
    write(bare_cli)
    done = await bare_cli("cron", "check", "crontab", "--count", 1)
    lines = done.out.splitlines()
    assert lines[:3] == [
        "line 3: nightly",
        "  At 04:00 on Monday through Friday",
        (
            "  task reports/daily, missed runs: all up to 12h old, attempts 3, queue q, priority -2, key k (replace),"
            ' payload {"to":"x"}'
        ),
    ]
    assert lines[3].startswith("  next: 20")
    assert "  At 02:30 every day (Europe/Berlin)" in lines
    assert "  never runs: none of its months has such a day" in lines
    assert lines[-2:] == [
        "3 items, no mistake",
        "Node workers refuse this crontab, because of line 4 (the option tz, the option missed)",
    ]
    assert "cron item never (line 5 of the crontab) never runs" in done.err


async def test_check_as_json(bare_cli: CommandLine) -> None:
    write(bare_cli)
    document = (await bare_cli("cron", "check", "crontab", "--json", "--count", 2)).document
    assert document["problems"] == []
    nightly, clean, never = document["items"]
    assert (nightly["schedule"], nightly["fill"], nightly["missed"]) == ("0 4 * * 1-5", 43200, "all")
    assert (nightly["payload"], nightly["max_attempts"], nightly["line"]) == ({"to": "x"}, 3, 3)
    assert (clean["zone"], clean["additions"]) == ("Europe/Berlin", ["the option tz", "the option missed"])
    assert [run["local"][10:19] for run in clean["next"]] == ["T02:30:00"] * 2
    assert (never["never_runs"], never["next"]) == (True, [])


async def test_check_tells_every_mistake(bare_cli: CommandLine) -> None:
    write(bare_cli, "60 * * * * a\n* * * * * b ?x=1\n")
    done = await bare_cli("cron", "check", "crontab", code=1)
    assert done.out == ""
    assert done.err.splitlines()[:2] == [
        "backfill: bad crontab, 2 problems:",
        "line 1, column 1: expected minutes of 0-59, found '60'",
    ]
    done = await bare_cli("cron", "check", "crontab", "--json", code=1)
    assert [(one["line"], one["column"], one["found"]) for one in done.document["problems"]] == [
        (1, 1, "'60'"),
        (2, 14, "'x'"),
    ]
    assert "can't be read" in (await bare_cli("cron", "check", "nowhere", code=1)).err


async def test_next_shows_runs_in_their_order(bare_cli: CommandLine) -> None:
    write(bare_cli)
    after = ("--after", "2024-03-30T00:00:00Z")  # a Saturday; clocks go forward on Sunday
    done = await bare_cli("cron", "next", "crontab", "--count", 3, *after)
    rows = [line.split("  ") for line in done.out.splitlines()]
    assert [[word.strip() for word in row if word.strip()] for row in rows] == [
        ["run at", "in its zone", "item", "task", "when"],
        ["2024-03-30 01:30:00Z", "2024-03-30 02:30+01:00", "clean", "clean", "At 02:30 every day (Europe/Berlin)"],
        ["2024-03-31 01:00:00Z", "2024-03-31 03:00+02:00", "clean", "clean", "At 02:30 every day (Europe/Berlin)"],
        ["2024-04-01 00:30:00Z", "2024-04-01 02:30+02:00", "clean", "clean", "At 02:30 every day (Europe/Berlin)"],
    ]
    done = await bare_cli("cron", "next", "crontab", "--count", 1, "--id", "nightly", "--json", *after)
    assert done.document["runs"] == [
        {
            "identifier": "nightly",
            "task": "reports/daily",
            "words": "At 04:00 on Monday through Friday",
            "run_at": "2024-04-01T04:00:00Z",
            "local": "2024-04-01T04:00:00Z",
        }
    ]
    assert (await bare_cli("cron", "next", "crontab", "--id", "never")).out == "no runs\n"
    done = await bare_cli("cron", "next", "crontab", "--id", "nigthly", code=1)
    assert "crontab has no item 'nigthly'; it has nightly, clean, never" in done.err


async def test_items_in_code_are_found_by_their_builder(bare_cli: CommandLine) -> None:
    write(bare_cli)
    done = await bare_cli("cron", "next", "mycron:make", "--count", 1, "--id", "odd", "--after", "2024-01-15T12:30:00Z")
    assert "2024-01-15 13:07:00Z" in done.out
    assert "says so" in done.out
    document = (await bare_cli("cron", "check", "mycron:make", "--json")).document
    assert [(item["identifier"], item["schedule"], item["line"]) for item in document["items"]] == [
        ("odd", None, None),
        ("daily", "0 4 * * *", None),
    ]


async def test_list_shows_what_the_database_knows(cli: CommandLine, client: BackfillClient, rows: "Rows") -> None:
    assert (await cli("cron", "list")).out == "no cron items are known in this schema\n"
    await rows(
        "insert into graphile_worker._private_known_crontabs values ('of-node', '2024-01-01Z', null),"
        " ('nightly', '2024-01-01Z', '2024-02-29 04:00Z'), ('ahead', '2024-01-01Z', '2999-01-01Z') returning 1"
    )
    done = await cli("cron", "list")
    assert done.out.splitlines()[0].split("  ")[0] == "item"
    assert "2024-02-29 04:00:00Z" in done.out
    assert "ahead was scheduled for a time that is still to come, and waits for it" in done.out
    write(cli)
    document = (await cli("cron", "list", "crontab", "--json")).document
    by_name = {row["identifier"]: row for row in document["crontabs"]}
    assert list(by_name) == ["ahead", "clean", "never", "nightly", "of-node"]
    assert (by_name["of-node"]["next_run"], by_name["clean"]["known_since"]) == (None, None)
    assert by_name["nightly"]["last_execution"] == "2024-02-29T04:00:00Z"
    assert datetime.fromisoformat(by_name["nightly"]["next_run"]) > datetime.now(UTC)
    assert "At 04:00 on Monday through Friday" in (await cli("cron", "list", "crontab")).out


async def test_a_worker_schedules_a_crontab(cli: CommandLine, client: BackfillClient, rows: "Rows") -> None:
    (cli.folder / "crontab").write_text("* * * * * greet ?missed=latest {n: 5}\n")
    await rows(
        "insert into graphile_worker._private_known_crontabs values ('greet', now() - interval '1 hour') returning 1"
    )
    async with cli.running("worker", "mytasks", "--crontab", "crontab") as worker:
        await worker.said("greeted {'n': 5, '_cron':")
        worker.signal(TERM)
        assert await worker.ended() == 0


async def test_a_worker_refuses_a_bad_crontab_before_anything_else(cli: CommandLine) -> None:
    (cli.folder / "crontab").write_text("60 * * * * greet\n")
    done = await cli("worker", "mytasks", "--crontab", "crontab", "--processes", 2, code=1)
    assert "line 1, column 1: expected minutes of 0-59, found '60'" in done.err
    done = await cli("worker", "mytasks", "--crontab", "crontab", "--once", code=2)
    assert "--once adds no jobs at set times" in done.err
