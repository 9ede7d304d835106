"""The user's side of an embedded server: starting or joining it, talking to its supervisor, leaving it.

`start` holds start.lock throughout and users.lock (shared) from then on. With both in hand the state can't change under
it: either a supervisor lives, then it is asked for a report, which it gives once the server is ready; or none does, then
we take supervisor.lock, make the socket it will listen on, queue our own request there, and start a supervisor that
inherits both. Whatever ends it breaks our connection, so waiting needs no time limit and survives a long recovery.

`stop` closes the lease. If that was the last one, the supervisor stops the server, and we wait for its end; if the
supervisor was killed before, we clean up in its place.
"""

import contextlib
import fcntl
import json
import logging
import os
import re
import signal
import socket
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self
from urllib.parse import quote

from backfill.embedded import remains, supervisor
from backfill.embedded.account import Account, choose_account
from backfill.embedded.binaries import usable_binaries
from backfill.embedded.home import (
    descriptor,
    is_at,
    lock_if_free,
    make_home,
    open_lock,
    socket_folder,
    temporary_folder,
)
from backfill.errors import ConfigurationError, DatabaseError

logger = logging.getLogger(__name__)

SETTING_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)?")
OURS = frozenset({"listen_addresses", "port", "unix_socket_directories", "unix_socket_permissions", "data_directory"})
# Imports the supervisor's module as it is, compiled, but under packages that are empty: to run the real ones' code would
# take more time than the whole rest of a warm start.
BOOT = """
import sys
for name in ("backfill", "backfill.embedded"):
    package = sys.modules[name] = type(sys)(name)
    package.__path__ = []
package.__path__.append(sys.argv.pop(1))
from backfill.embedded import supervisor
supervisor.main()
"""
NOTE_SECONDS = 10.0
POLL_SECONDS = 0.002
UNIX_PORT = 5432  # only a part of the socket's file name


