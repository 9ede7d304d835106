"""The README's first worker, typed as it stands: two terminals, a failing job, its dead letter, and the job run again."""

import asyncio
import contextlib
import os
import shlex
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from tests.docs.blocks import ROOT, blocks_of

BIN = Path(sys.executable).parent
SCHEMA = "graphile_worker"


class Terminals:
    """One terminal for the worker, one for everything else."""

    def __init__(self, folder: Path, dsn: str) -> None:
        self.folder = folder
        self.env = {
            **os.environ,
            "DATABASE_URL": dsn,
            "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
            "NO_COLOR": "1",
        }
        self.worker: asyncio.subprocess.Process | None = None
        self.log = folder / "worker.log"

    async def type(self, command: str) -> str:
        if command.startswith("backfill worker "):
            await self.end_worker()
            with self.log.open("ab") as log:
                self.worker = await self._start(command, stdout=log, stderr=log)
            return ""
        process = await self._start(command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE)
        out, err = await process.communicate()
        assert process.returncode == 0, f"{command}: {out.decode()}{err.decode()}"
        return out.decode()

    async def end_worker(self) -> None:
        if self.worker is not None:
            self.worker.send_signal(signal.SIGINT)
            assert await self.worker.wait() == 0, self.log.read_text()
            self.worker = None

    async def _start(self, command: str, **streams: Any) -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(*shlex.split(command), cwd=self.folder, env=self.env, **streams)


@pytest.fixture
async def terminals(tmp_path: Path, empty_db: Any) -> AsyncIterator[Terminals]:
    made = Terminals(tmp_path, empty_db.dsn)
    yield made
    if made.worker is not None:
        with contextlib.suppress(ProcessLookupError):
            made.worker.kill()
        await made.worker.wait()


async def until(what: str, holds: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(60):
        while not await holds():
            await asyncio.sleep(0.02)


class Story:
    """What the reader waits for before typing the next command."""

    def __init__(self, terminals: Terminals, connection: Any) -> None:
        self.terminals = terminals
        self.connection = connection
        self.said = ""

    async def type(self, command: str) -> None:
        if command == "backfill dlq list":
            requeued = "requeue" in self.said
            await until("the dead letter came or went", lambda: self.dead_letters(0 if requeued else 1))
        self.said += f"{command}\n{await self.terminals.type(command)}"
        if command.startswith("backfill worker "):
            await until("the worker has started", lambda: self.logged("started"))

    async def logged(self, words: str) -> bool:
        return words in self.terminals.log.read_text()

    async def dead_letters(self, count: int) -> bool:
        found = await self.connection.fetchval(f"select count(*) from {SCHEMA}.backfill_dlq")
        return bool(found == count)


async def test_the_first_worker(terminals: Terminals, empty_db: Any) -> None:
    connection = await empty_db.connect()
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    start, end = (text[: text.index(title)].count("\n") for title in ("## Your first worker", "## In your transaction"))
    story = Story(terminals, connection)

    for block in blocks_of("README.md"):
        if start < block.line < end:
            if block.file is not None:
                (terminals.folder / block.file).write_text(block.code, encoding="utf-8")
            for command in block.commands:
                await story.type(command)

    for words in ("Hello, Ada!", "Hello, Grace!", "Hello, Katherine!", "charged c-1, attempt 1", "attempt 3 of 3"):
        await until(words, partial(story.logged, words))
    assert await story.logged("charged c-2")
    assert "the bank does not answer" in story.said
    await terminals.end_worker()
    assert await connection.fetchval(f"select count(*) from {SCHEMA}._private_jobs") == 0
