"""The process that owns an embedded PostgreSQL server.

It imports only what it must, and is started without the rest of the package (`server.BOOT`): a warm start is mostly
Python's own start. (pathlib, dataclasses, typing and shutil would double that; hence `os.path` here, and plain classes.)

It is told everything by its one argument (`Spec`, as JSON) and inherits two descriptors: the locked supervisor.lock,
and a listening unix socket. It makes the data directory where there is none, starts `postgres` as its own child, and
answers requests, each one line of JSON on a connection of its own:

    {"do": "report"}                      wait until the server is ready, and describe it
    {"do": "restart", "mode": "fast"}     restart it (or "immediate"), then as above

It ends in these ways:
* The last user is gone. A thread waits for the exclusive lock on users.lock, which the kernel grants at the death of the
  last holder of a shared one. The server is stopped, throw-away data removed, and the lock freed by our own end, so a
  user who came meanwhile waits for that and then starts afresh.
* SIGTERM: the server is stopped; users are cut off.
* SIGKILL: on Linux the kernel sends the postmaster SIGINT (PR_SET_PDEATHSIG). Elsewhere it stays, without anybody who
  would stop it, until the next start finds it by its command line and replaces it.

The postmaster killed: it is started again, and recovers. It could not be started: every request is answered with the
reason until the last user is gone, so that throw-away data is removed then too. A pid from a file is never signalled:
only our own child, or a process whose command line says that it is `postgres` on our data directory.
"""

# ruff: noqa: PTH102, PTH105, PTH104, PTH108, PTH110, PTH116, PTH118, PTH123, PTH202 - see above

import ctypes
import fcntl
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import threading
import time

from backfill.embedded.remains import discard, end_leftovers, remove_short_folder, remove_tree, take_over

TYPE_CHECKING = False  # as typing's, which costs too much
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import IO

POLL_SECONDS = 0.005
PATIENCE_SECONDS = {signal.SIGINT: 60.0, signal.SIGQUIT: 10.0}
HASTY_ENDS = 5  # this many ends in a row, each within a second of being ready, are not repaired any more
KEPT_LOG_BYTES = 10_000_000
PR_SET_PDEATHSIG = 1
# Loaded before any fork: between fork and exec only calls are made, nothing is loaded.
LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None


class Spec:
    """What to run, where, and as whom.

    Args:
        home: the server's folder.
        sockets: the folder of the unix sockets.
        programs: the folder of PostgreSQL's programs.
        uid: the account that runs it, None for our own.
        gid: its group, None for our own.
        port: of TCP and in the name of the unix socket.
        tcp: listen on 127.0.0.1 too.
        temporary: remove `home` when the last user is gone.
        settings: PostgreSQL's settings.
    """

    def __init__(
        self,
        *,
        home: str,
        sockets: str,
        programs: str,
        uid: int | None,
        gid: int | None,
        port: int,
        tcp: bool,
        temporary: bool,
        settings: dict[str, str],
    ) -> None:
        self.home = home
        self.sockets = sockets
        self.programs = programs
        self.uid = uid
        self.gid = gid
        self.port = port
        self.tcp = tcp
        self.temporary = temporary
        self.settings = settings


class StartError(Exception):
    """The server could not be started; the message says why."""


