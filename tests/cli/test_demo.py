"""`backfill demo`, end to end: on a server of its own and on one that is given."""

import asyncio
import contextlib
import os
import re
import shlex
import shutil
import sys
import uuid
import warnings
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from tests.cli.conftest import INT, KILL, CommandLine, Rows
from tests.support.until import until

from backfill import embedded
from backfill.cli.common import Cli
from backfill.cli.demo.command import _commands, _database
from backfill.cli.demo.counting import count
from backfill.cli.demo.sources import BROKEN, standard_library
from backfill.cli.demo.work import Result

SCHEMAS = "select nspname from pg_namespace where nspname like 'backfill_demo%'"


def marked(mark: str) -> list[str]:
    """The processes that have the mark in their environment."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if mark.encode() in (folder / "environ").read_bytes():
                found.append((folder / "cmdline").read_bytes().replace(b"\0", b" ").decode())
        except OSError:  # it has just ended, or is somebody else's
            continue
    return found


@pytest.fixture
async def mark() -> AsyncIterator[str]:
    """A mark for the environment of a command: no process that has inherited it may be left in the end."""
    mark = uuid.uuid4().hex
    yield mark
    await until(lambda: not marked(mark), "no process is left behind")


def broken_folders(folder: Path) -> list[Path]:
    """The folders of broken files that demos have left."""
    return list(folder.glob("backfill-demo-*"))


def expected(files: int) -> tuple[int, int, int]:
    """What is in so many files of the standard library, those that can't be parsed left out."""
    total = (0, 0, 0)
    for source in standard_library(files):
        with contextlib.suppress(SyntaxError, ValueError), warnings.catch_warnings(action="ignore"):
            lines, functions, classes = count(source.path)
            total = (total[0] + lines, total[1] + functions, total[2] + classes)
    return total


def check(document: dict[str, Any], files: int) -> None:
    """Everything that the demo shows has happened."""
    failed = {entry["file"]: entry["error"] for entry in document["dlq"] if entry["file"] in BROKEN}
    assert sorted(failed) == sorted(BROKEN)
    assert failed["bad_encoding.py"].startswith("UnicodeDecodeError: ")
    assert failed["bad_indentation.py"].startswith("IndentationError: ")
    assert document["files"] + len(document["dlq"]) == files + len(BROKEN)
    assert (document["lines"], document["functions"], document["classes"]) == expected(files)
    assert (document["packages"] > 0, document["wrong_totals"]) == (True, 0)
    assert document["retries"] == 7
    notes = document["notes"]
    assert {about: [note["detail"] for note in noted] for about, noted in notes.items()} == {
        "emergency": [0],
        "keyed": [3],
        "scheduled": [0],
    }
    assert notes["emergency"][0]["waiting"] > 0
    assert notes["scheduled"][0]["late_by"] >= 0
    counted, others = document["files"] + len(document["dlq"]), 5 + 7 + 3
    pings = document["jobs_run"] - counted - document["files"] - others
    assert pings >= 1
    for waits in document["wait_ms"].values():
        assert 0 <= waits["p50"] <= waits["p95"] <= waits["p99"]
    assert document["jobs_per_second"] > 0


@pytest.mark.skipif(not Path("/proc").exists(), reason="processes left behind are looked for in /proc")
async def test_on_a_server_of_its_own(bare_cli: CommandLine, mark: str, tmp_path: Path) -> None:
    done = await bare_cli("demo", "--files", 60, "--json", BACKFILL_TEST_MARK=mark, TMPDIR=str(tmp_path))
    check(done.document, 60)
    assert done.document["commands"] == []
    assert done.err.splitlines()[0] == "Starting PostgreSQL …"
    assert "65 of 65 files" in done.err
    assert broken_folders(tmp_path) == []


async def test_on_a_server_that_is_given(cli: CommandLine, rows: Rows, tmp_path: Path) -> None:
    await cli("enqueue", "count_source", '{"of": "production"}')
    done = await cli("demo", "--files", 10, TMPDIR=str(tmp_path))
    assert re.search(r"jobs run +\d+ in ", done.out)
    assert "retries        7," in done.out
    assert "every total is right" in done.out
    assert "ran once, with payload 3 of 3" in done.out
    assert all(name in done.out for name in BROKEN)
    assert "backfill demo --keep" in done.out
    assert await rows(SCHEMAS) == []
    assert await rows("select payload::text, attempts from graphile_worker._private_jobs") == [
        ('{"of":"production"}', 0)
    ]
    assert broken_folders(tmp_path) == []