class EmbeddedServer:
    """A real PostgreSQL server on this machine, shared by all processes that name the same data folder.

    It runs from `start` (or the begin of a `with` block) until the last process that uses it has called `stop`, ended
    or been killed. A process made by `os.fork` uses it too. Not for production: no backups, no upgrades, one machine.

    Args:
        data_dir: where its data lives, kept from one start to the next. None: a new temporary folder.
        settings: PostgreSQL's settings, such as `{"max_connections": "300"}`. A server that runs already must have the
            same. Throw-away data has `fsync = off` unless it is set here.
        tcp: listen on 127.0.0.1 (a free port, password authentication) and not only on a unix socket.
        temporary: remove the data when the last user is gone; by default if `data_dir` is None.

    Raises:
        ConfigurationError: a setting has no valid name, or is one that the embedded server sets itself.
    """

    def __init__(
        self,
        data_dir: Path | None = None,
        *,
        settings: Mapping[str, str] | None = None,
        tcp: bool = False,
        temporary: bool | None = None,
    ) -> None:
        for name in settings or ():
            if not SETTING_NAME.fullmatch(name) or name in OURS:
                raise ConfigurationError(
                    f"The setting {name!r} can't be given to the embedded PostgreSQL server: "
                    + ("it sets this one itself." if name in OURS else "no setting has such a name.")
                )
        self._given = None if data_dir is None else Path(data_dir).resolve()
        self._temporary = data_dir is None if temporary is None else temporary
        self._settings = dict(settings or {})
        self._tcp = tcp
        self._home: Path | None = None
        self._sockets: Path | None = None
        self._lease: int | None = None
        self._report: dict[str, Any] = {}
        self._child: int | None = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> Self:
        """Start the server, or join it if it runs; wait until it takes connections.

        Calling it again is fine, and starts the server anew if its supervisor was killed.

        Raises:
            ConfigurationError: no programs, an unusable data folder, or settings that differ from a running server's.
            DatabaseError: PostgreSQL did not start; the message has the end of its log.
        """
        while True:
            home = self._home or self._given
            account = choose_account(None if home is None else home / "pgdata")
            home = temporary_folder(account).resolve() if home is None else home
            make_home(home, account)
            starting = self._enter(home)
            if starting is not None:
                break
        try:
            self._start(home, account)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                self._leave(home)
            self._forget()
            raise
        finally:
            os.close(starting)
        return self

    def _enter(self, home: Path) -> int | None:
        """Take start.lock, whose descriptor is returned, and a lease; None if the folder was removed meanwhile."""
        users, start = home / "users.lock", home / "start.lock"
        if self._lease is not None and not is_at(self._lease, users):
            self._forget()
        with contextlib.ExitStack() as opened:
            try:
                starting = open_lock(start)
                opened.callback(os.close, starting)
                fcntl.flock(starting, fcntl.LOCK_EX)
                lease = self._lease
                if lease is None:
                    lease = open_lock(users)
                    opened.callback(os.close, lease)
                fcntl.flock(lease, fcntl.LOCK_SH)
            except FileNotFoundError:
                return None
            if not is_at(starting, start) or not is_at(lease, users):
                return None
            opened.pop_all()
        self._home, self._lease = home, lease
        return starting

    def _forget(self) -> None:
        """Close the lease, without a look at what becomes of the server."""
        if self._lease is not None:
            os.close(self._lease)
        self._home = self._lease = None

    def stop(self) -> None:
        """Leave the server; the last user waits until it has ended. Does nothing if it was not started."""
        if self._lease is None or self._home is None:
            return
        try:
            with descriptor(self._home / "start.lock") as starting:
                fcntl.flock(starting, fcntl.LOCK_EX)
                self._leave(self._home)
        except FileNotFoundError:  # somebody deleted the folder; the supervisor needs only our lease to end
            self._forget()

    def restart(self, mode: Literal["fast", "immediate"] = "fast") -> None:
        """Restart the PostgreSQL server under all its users; returns when it takes connections again.

        Args:
            mode: "fast" disconnects everybody and shuts down in order; "immediate" is a crash, with recovery after it.

        Raises:
            DatabaseError: it did not start again, or its supervisor is gone.
        """
        self._take_report(self._ask({"do": "restart", "mode": mode}))

    @property
    def data_dir(self) -> Path:
        """The folder that holds everything of this server."""
        if self._home is None:
            raise DatabaseError("The embedded PostgreSQL server is not started.")
        return self._home

    @property
    def postmaster_pid(self) -> int:
        """The process id of the running `postgres`, as its supervisor knows it now."""
        self._take_report(self._ask({"do": "report"}))
        return int(self._report["postmaster"])

    @property
    def supervisor_pid(self) -> int:
        """The process id of the supervisor."""
        if self._lease is None:
            raise DatabaseError("The embedded PostgreSQL server is not started.")
        return int(self._report["supervisor"])

    def dsn(self, database: str = "postgres") -> str:
        """Return the URL of one of its databases, for the superuser `postgres`: by unix socket, or by TCP if asked for.

        Raises:
            DatabaseError: the server is not started.
        """
        if self._lease is None or self._home is None or self._sockets is None:
            raise DatabaseError("The embedded PostgreSQL server is not started.")
        port, name = self._report["port"], quote(database, safe="")
        if self._tcp:
            password = (self._home / "password").read_text(encoding="ascii")
            return f"postgresql://postgres:{password}@127.0.0.1:{port}/{name}"
        return f"postgresql://postgres@/{name}?host={quote(str(self._sockets))}&port={port}"

    def _start(self, home: Path, account: Account) -> None:
        """Join or launch; start.lock and the lease are held."""
        self._sockets = socket_folder(home, account)
        reply = None
        while reply is None:
            with descriptor(home / "supervisor.lock") as supervising:
                if lock_if_free(supervising, fcntl.LOCK_EX):
                    reply = self._launch(home, account, supervising)
                else:
                    with contextlib.suppress(SupervisorGoneError):  # it was just ending: look again
                        reply = self._ask({"do": "report"})
        self._take_report(reply)
        running = self._report["settings"]
        for name, value in self._settings.items():
            if running.get(name) != value:
                raise ConfigurationError(
                    f"The embedded PostgreSQL server on {home} is running already, with {name} = "
                    f"{running.get(name, 'its default')}, not {value}. Use the same settings, or stop it first."
                )
        if self._tcp and not self._report["tcp"]:
            raise ConfigurationError(
                f"The embedded PostgreSQL server on {home} is running already, without TCP. Stop its other users first."
            )

    def _launch(self, home: Path, account: Account, supervising: int) -> dict[str, Any]:
        self._reap()
        programs, major = usable_binaries(account)
        check_major(home / "pgdata", major, programs)
        assert self._sockets is not None  # noqa: S101 - the only caller has just set it
        address = self._sockets / "control"
        address.unlink(missing_ok=True)
        spec = supervisor.Spec(
            home=str(home),
            sockets=str(self._sockets),
            programs=str(programs),
            uid=account.uid if account.drops else None,
            gid=account.gid if account.drops else None,
            port=free_port() if self._tcp else UNIX_PORT,
            tcp=self._tcp,
            temporary=self._temporary,
            settings={**({"fsync": "off"} if self._temporary else {}), **self._settings},
        )
        with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as request:
            listener.bind(str(address))
            listener.listen(128)
            request.connect(str(address))
            self._child = spawn(spec, listener.fileno(), supervising, home / "supervisor.log")
            listener.close()  # so that its death breaks our connection
            try:
                return self._converse(request, {"do": "report"})
            except SupervisorGoneError as error:
                said = (home / "supervisor.log").read_text(encoding="utf-8", errors="replace")[-2000:]
                raise DatabaseError(
                    f"The supervisor of the embedded PostgreSQL server ended at once: {said}"
                ) from error

    def _ask(self, request: dict[str, str]) -> dict[str, Any]:
        if self._sockets is None or self._lease is None:
            raise DatabaseError("The embedded PostgreSQL server is not started.")
        with socket.socket(socket.AF_UNIX) as connection:
            try:
                connection.connect(str(self._sockets / "control"))
            except (ConnectionRefusedError, FileNotFoundError) as error:
                raise SupervisorGoneError(self._gone()) from error
            return self._converse(connection, request)

    def _converse(self, connection: socket.socket, request: dict[str, str]) -> dict[str, Any]:
        connection.settimeout(NOTE_SECONDS)
        answer = b""
        try:
            connection.sendall(json.dumps(request).encode() + b"\n")
            while not answer.endswith(b"\n"):
                try:
                    part = connection.recv(65536)
                except TimeoutError:
                    logger.warning("Still waiting for PostgreSQL in %s; its log is server.log there.", self._home)
                    continue
                if not part:
                    raise SupervisorGoneError(self._gone())
                answer += part
        except (ConnectionResetError, BrokenPipeError) as error:
            raise SupervisorGoneError(self._gone()) from error
        reply: dict[str, Any] = json.loads(answer)
        return reply

    def _gone(self) -> str:
        return (
            f"The supervisor of the embedded PostgreSQL server in {self._home} was killed, and the server with it; "
            "its data is intact. Call start() to start it again. Its log is supervisor.log there."
        )

    def _take_report(self, reply: dict[str, Any]) -> None:
        if "failure" in reply:
            raise DatabaseError(f"The embedded PostgreSQL server in {self._home} does not run: {reply['failure']}")
        self._report = reply

    def _leave(self, home: Path) -> None:
        """Give the lease back, and see to it that a server without users ends; start.lock is held."""
        with descriptor(home / "users.lock") as users, descriptor(home / "supervisor.lock") as supervising:
            self._forget()
            while not lock_if_free(supervising, fcntl.LOCK_SH):
                if lock_if_free(users, fcntl.LOCK_EX):
                    fcntl.flock(users, fcntl.LOCK_UN)  # nobody is left, and the supervisor is about to notice
                elif lock_if_free(users, fcntl.LOCK_SH):
                    return  # others use it
                time.sleep(POLL_SECONDS)
            self._reap()
            if lock_if_free(users, fcntl.LOCK_EX) and is_at(users, home / "users.lock"):
                if self._temporary:
                    remains.discard(str(home))  # its supervisor was killed
                elif (home / "pgdata/postmaster.pid").exists():
                    remains.end_leftovers(str(home / "pgdata"))

    def _reap(self) -> None:
        if self._child is not None:
            with contextlib.suppress(ChildProcessError):  # reaped by the application's own SIGCHLD handling
                os.waitpid(self._child, 0)
            self._child = None


