"""Servers that a test may kill, promote and turn read-only: a primary and the standbys that are cloned from it.

Unlike `EmbeddedServer` nothing brings one back that was killed. They listen on unix sockets, each in a folder of its own.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import quote

import asyncpg
from tests.support.until import until

from backfill.embedded.account import choose_account
from backfill.embedded.binaries import usable_binaries
from backfill.embedded.supervisor import LIBC, PR_SET_PDEATHSIG, clean_environment

MEMORY = Path("/dev/shm")
PORT = 5432  # only a part of the socket's file name
SETTINGS = {
    "listen_addresses": "",
    "fsync": "off",
    "max_connections": "100",
    "shared_buffers": "16MB",
    "max_wal_size": "256MB",
    "wal_sender_timeout": "5s",
}


class Node:
    """One server.

    Attributes:
        folder: Holds its data and its socket.
    """

    def __init__(self) -> None:
        self._account = choose_account(None)
        self._programs, _ = usable_binaries(self._account)
        roomy = MEMORY if MEMORY.is_dir() and os.access(MEMORY, os.W_OK) else None
        self.folder = Path(tempfile.mkdtemp(prefix="bf", dir=roomy))
        if self._account.drops:
            os.chown(self.folder, self._account.uid, self._account.gid)
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def data(self) -> Path:
        """Its data folder."""
        return self.folder / "data"

    def dsn(self, database: str = "postgres") -> str:
        """The URL of one of its databases."""
        return f"postgresql://postgres@/{database}?host={quote(str(self.folder))}&port={PORT}"

    def make(self) -> None:
        """Give it an empty cluster."""
        self.run("initdb", "-D", str(self.data), "-U", "postgres", "-A", "trust", "--no-locale", "-E", "UTF8", "-N")

    def clone(self, primary: "Node") -> None:
        """Make it a standby of a server that runs."""
        self.run(
            *("pg_basebackup", "-h", str(primary.folder), "-p", str(PORT), "-U", "postgres"),
            *("-D", str(self.data), "-R", "-X", "stream", "-c", "fast", "-N"),
        )

    async def start(self) -> None:
        """Start it, and wait until it takes connections. Call it in the main thread, with whose end it ends."""
        self.spawn()
        await until(self._answers, "the server takes connections")

    def spawn(self, **settings: str) -> None:
        """Start it, with further settings; it may take a while until it takes connections."""
        given = {**SETTINGS, "unix_socket_directories": str(self.folder), "port": str(PORT), **settings}
        options = [part for name, value in given.items() for part in ("-c", f"{name}={value}")]
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [str(self._programs / "postgres"), "-D", str(self.data), *options],
                cwd="/",
                env=clean_environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                preexec_fn=_die_with_parent,  # noqa: PLW1509 - calls nothing that takes a lock
                **self._account.popen_options(),
            )

    async def execute(self, *statements: str) -> None:
        """Execute statements one by one on a short-lived connection."""
        connection = await asyncpg.connect(self.dsn())
        try:
            for statement in statements:
                await connection.execute(statement)
        finally:
            await connection.close()

    async def value(self, sql: str) -> object:
        """The value of a query."""
        connection = await asyncpg.connect(self.dsn())
        try:
            return await connection.fetchval(sql)
        finally:
            await connection.close()

    async def promote(self) -> None:
        """Make a standby a primary; returns when it is one."""
        assert await self.value("select pg_promote(true, 30)")

    def end(self, how: signal.Signals = signal.SIGKILL) -> None:
        """End it: SIGKILL, SIGQUIT (immediate), SIGINT (in order, everybody disconnected)."""
        if self._process is not None:
            self._process.send_signal(how)
            self._process.wait(60)
            self._process = None

    def remove(self) -> None:
        """End it and delete its data."""
        self.end(signal.SIGQUIT)
        shutil.rmtree(self.folder, ignore_errors=True)

    async def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, (self.folder / "log").read_text()[-2000:]
        with contextlib.suppress(OSError, asyncpg.PostgresError):
            await (await asyncpg.connect(self.dsn())).close()
            return True
        return False

    def run(self, program: str, *arguments: str) -> None:
        """Run one of PostgreSQL's programs."""
        done = subprocess.run(
            [str(self._programs / program), *arguments],
            check=False,
            capture_output=True,
            cwd="/",
            env=clean_environment(),
            **self._account.popen_options(),
        )
        assert done.returncode == 0, done.stderr.decode()


def _die_with_parent() -> None:
    if LIBC is not None:
        LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGQUIT)


class Pair:
    """A primary and a synchronous standby, in an `async with` block: what the primary has acknowledged, the standby has."""

    def __init__(self) -> None:
        self.primary = Node()
        self.standby = Node()

    async def __aenter__(self) -> Self:
        try:
            self.primary.make()
            await self.primary.start()
            self.standby.clone(self.primary)
            await self.standby.start()
            await self.primary.execute("alter system set synchronous_standby_names = '*'", "select pg_reload_conf()")
            await until(self._is_synchronous, "the standby is synchronous")
        except BaseException:
            await self.__aexit__(None, None, None)
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.standby.remove()
        self.primary.remove()

    async def fail_over(self) -> None:
        """Promote the standby, which waits for no standby of its own."""
        await self.standby.promote()
        await self.standby.execute("alter system reset synchronous_standby_names", "select pg_reload_conf()")

    def dsn(self, database: str = "postgres") -> str:
        """A URL that names both."""
        hosts = ",".join(quote(str(node.folder)) for node in (self.primary, self.standby))
        return f"postgresql://postgres@/{database}?host={hosts}&port={PORT},{PORT}"

    async def _is_synchronous(self) -> bool:
        return bool(
            await self.primary.value("select exists (select from pg_stat_replication where sync_state = 'sync')")
        )
