"""Executable files as tasks: which files are, what they are told, what becomes of what they say, and how they end."""

import asyncio
import json
import logging
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tests.support.until import until
from tests.worker.test_processes import ended, pids_in

from backfill.errors import ConfigurationError
from backfill.model import JobSpec, task
from backfill.worker import WorkerConfig, WorkerRunner, program
from backfill.worker.executables import executables
from backfill.worker.program import Lines

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.worker.conftest import Sql

    from backfill.client import BackfillClient

SH = "#!/bin/sh\n"
PY = f"#!{sys.executable}\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "tasks"
    made.mkdir()
    return made


def write(folder: Path, name: str, content: str, mode: int = 0o755) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    path.chmod(mode)
    return path


Make = Callable[..., Awaitable[WorkerRunner]]


@pytest.fixture
async def make(folder: Path, make_config: Callable[..., WorkerConfig]) -> "AsyncIterator[Make]":
    """A function that builds a runner for the folder."""
    runners: list[WorkerRunner] = []

    async def runner(**settings: Any) -> WorkerRunner:
        made = await WorkerRunner.builder(make_config(**settings)).define_executables(folder).build()
        runners.append(made)
        return made

    yield runner
    for made in runners:
        await made.close()


# -- which files --------------------------------------------------------------------------------