class Supervisor:
    """See the module's docstring.

    Args:
        spec: what to run.
        listener: the listening socket for requests.
        wakeup: a connected pair of sockets; bytes on the second wake the main loop.
    """

    def __init__(self, spec: Spec, listener: socket.socket, wakeup: tuple[socket.socket, socket.socket]) -> None:
        self.spec = spec
        self.data = os.path.join(spec.home, "pgdata")
        self.server_log = os.path.join(spec.home, "server.log")
        self.users_lock = os.path.join(spec.home, "users.lock")
        self.users = os.open(self.users_lock, os.O_RDWR | os.O_CLOEXEC)
        self.listener = listener
        self.woken, self.waker = wakeup
        self.postmaster: subprocess.Popen[bytes] | None = None
        self.failure: str | None = None
        self.ending = threading.Event()
        self.alone = threading.Event()
        self.ready_at = 0.0
        self.hasty_ends = 0

    def run(self) -> None:
        """Serve until the last user is gone or SIGTERM arrives, and leave nothing behind."""
        threading.Thread(target=self._wait_for_last_user, daemon=True).start()
        self._try(self._make_data, self._launch)
        self._serve()
        self._stop(signal.SIGQUIT if self.spec.temporary else signal.SIGINT)
        if self.alone.is_set() and self._is_at_home():
            if self.spec.temporary:
                discard(self.spec.home)
            else:
                remove_short_folder(self.spec.home)

    def _is_at_home(self) -> bool:
        """Say whether the folder is still ours: somebody may have deleted it, and another server made it anew."""
        try:
            return os.path.samestat(os.fstat(self.users), os.stat(self.users_lock))
        except FileNotFoundError:
            return False

    def _wait_for_last_user(self) -> None:
        fcntl.flock(self.users, fcntl.LOCK_EX)
        self.alone.set()
        self.end()

    def end(self) -> None:
        """Make the main loop stop at its next turn."""
        self.ending.set()
        self.waker.send(b"\0")

    def _serve(self) -> None:
        selector = selectors.DefaultSelector()
        selector.register(self.listener, selectors.EVENT_READ)
        selector.register(self.woken, selectors.EVENT_READ)
        while not self.ending.is_set():
            ready = {key.fileobj for key, _ in selector.select()}
            if self.woken in ready:
                self.woken.recv(4096)
            if self.postmaster is not None and self.postmaster.poll() is not None:
                self._revive()
            if self.listener in ready:
                self._answer()

    def _answer(self) -> None:
        connection, _ = self.listener.accept()
        with connection:
            connection.settimeout(5)  # a client sends its line at once
            try:
                with connection.makefile("rw", encoding="utf-8") as stream:
                    request = json.loads(stream.readline())
                    if request["do"] == "restart" and self.failure is None:
                        self._stop(signal.SIGQUIT if request["mode"] == "immediate" else signal.SIGINT)
                        self._try(self._launch)
                    stream.write(json.dumps(self._report()) + "\n")
            except (OSError, ValueError, KeyError) as error:
                log(f"a request was not answered: {error!r}")

    def _report(self) -> dict[str, object]:
        if self.failure is not None or self.postmaster is None:
            return {"failure": self.failure or "it is being stopped"}
        return {
            "postmaster": self.postmaster.pid,
            "supervisor": os.getpid(),
            "port": self.spec.port,
            "tcp": self.spec.tcp,
            "settings": self.spec.settings,
        }

    def _try(self, *steps: "Callable[[], None]") -> None:
        try:
            for step in steps:
                step()
        except (StartError, OSError) as error:
            self.failure = str(error)
            log(f"failed: {error}")

    def _revive(self) -> None:
        assert self.postmaster is not None  # noqa: S101 - the caller has looked
        log(f"postgres (pid {self.postmaster.pid}) ended by itself: {self.postmaster.returncode}; starting it again")
        self.hasty_ends = self.hasty_ends + 1 if time.monotonic() - self.ready_at < 1 else 0
        self.postmaster = None
        if self.hasty_ends >= HASTY_ENDS:
            self.failure = f"it ended {HASTY_ENDS} times within a second of its start; see {self.server_log}"
            return
        self._try(self._launch)

    def _make_data(self) -> None:
        if os.path.exists(os.path.join(self.data, "PG_VERSION")):
            return
        # Under another name until it is complete: a killed initdb leaves nothing that looks like data.
        unfinished = f"{self.data}.unfinished"
        password_file = os.path.join(self.spec.sockets, "password")
        remove_tree(unfinished)
        os.mkdir(unfinished, 0o700)
        password = os.urandom(24).hex()
        for path in (os.path.join(self.spec.home, "password"), password_file):
            with open(path, "w", encoding="ascii") as stream:
                stream.write(password)
        if self.spec.uid is not None and self.spec.gid is not None:
            for path in (unfinished, password_file):
                os.chown(path, self.spec.uid, self.spec.gid)
        command = [
            *(f"{self.spec.programs}/initdb", "-D", unfinished, "--username=postgres", f"--pwfile={password_file}"),
            *("--auth-local=trust", "--auth-host=scram-sha-256", "--no-locale", "--encoding=UTF8", "--no-instructions"),
            *(["--no-sync"] if self.spec.temporary else []),
        ]
        try:
            with self._start(command, signal.SIGKILL, subprocess.PIPE) as process:
                output, _ = process.communicate()
        finally:
            os.unlink(password_file)
        if process.returncode != 0:
            raise StartError(f"initdb failed: {output.decode(errors='replace').strip()}")
        os.rename(unfinished, self.data)

    def _start(self, command: list[str], death_signal: int, output: "int | IO[bytes]") -> "subprocess.Popen[bytes]":
        """Start a program as the account, that gets `death_signal` when we die."""
        me = os.getpid()

        def die_with_parent() -> None:
            if LIBC is not None:
                LIBC.prctl(PR_SET_PDEATHSIG, death_signal)
                if os.getppid() != me:
                    os._exit(1)

        return subprocess.Popen(  # noqa: S603 - the programs were found by our own rules
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd="/",
            env=clean_environment(),
            # The kernel forgets the death signal at a change of user, so it is set after that. The only other thread
            # sits in flock, and holds no lock of the interpreter's.
            preexec_fn=die_with_parent,  # noqa: PLW1509
            user=self.spec.uid,
            group=self.spec.gid,
            extra_groups=None if self.spec.uid is None else [],
        )

    def _launch(self) -> None:
        """Start the postmaster and wait until it is ready, however long its recovery takes."""
        stale = os.path.join(self.data, "postmaster.pid")
        if os.path.exists(stale):
            for pid in end_leftovers(self.data):
                log(f"ended process {pid} of an earlier server")
            for path in (stale, os.path.join(self.spec.sockets, f".s.PGSQL.{self.spec.port}.lock")):
                take_over(path)
        options = {
            **self.spec.settings,
            "listen_addresses": "127.0.0.1" if self.spec.tcp else "",
            "port": str(self.spec.port),
            "unix_socket_directories": '"' + self.spec.sockets.replace('"', '""') + '"',
            "unix_socket_permissions": "0700",
        }
        command = [f"{self.spec.programs}/postgres", "-D", self.data]
        for name, value in options.items():
            command += ["-c", f"{name}={value}"]
        if os.path.exists(self.server_log) and os.path.getsize(self.server_log) > KEPT_LOG_BYTES:
            os.replace(self.server_log, f"{self.server_log}.1")
        with open(self.server_log, "ab") as server_log:
            begin = server_log.tell()
            self.postmaster = self._start(command, signal.SIGINT, server_log)
        while not self._is_ready():
            if self.postmaster.poll() is not None:
                self.postmaster = None
                with open(self.server_log, "rb") as server_log:
                    server_log.seek(begin)
                    raise StartError(
                        "postgres ended at its start: " + server_log.read()[-2000:].decode(errors="replace")
                    )
            if self.ending.wait(POLL_SECONDS):
                return
        self.ready_at = time.monotonic()

    def _is_ready(self) -> bool:
        try:
            with open(os.path.join(self.data, "postmaster.pid"), encoding="utf-8") as stream:
                lines = stream.read().splitlines()
        except FileNotFoundError:
            return False
        return (
            len(lines) >= 8
            and self.postmaster is not None
            and lines[0].strip() == str(self.postmaster.pid)
            and lines[7].strip() == "ready"
        )

    def _stop(self, signal_number: signal.Signals) -> None:
        """Stop the postmaster: SIGINT is fast, SIGQUIT immediate; the next harder one if it takes too long."""
        if self.postmaster is None:
            return
        for harder in (signal_number, signal.SIGQUIT, signal.SIGKILL):
            self.postmaster.send_signal(harder)
            try:
                self.postmaster.wait(PATIENCE_SECONDS.get(harder))
                break
            except subprocess.TimeoutExpired:
                log(f"postgres did not end by {harder.name}")
        self.postmaster = None


def clean_environment() -> dict[str, str]:
    """Return our environment without what would change PostgreSQL's locale, time zone or connection settings."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if name not in ("LANG", "LANGUAGE") and not name.startswith(("LC_", "PG"))
    }
    return {**kept, "TZ": "UTC"}


def log(message: str) -> None:
    """Write a line to supervisor.log, which is our standard error."""
    sys.stderr.write(f"{time.strftime('%Y-%m-%d %H:%M:%S UTC', time.gmtime())} [{os.getpid()}] {message}\n")
    sys.stderr.flush()


def main() -> None:
    """Run a supervisor: arguments are the spec and the listening socket's descriptor."""
    os.setsid()
    os.umask(0o077)
    spec = Spec(**json.loads(sys.argv[1]))
    listener = socket.socket(fileno=int(sys.argv[2]))
    listener.settimeout(None)
    wakeup = socket.socketpair()
    wakeup[1].settimeout(0)
    supervisor = Supervisor(spec, listener, wakeup)
    signal.set_wakeup_fd(wakeup[1].fileno())  # the end of a child or a signal wakes the main loop
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.signal(signal.SIGTERM, lambda *_: supervisor.end())
    supervisor.run()


if __name__ == "__main__":
    main()
