"""Folders that the server's account can reach, processes that use a server, and waiting for ends without sleeping."""

import asyncio
import contextlib
import fcntl
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from backfill.embedded import find_binaries

MEMORY = Path("/dev/shm")
USER = """
import json, sys
from pathlib import Path
from backfill.embedded import EmbeddedServer
options = json.loads(sys.argv[1])
folder = options.pop("data_dir")
server = EmbeddedServer(Path(folder) if folder else None, **options)
server.start()
print(json.dumps({"home": str(server.data_dir), "dsn": server.dsn(), "postmaster": server.postmaster_pid,
                  "supervisor": server.supervisor_pid}), flush=True)
sys.stdin.read()
server.stop()
"""


@pytest.fixture
def place() -> Iterator[Path]:
    """A new folder that every account can reach (pytest's tmp_path is closed to others)."""
    folder = Path(tempfile.mkdtemp(dir=MEMORY if os.access(MEMORY, os.W_OK) else None)).resolve()
    folder.chmod(0o711)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(autouse=True)
def temporary_files_in_memory(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Make initdb's thousand files where that is fast."""
    tmp_path_factory.getbasetemp()  # where it was, not in memory
    if os.access(MEMORY, os.W_OK):
        monkeypatch.setattr(tempfile, "tempdir", str(MEMORY))
        monkeypatch.setenv("TMPDIR", str(MEMORY))


class User:
    """A process that starts a server, and stops using it when told to or killed."""

    def __init__(self, folder: Path | None, **options: Any) -> None:
        arguments = json.dumps({"data_dir": None if folder is None else str(folder), **options})
        self.process = subprocess.Popen(
            [sys.executable, "-c", USER, arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.said: dict[str, Any] = {}

    def wait_started(self) -> "User":
        """Wait until it uses the server."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, f"it ended with {self.process.wait()}"
        self.said = json.loads(line)
        return self

    def __getattr__(self, name: str) -> Any:
        return self.said[name]

    def leave(self, *, wait: bool = True) -> None:
        """Let it stop using the server, and wait for its end."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        if wait:
            assert self.process.wait() == 0

    def kill(self) -> None:
        """Kill it with SIGKILL."""
        self.process.kill()
        self.process.wait()

    def close(self) -> None:
        """Free everything, whatever state it is in."""
        self.kill()
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()


@pytest.fixture
def user() -> Iterator[Callable[..., User]]:
    """Start a `User`: `user(folder, **options)`."""
    started: list[User] = []

    def start(folder: Path | None, **options: Any) -> User:
        started.append(User(folder, **options))
        return started[-1]

    yield start
    for one in started:
        one.close()
    for one in started:
        # The folder is not to be removed under a server that is just ending.
        with contextlib.suppress(FileNotFoundError, KeyError), until_supervisor_ends(Path(one.said["home"])):
            pass


@pytest.fixture
def wrapped(place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A bin folder for `BACKFILL_PG_BIN`, whose programs record their arguments in `calls` and run the real ones."""
    real = find_binaries()
    folder = place / "bin"
    folder.mkdir(mode=0o755)
    (folder / "calls").touch()
    (folder / "calls").chmod(0o666)
    for name in ("initdb", "postgres"):
        (folder / name).write_text(f'#!/bin/sh\necho {name} "$@" >> {folder}/calls\nexec {real}/{name} "$@"\n')
        (folder / name).chmod(0o755)
    monkeypatch.setenv("BACKFILL_PG_BIN", str(folder))
    return folder


def query(dsn: str, *statements: str) -> Any:
    """Run statements on a new connection, and return the value of the last one."""

    async def run() -> Any:
        connection = await asyncpg.connect(dsn)
        try:
            for statement in statements:
                value = await connection.fetchval(statement)
            return value
        finally:
            await connection.close()

    return asyncio.run(run())


@contextlib.contextmanager
def until_supervisor_ends(home: Path) -> Iterator[None]:
    """At the end of the block, wait for the end of the supervisor that lived at its begin."""
    with (home / "supervisor.lock").open() as lock:
        yield
        fcntl.flock(lock, fcntl.LOCK_SH)


@contextlib.contextmanager
def until_process_ends(pid: int) -> Iterator[None]:
    """At the end of the block, wait for the end of a process that is not our child."""
    if sys.platform != "linux":
        pytest.skip("waits for a process by pidfd")
    descriptor = os.pidfd_open(pid)
    try:
        yield
        select.select([descriptor], [], [])
    finally:
        os.close(descriptor)


def wait_until_waited_for(lock: int) -> None:
    """Wait until another process waits for a file that we have locked, as the kernel tells it."""
    if sys.platform != "linux":
        pytest.skip("asks /proc who waits for a lock")
    inode = f":{os.fstat(lock).st_ino} "
    while not any("->" in line and inode in line for line in Path("/proc/locks").read_text().splitlines()):
        pass


def lives(pid: int) -> bool:
    """Say whether a process exists."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def kill(pid: int, number: signal.Signals = signal.SIGKILL) -> None:
    """Kill a process that is not our child, and wait for its end."""
    with until_process_ends(pid):
        os.kill(pid, number)