def test_names_are_paths_without_extensions(folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """C-060, as far as it is about files that are executed."""
    caplog.set_level(logging.INFO)
    for name in ("plain", "report.sh", "data.tar.gz", "deep/er/under_score-9.py"):
        write(folder, name, SH)
    (folder / "linked").symlink_to(write(tmp_path, "elsewhere.sh", SH))
    (folder / "folder").symlink_to(folder / "deep")
    for name in (".hidden", "with blank.sh", "odd dir/x.sh", "trailing."):
        write(folder, name, SH)
    for name in ("notes.md", "plain.txt"):
        write(folder, name, "not to be run", 0o644)
    for name in ("node.js", "node.mts", "plain.mjs"):
        write(folder, name, "#!/usr/bin/env node")
    os.mkfifo(folder / "pipe")
    found = executables(folder)
    assert [handler.identifier for handler in found] == ["data", "deep/er/under_score-9", "linked", "plain", "report"]
    assert {handler.timeout for handler in found} == {4 * 3600}
    said = caplog.text
    for name in (
        ".hidden",
        "with blank.sh",
        "odd dir",
        "trailing.",
        "notes.md",
        "plain.txt",
        "node.js",
        "pipe",
        "folder",
    ):
        assert f"{folder / name} is no task: " in said
    assert "links to folders are not followed" in said


def not_executable(folder: Path) -> None:
    write(folder, "a.sh", SH, 0o644)


def only_for_others(folder: Path) -> None:
    write(folder, "a.sh", SH, 0o655)


def one_name_twice(folder: Path) -> None:
    write(folder, "a.sh", SH)
    write(folder, "a.py", PY)


def link_to_nowhere(folder: Path) -> None:
    (folder / "a.sh").symlink_to(folder / "gone")


def long_name(folder: Path) -> None:
    write(folder, f"{'d' * 100}/{'f' * 100}.sh", SH)


def empty(folder: Path) -> None:
    write(folder, "notes.md", "nothing here", 0o644)


def no_folder(folder: Path) -> None:
    folder.rmdir()


def a_file(folder: Path) -> None:
    folder.rmdir()
    folder.write_text("")


@pytest.mark.parametrize(
    ("prepare", "words"),
    [
        (not_executable, r"/a\.sh begins with #! and is not executable: chmod \+x it"),
        (only_for_others, r"/a\.sh begins with #! and is not executable"),
        (one_name_twice, r"/a\.py and .*/a\.sh are both the task 'a'"),
        (link_to_nowhere, r"/a\.sh is a link to nowhere"),
        (long_name, r"f\.sh: task identifier has 201 characters"),
        (empty, r"tasks has no executable file: chmod \+x"),
        (no_folder, r"tasks does not exist"),
        (a_file, r"tasks is no folder"),
    ],
)
def test_mistakes_are_named_with_their_file(folder: Path, prepare: Callable[[Path], None], words: str) -> None:
    prepare(folder)
    with pytest.raises(ConfigurationError, match=words):
        executables(folder)


def test_all_mistakes_are_named_at_once(folder: Path) -> None:
    write(folder, "a.sh", SH, 0o644)
    write(folder, "b/c.sh", SH, 0o644)
    with pytest.raises(ConfigurationError, match=r"a\.sh begins with .*; .*c\.sh begins with"):
        executables(folder)


def test_a_task_of_the_same_name_elsewhere_is_an_error_with_both_places(
    folder: Path, make_config: Callable[..., WorkerConfig]
) -> None:
    @task("a")
    async def other() -> None: ...

    file = write(folder, "a.sh", SH)
    with pytest.raises(ConfigurationError, match=rf"two handlers are called 'a': at {__file__}:\d+ and at {file}"):
        WorkerRunner.builder(make_config()).define_job(other).define_executables(folder)


# -- what they are told -------------------------------------------------------------------------

TELL = f"""{PY}import json, os, sys
told = {{name: value for name, value in os.environ.items() if name.startswith("GRAPHILE_WORKER_")}}
print(json.dumps([told, sys.stdin.buffer.read().decode(), sys.argv[1:], os.getcwd(), os.environ["INHERITED"]]))
"""


@pytest.fixture
def inherited(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the worker's own environment has."""
    monkeypatch.setenv("INHERITED", "yes")
    monkeypatch.setenv("GRAPHILE_WORKER_JOB_KEY", "of the worker's own job")


@pytest.mark.parametrize("keyed", [False, True])
@pytest.mark.usefixtures("inherited")
async def test_what_a_program_is_told(
    folder: Path,
    make: Make,
    client: "BackfillClient",
    caplog: pytest.LogCaptureFixture,
    keyed: bool,
) -> None:
    key = "the key ü" if keyed else None
    caplog.set_level(logging.INFO)
    write(folder, "deep/tell.py", TELL)
    due = datetime(2020, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)
    spec = JobSpec(run_at=due, priority=-3, max_attempts=7, job_key=key)
    outcome = await client.enqueue("deep/tell", {"ü": [1, None]}, spec)
    runner = await make()
    assert await runner.process_available_jobs() == 1
    (line,) = [record for record in caplog.records if record.name == "backfill.worker.executables"]
    told, stdin, arguments, cwd, theirs = json.loads(line.getMessage().partition(": ")[2])
    assert told == {
        "GRAPHILE_WORKER_PAYLOAD_FORMAT": "json",
        "GRAPHILE_WORKER_TASK_IDENTIFIER": "deep/tell",
        "GRAPHILE_WORKER_JOB_ID": str(outcome.unwrap().id),
        **({"GRAPHILE_WORKER_JOB_KEY": key} if key else {}),
        "GRAPHILE_WORKER_JOB_ATTEMPTS": "1",
        "GRAPHILE_WORKER_JOB_MAX_ATTEMPTS": "7",
        "GRAPHILE_WORKER_JOB_PRIORITY": "-3",
        "GRAPHILE_WORKER_JOB_RUN_AT": "2020-01-02T03:04:05.678Z",
    }
    assert stdin == '{"payload":{"ü":[1,null]}}'
    assert (arguments, cwd, theirs) == ([], str(Path.cwd()), "yes")


async def test_a_program_need_not_read_what_it_is_told(folder: Path, make: Make, sql: "Sql") -> None:
    write(folder, "deaf.sh", SH)
    write(folder, "closes.sh", f"{SH}exec 0<&-\n")
    for name in ("deaf", "closes"):
        await sql.add(name, "x" * 1_000_000)
    runner = await make()
    assert await runner.process_available_jobs() == 2
    assert await sql.count() == 0


async def test_a_large_payload_arrives_whole(folder: Path, make: Make, sql: "Sql") -> None:
    write(folder, "count.sh", f"{SH}test $(wc -c) = 1000014\n")
    await sql.add("count", "x" * 1_000_000)
    runner = await make()
    await runner.process_available_jobs()
    assert await sql.count() == 0


# -- what they say ------------------------------------------------------------------------------


async def test_lines_are_logged(folder: Path, make: Make, sql: "Sql", caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    write(folder, "talk.sh", f"{SH}echo hello\necho\nprintf 'no end'\necho wrong >&2\n")
    job = await sql.add("talk")
    runner = await make()
    await runner.process_available_jobs()
    records = [record for record in caplog.records if record.name == "backfill.worker.executables"]
    said = sorted((record.levelno, record.getMessage()) for record in records)
    assert said == [
        (logging.INFO, f"job {job} (talk): hello"),
        (logging.INFO, f"job {job} (talk): no end"),
        (logging.ERROR, f"job {job} (talk): wrong"),
    ]
    assert {(r.__dict__["job_id"], r.__dict__["task"], r.__dict__["attempt"]) for r in records} == {(job, "talk", 1)}
    assert await sql.count() == 0


async def test_junk_and_endless_lines_are_shown_as_they_can_be(
    folder: Path, make: Make, sql: "Sql", caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    write(
        folder,
        "junk.py",
        f"{PY}import sys\n"
        "sys.stdout.buffer.write(bytes(range(256)) + b'\\n')\n"
        "sys.stdout.buffer.write(b'y' * 1_000_000)\n",
    )
    await sql.add("junk")
    runner = await make()
    await runner.process_available_jobs()
    *junk, endless = [r.getMessage() for r in caplog.records if r.name == "backfill.worker.executables"]
    assert "\\x00\\x01" in junk[0]
    assert "\\x1b" in junk[1]
    assert "\x1b" not in "".join(junk)
    assert endless.endswith("y [996000 bytes left out]")
    assert len(endless) < 4_100
    assert await sql.count() == 0


def test_lines_from_pieces() -> None:
    lines: list[str] = []
    stream = Lines(lines.append)
    for piece in (b"a", b"b\ncd\r\n", b"\n \ne", "ü".encode()[:1], "ü".encode()[1:], b"\tf"):
        stream.feed(piece)
    stream.end()
    assert lines == ["ab", "cd", "eü\tf"]


# -- how they end -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (f"{SH}exit 3\n", "ExecutableFailedError: exit code 3, and nothing on its stderr"),
        (
            f"{SH}for n in $(seq 30); do echo line $n >&2; done\nexit 255\n",
            "ExecutableFailedError: exit code 255, and this at the end of its stderr:\n"
            + "\n".join(f"line {n}" for n in range(11, 31)),
        ),
        (f"{SH}echo last words >&2\nkill -9 $$\n", "killed by SIGKILL, and this at the end of its stderr:\nlast words"),
        (f"{SH}kill -TERM $$\n", "killed by SIGTERM, and nothing on its stderr"),
        (f"{SH}kill -40 $$\n", "killed by signal 40, and nothing on its stderr"),
        ("#!/no/such/interpreter\n", "cannot be run: No such file or directory (a script needs a first line such as"),
        ("echo without an interpreter\n", "cannot be run: Exec format error (a script needs a first line such as"),
    ],
    ids=["code", "tail", "SIGKILL", "SIGTERM", "signal 40", "no interpreter", "no first line"],
)
async def test_a_failure_is_told_and_tried_again(
    folder: Path, make: Make, sql: "Sql", content: str, words: str
) -> None:
    write(folder, "fail.sh", content)
    await sql.add("fail")
    runner = await make()
    assert await runner.process_available_jobs() == 1
    row = await sql.row("select * from graphile_worker._private_jobs")
    assert words in row["last_error"]
    assert (row["attempts"], row["locked_at"]) == (1, None)
    assert await sql.value("select run_at > now() from graphile_worker._private_jobs")


async def test_a_file_that_is_gone_is_a_failure(folder: Path, make: Make, sql: "Sql") -> None:
    file = write(folder, "gone.sh", SH)
    runner = await make()
    file.unlink()
    await sql.add("gone")
    await runner.process_available_jobs()
    assert f"{file} cannot be run: No such file" in await sql.value(
        "select last_error from graphile_worker._private_jobs"
    )


STUBBORN = """#!/bin/sh
trap '' TERM
sh -c 'echo $$ >> "$PIDS"; while :; do sleep 1000; done' &
echo $$ >> "$PIDS"
while :; do sleep 1000; done
"""
POLITE = """#!/bin/sh
sh -c 'echo $$ >> "$PIDS"; exec sleep 1000' &
echo $$ >> "$PIDS"
wait
"""


@pytest.fixture
def pids(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where scripts write their process ids, by the variable PIDS; SIGKILL follows soon."""
    monkeypatch.setenv("PIDS", str(tmp_path / "pids"))
    monkeypatch.setattr(program, "GRACE", 0.3)
    return tmp_path / "pids"


@pytest.mark.parametrize("content", [STUBBORN, POLITE], ids=["ignores SIGTERM", "ends"])
async def test_a_time_limit_ends_it_and_all_that_it_started(
    folder: Path,
    make: Make,
    sql: "Sql",
    pids: Path,
    content: str,
) -> None:
    write(folder, "hang.sh", content)
    runner = await make()
    await runner.client.enqueue("hang", None, JobSpec(timeout=timedelta(seconds=1)))
    await runner.process_available_jobs()
    assert "time limit of 1 s" in await sql.value("select last_error from graphile_worker._private_jobs")
    started = await pids_in(pids, 2)
    await until(lambda: all(ended(pid) for pid in started), "all have ended")


@pytest.mark.parametrize("content", [STUBBORN, POLITE], ids=["ignores SIGTERM", "ends"])
async def test_a_stop_ends_it_and_hands_the_job_back(
    folder: Path, make: Make, sql: "Sql", pids: Path, content: str
) -> None:
    write(folder, "hang.sh", content)
    job = await sql.add("hang")
    runner = await make()
    stop = asyncio.Event()
    background = runner.spawn_background(stop)
    started = await pids_in(pids, 2)
    stop.set()
    runner.hurry()
    await background
    assert all(ended(pid) for pid in started)
    row = await sql.job(job)
    assert row is not None
    assert (row["attempts"], row["locked_at"], row["last_error"]) == (0, None, None)


async def test_a_program_that_ended_is_done_though_what_it_left_behind_holds_its_output(
    folder: Path, make: Make, sql: "Sql", pids: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write(folder, "fork.sh", f"{SH}sleep 1000 &\necho $! > $PIDS\n")
    await sql.add("fork")
    runner = await make()
    assert await runner.process_available_jobs() == 1
    assert await sql.count() == 0
    assert "processes that it left behind hold its output" in caplog.text
    (left,) = await pids_in(pids, 1)
    assert not ended(left), "it is the program's business"
    os.kill(left, signal.SIGKILL)


async def test_programs_are_killed_with_the_process(folder: Path, make: Make, sql: "Sql", pids: Path) -> None:
    write(folder, "hang.sh", STUBBORN)
    await sql.add("hang")
    runner = await make()
    stop = asyncio.Event()
    background = runner.spawn_background(stop)
    started = await pids_in(pids, 2)
    await until(lambda: program._groups, "the worker has learned of it")
    program.kill_programs()
    await until(lambda: all(ended(pid) for pid in started), "all have ended")
    stop.set()
    await background
    assert "killed by SIGKILL" in await sql.value("select last_error from graphile_worker._private_jobs")


async def test_a_run_that_is_cancelled_while_it_begins_leaves_nothing(folder: Path, pids: Path) -> None:
    path = write(folder, "hang.sh", POLITE)
    said: list[str] = []
    stream = Lines(said.append)
    for turns in range(4):
        mark = f"BACKFILL_TEST={folder}"
        environment = {**os.environ, "BACKFILL_TEST": str(folder)}
        run = asyncio.create_task(program.run_program(path, b"", environment, stream, stream))
        for _ in range(turns):
            await asyncio.sleep(0)
        run.cancel()
        with pytest.raises(asyncio.CancelledError):
            await run
        assert those_with(mark) == []


def those_with(mark: str) -> list[int]:
    """The processes that run with a variable."""
    numbers = [int(one.name) for one in Path("/proc").iterdir() if one.name.isdigit()]
    return [pid for pid in numbers if has(pid, mark) and not ended(pid)]


def has(pid: int, mark: str) -> bool:
    try:
        return mark.encode() in Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return False
