"""A PgBouncer in transaction mode before a server of the tests."""

import contextlib
import fcntl
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Collection
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import parse_qs, quote, unquote, urlsplit

import pytest

from backfill.embedded.account import choose_account

PROGRAM = "pgbouncer"
PLACES = (f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin").replace("::", ":")
INSTALL = ("apt-get", "install", "-y", "--no-install-recommends", PROGRAM)
PORT = 6432  # only a part of the socket's file name
POOL = 4  # sessions of the server, fewer than a worker has connections: they are really shared
READY = 30.0  # seconds that a start may take


def program() -> str:
    """PgBouncer's path; installed if we may, else the test is skipped (or fails, where `CI` is set)."""
    found = shutil.which(PROGRAM, path=PLACES)
    if found is None and os.geteuid() == 0 and shutil.which("apt-get"):
        with (Path(tempfile.gettempdir()) / "backfill-tests-apt.lock").open(
            "w"
        ) as lock:  # one of xdist's workers at a time
            fcntl.flock(lock, fcntl.LOCK_EX)
            if shutil.which(PROGRAM, path=PLACES) is None:
                install()
        found = shutil.which(PROGRAM, path=PLACES)
    if found is None:
        reason = "PgBouncer is not installed, and only root can install it here: apt-get install pgbouncer"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    return found


def install() -> None:
    """Install Debian's package; its service is not started."""
    quiet = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "RUNLEVEL": "1"}
    for command in (INSTALL, ("apt-get", "update"), INSTALL):
        done = subprocess.run(command, env=quiet, check=False, capture_output=True)
        if command is INSTALL and done.returncode == 0:
            return


class PgBouncer:
    """Runs in a `with` block, under the account that runs the tests' server, for PgBouncer refuses to run as root.

    Args:
        dsn: A database's URL; its host may be a folder with a unix socket.
        ignores: Settings that come with a connection and are ignored instead of refused.
    """

    def __init__(self, dsn: str, ignores: Collection[str] = ()) -> None:
        self._ignores = ", ".join(ignores)
        self._program = program()
        self._server = dsn
        self._account = choose_account(None)
        self._folder = Path(tempfile.mkdtemp(prefix="bf"))
        self._process: subprocess.Popen[bytes] | None = None
        parts = urlsplit(dsn)
        self.dsn = f"{parts.scheme}://{parts.username}@{parts.path}?host={quote(str(self._folder))}&port={PORT}"

    def __enter__(self) -> Self:
        parts = urlsplit(self._server)
        options = {name: values[-1] for name, values in parse_qs(parts.query).items()}
        host = options.get("host") or parts.hostname or "localhost"
        port = options.get("port") or parts.port or 5432
        password = f" password={unquote(parts.password)}" if parts.password else ""
        (self._folder / "users").write_text(f'"{parts.username}" ""\n')
        (self._folder / "config").write_text(
            f"[databases]\n* = host={host} port={port} user={parts.username}{password}\n"
            f"[pgbouncer]\nunix_socket_dir = {self._folder}\nlisten_port = {PORT}\npool_mode = transaction\n"
            f"auth_type = trust\nauth_file = {self._folder / 'users'}\nlogfile = {self._folder / 'log'}\n"
            f"ignore_startup_parameters = {self._ignores}\ndefault_pool_size = {POOL}\nmax_client_conn = 500\nmax_db_connections = {POOL}\n"
        )
        if self._account.drops:
            for path in (self._folder, *self._folder.iterdir()):
                os.chown(path, self._account.uid, self._account.gid)
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        shutil.rmtree(self._folder, ignore_errors=True)

    @property
    def log(self) -> str:
        """What it has logged."""
        return (self._folder / "log").read_text()

    def start(self) -> None:
        """Start it, and wait until it takes connections."""
        self._process = subprocess.Popen(
            [self._program, str(self._folder / "config")],
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            **self._account.popen_options(),
        )
        until = time.monotonic() + READY
        while True:
            with socket.socket(socket.AF_UNIX) as probe, contextlib.suppress(OSError):
                probe.connect(str(self._folder / f".s.PGSQL.{PORT}"))
                return
            if self._process.poll() is not None or time.monotonic() > until:
                raise AssertionError(f"PgBouncer did not start: {self.log}")
            time.sleep(0.01)

    def stop(self) -> None:
        """End it at once: whoever is connected through it is cut off."""
        if self._process is not None:
            self._process.send_signal(signal.SIGTERM)
            self._process.wait(READY)
            self._process = None

    def restart(self) -> None:
        """End it at once and start it again."""
        self.stop()
        self.start()
