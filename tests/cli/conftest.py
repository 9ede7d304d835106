"""The real command line in processes of its own, on the test's database and in a folder of its own."""

import asyncio
import contextlib
import json
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tests.support.until import until

from backfill.sql import with_schema

if TYPE_CHECKING:
    from tests.conftest import Database

LIMIT = 90.0  # seconds that a command may take before the test fails
OURS = (
    "DATABASE_URL",
    "GRAPHILE_WORKER_SCHEMA",
    "POLL_INTERVAL_MS",
    "SHUTDOWN_TIMEOUT_SECS",
    "BACKFILL_FORBIDDEN_FLAGS",
    "BACKFILL_LISTEN_URL",
    "BACKFILL_LOG_LEVEL",
    "COLUMNS",
)

TASKS = """
from backfill import WorkerContext, task
from backfill.errors import InvalidInput

@task("greet")
async def greet(payload, ctx: WorkerContext):
    print("greeted", payload, flush=True)

@task("refuse")
async def refuse(payload):
    raise InvalidInput("not this one")
"""


@dataclass(frozen=True)
class Done:
    """A command that has ended."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        """What it printed, which must be one JSON document."""
        return json.loads(self.out)


@dataclass
class Process:
    """A command that runs."""

    process: asyncio.subprocess.Process
    lines: list[str] = field(default_factory=list)
    logs: list[str] = field(default_factory=list)
    readers: list["asyncio.Task[None]"] = field(default_factory=list)

    async def said(self, *words: str) -> None:
        """Wait until each of the words is in a line that it printed or logged."""
        await until(
            lambda: all(any(word in line for line in self.lines + self.logs) for word in words),
            f"{words} in {self.lines + self.logs}",
        )

    async def printed(self, word: str, times: int) -> None:
        """Wait until it has printed so many lines with the word."""
        await until(lambda: sum(word in line for line in self.lines) >= times, f"{times} times {word!r}", limit=60)

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    async def ended(self) -> int:
        """Wait for its end; its exit code."""
        async with asyncio.timeout(LIMIT):
            code = await self.process.wait()
            await asyncio.gather(*self.readers)
        return code


@dataclass(frozen=True)
class CommandLine:
    """Runs commands."""

    folder: Path
    environment: dict[str, str]

    async def __call__(self, *args: object, code: int = 0, stdin: str = "", **environment: str) -> Done:
        """Run a command to its end, which must have that exit code."""
        process = await self._start(args, environment, asyncio.subprocess.PIPE)
        async with asyncio.timeout(LIMIT):
            out, err = await process.communicate(stdin.encode())
        done = Done(process.returncode or 0, out.decode(), err.decode())
        assert done.code == code, done
        return done

    @contextlib.asynccontextmanager
    async def running(self, *args: object, **environment: str) -> AsyncIterator[Process]:
        """Run a command beside the test; it is killed at the end, if it has not ended."""
        process = Process(await self._start(args, environment, asyncio.subprocess.DEVNULL))
        assert process.process.stdout is not None
        assert process.process.stderr is not None
        process.readers += [
            asyncio.create_task(_read(process.process.stdout, process.lines)),
            asyncio.create_task(_read(process.process.stderr, process.logs)),
        ]
        try:
            yield process
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.process.kill()
            await process.ended()

    async def _start(self, args: tuple[object, ...], more: dict[str, str], stdin: int) -> asyncio.subprocess.Process:
        pipe = asyncio.subprocess.PIPE
        command = (sys.executable, "-m", "backfill", *map(str, args))
        given = {name: value for name, value in (self.environment | more).items() if value}
        return await asyncio.create_subprocess_exec(
            *command, cwd=self.folder, env=given, stdin=stdin, stdout=pipe, stderr=pipe
        )


async def _read(stream: asyncio.StreamReader, lines: list[str]) -> None:
    while line := await stream.readline():
        lines.append(line.decode().rstrip("\n"))


def clean_environment() -> dict[str, str]:
    """This process's environment without what would change what commands do."""
    return {name: value for name, value in os.environ.items() if name not in OURS and not name.endswith("_CONCURRENCY")}


@pytest.fixture
def bare_cli(tmp_path: Path) -> CommandLine:
    """Commands that know of no database."""
    return CommandLine(tmp_path, clean_environment())


@pytest.fixture
def cli(tmp_path: Path, db: "Database") -> CommandLine:
    """Commands on the test's database, in a folder with a module `mytasks`."""
    (tmp_path / "mytasks.py").write_text(TASKS)
    return CommandLine(tmp_path, clean_environment() | {"DATABASE_URL": db.dsn, "GRAPHILE_WORKER_SCHEMA": db.schema})


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder for an embedded server, where the account that runs it as root can reach it."""
    folder = Path(tempfile.mkdtemp(prefix="backfill-", dir="/tmp"))
    folder.chmod(0o711)
    yield folder
    shutil.rmtree(folder)


Rows = Callable[..., Awaitable[list[Any]]]


@pytest.fixture
async def rows(db: "Database") -> Rows:
    """A function that runs SQL on the test's database, where graphile_worker means the test's schema."""
    connection = await db.connect()

    async def fetch(sql: str, *args: object) -> list[Any]:
        return [tuple(row) for row in await connection.fetch(with_schema(sql, db.schema), *args)]

    return fetch


async def locks(rows: Rows) -> list[Any]:
    """The jobs and queues that somebody holds."""
    held = "select 'job', id from graphile_worker._private_jobs where locked_by is not null or locked_at is not null"
    return await rows(
        f"{held} union all {held.replace('_private_jobs', '_private_job_queues').replace('job', 'queue', 1)}"
    )


TERM, INT, KILL = signal.SIGTERM, signal.SIGINT, signal.SIGKILL