async def test_what_is_kept_can_be_mended_and_requeued(bare_cli: CommandLine, folder: Path, tmp_path: Path) -> None:
    """Also: again in the same place, and the printed commands as they are printed, on a server that ends with each."""
    where = f"embedded://{folder}/data"
    await bare_cli("demo", "--files", 5, "--keep", "--database-url", where, TMPDIR=str(tmp_path))
    shutil.rmtree(broken_folders(tmp_path)[0])
    done = await bare_cli("demo", "--files", 5, "--keep", "--database-url", where, "--json", TMPDIR=str(tmp_path))
    check(done.document, 5)
    listing, _, _, working, jobs = (shlex.split(command.split("#")[0])[1:] for command in done.document["commands"])
    assert (await bare_cli(*listing, "--json")).document["total"] == len(BROKEN)
    entry = next(entry for entry in done.document["dlq"] if entry["file"] == "syntax_error.py")
    requeue = shlex.split(done.document["commands"][2].split("#")[0])[1:]
    requeue[2] = str(entry["id"])
    mended = broken_folders(tmp_path)[0] / "syntax_error.py"
    mended.write_text("def mended():\n    pass\n")
    await bare_cli(*requeue)
    assert (await bare_cli(*working, "--json")).document == {"runs": 2}
    left = (await bare_cli(*listing, "--json")).document["jobs"]
    assert sorted(Path(entry["payload"]["path"]).name for entry in left) == sorted(set(BROKEN) - {"syntax_error.py"})
    assert (await bare_cli(*jobs)).out == "no jobs\n"


async def test_a_schema_that_no_demo_made_is_left_alone(cli: CommandLine, rows: Rows) -> None:
    await rows("create schema backfill_demo")
    await rows("create table backfill_demo.precious (id int)")
    done = await cli("demo", code=1)
    assert "no backfill demo made, so it is left alone" in done.err
    assert await rows("select * from backfill_demo.precious") == []
    done = await cli("demo", "--files", 3, "--schema", "backfill_demo_2", "--json")
    check(done.document, 3)
    assert await rows(SCHEMAS) == [("backfill_demo",)]


async def test_one_demo_at_a_time(cli: CommandLine, rows: Rows) -> None:
    async with cli.running("demo", "--files", 300) as first:
        await first.said("files")
        done = await cli("demo", "--files", 3, code=1)
        assert "another backfill demo is at work" in done.err
        first.signal(INT)
        assert await first.ended() == 130
        assert "backfill: interrupted" in first.logs
    assert await rows(SCHEMAS) == []


@pytest.mark.skipif(not Path("/proc").exists(), reason="processes left behind are looked for in /proc")
async def test_nothing_is_left_of_one_that_was_killed(bare_cli: CommandLine, mark: str, tmp_path: Path) -> None:
    async with bare_cli.running("demo", "--files", 300, BACKFILL_TEST_MARK=mark, TMPDIR=str(tmp_path)) as demo:
        await demo.said("files")
        assert len(marked(mark)) > 3  # its own, the supervisor, the server, a helper
        demo.signal(KILL)
        await demo.ended()


async def test_kept_data_has_a_place_of_its_own(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    monkeypatch.delenv("DATABASE_URL", raising=False)
    monkeypatch.setattr(embedded, "default_data_dir", lambda name: folder / name)
    with _database(Cli(None, None, as_json=False, log_format="text"), keep=True) as (url, options):
        assert str(folder) in url
    assert options == ["--database-url", f"embedded://{folder}/demo"]
    assert (folder / "demo" / "pgdata").is_dir()


@pytest.mark.parametrize(
    ("argv0", "program"),
    [(".venv/bin/backfill", ".venv/bin/backfill"), ("/elsewhere/backfill", "backfill"), ("x/__main__.py", "backfill")],
)
def test_the_commands_can_be_run_as_they_are_printed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, argv0: str, program: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [argv0])
    result = Result(seconds=1.0, waits={}, retries=0, counted={}, notes={}, dead=[])
    assert _commands(["--database-url", "a b"], "s", result)[0] == f"{program} dlq list --database-url 'a b' --schema s"


async def test_a_bar_on_a_terminal(cli: CommandLine) -> None:
    ours, theirs = os.openpty()
    try:
        command = (sys.executable, "-m", "backfill", "demo", "--files", "3", "--json")
        process = await asyncio.create_subprocess_exec(
            *command, env=cli.environment | {"TERM": "xterm"}, stdout=asyncio.subprocess.PIPE, stderr=theirs
        )
        os.close(theirs)
        shown: list[bytes] = []

        def read() -> None:
            try:
                while part := os.read(ours, 65536):
                    shown.append(part)
            except OSError:  # the other end was closed
                return

        reading = asyncio.create_task(asyncio.to_thread(read))
        async with asyncio.timeout(90):
            await process.communicate()
            await reading
        assert process.returncode == 0
        assert b"8/8" in b"".join(shown)
    finally:
        os.close(ours)


def test_the_standard_library_without_what_was_installed() -> None:
    everything = standard_library(None)
    assert len(everything) > 100
    assert not [source for source in everything if "site-packages" in source.path]
    assert {"asyncio", "single modules"} <= {source.package for source in everything}
    assert len({source.path for source in everything}) == len(everything)
    some = standard_library(30)
    assert len(set(some)) == 30
    assert set(some) < set(everything)
    assert standard_library(10**6) == everything