class SupervisorGoneError(DatabaseError):
    """The supervisor ended without an answer."""


def check_major(data: Path, major: int, programs: Path) -> None:
    """Refuse to run data of one major version with the programs of another.

    Raises:
        ConfigurationError: they differ; says how to move the data.
    """
    record = data / "PG_VERSION"
    if not record.exists():
        return
    recorded = int(record.read_text(encoding="ascii"))
    if recorded != major:
        raise ConfigurationError(
            f"{data} holds data of PostgreSQL {recorded}, and {programs} is PostgreSQL {major}, which can't read it. "
            f"Set BACKFILL_PG_BIN to the bin folder of a PostgreSQL {recorded}; to move to {major}, dump the data with "
            "that one (pg_dumpall), and restore it (psql -f) into a new data folder."
        )


def free_port() -> int:
    """Return a TCP port that is free on 127.0.0.1."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def spawn(spec: supervisor.Spec, listener: int, supervising: int, log: Path) -> int:
    """Start a supervisor that inherits the two descriptors; return its process id.

    Not by `subprocess.Popen`, whose objects complain when they are forgotten while their process lives on, as ours may.
    """
    writable = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    for inherited in (listener, supervising):
        fcntl.fcntl(inherited, fcntl.F_SETFD, 0)  # not closed by exec
    return os.posix_spawn(
        sys.executable,
        [
            sys.executable,
            "-I",
            "-S",
            "-c",
            BOOT,
            str(Path(supervisor.__file__).parent),
            json.dumps(vars(spec)),
            str(listener),
        ],
        os.environ,
        file_actions=[
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, str(log), writable, 0o600),
            (os.POSIX_SPAWN_DUP2, 1, 2),
        ],
        setsigmask=[],
        setsigdef=[signal.SIGCHLD, signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGPIPE],
    )
