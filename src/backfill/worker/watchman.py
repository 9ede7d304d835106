"""Ends the programs of executable tasks when their worker has died in a way that left it no time to: SIGKILL, a crash.

A small process beside the worker, started with the first program and run from this very file. It is told of each program that
begins and ends through a pipe, and when the pipe ends, or its parent is another, it kills what still runs, each with its process
group. A worker that ends by itself has ended its programs before, so that nothing is left to kill. One gap is left: a worker that
is killed in the very milliseconds in which it starts a program has not told of that one yet.
"""

import atexit
import contextlib
import logging
import os
import select
import signal
import subprocess
import sys
from typing import Final

logger = logging.getLogger(__name__)

_LOOKS: Final = 0.5  # seconds between looks at the parent: a process that the worker forked may hold the pipe open
_ENDS: Final = 5.0  # seconds that it is given to end with the worker


class Watchman:
    """The worker's side: tells the process what runs; starts it when there is none (any more)."""

    def __init__(self) -> None:
        self._groups: set[int] = set()
        self._process: subprocess.Popen[bytes] | None = None
        self._pipe = -1

    def begun(self, group: int) -> None:
        """A program runs, in a process group of its own."""
        self._groups.add(group)
        self._tell(b"+%d\n" % group)

    def ended(self, group: int) -> None:
        """It has ended, or was given up."""
        self._groups.discard(group)
        self._tell(b"-%d\n" % group)

    def close(self) -> None:
        """Have the process end."""
        process, self._process = self._process, None
        if process is not None:
            os.close(self._pipe)
            try:
                process.wait(_ENDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def _tell(self, line: bytes) -> None:
        if self._process is not None:
            try:
                os.write(self._pipe, line)
            except OSError:  # it was killed, or does not read
                self._process.kill()
                self.close()
            else:
                return
        if self._groups:
            self._start()

    def _start(self) -> None:
        reads, self._pipe = os.pipe()
        os.set_blocking(self._pipe, False)
        os.write(self._pipe, b"".join(b"+%d\n" % group for group in self._groups))
        command = [sys.executable, "-I", "-S", __file__, str(os.getpid())]
        try:
            self._process = subprocess.Popen(  # noqa: S603 - this file, by this interpreter
                command,
                stdin=reads,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                cwd="/",
                start_new_session=True,
            )
        except OSError as error:  # no memory, too many processes: programs run all the same
            os.close(self._pipe)
            logger.warning("cannot start the process that ends programs if this one is killed: %s", error)
        else:
            atexit.register(self.close)
        finally:
            os.close(reads)


def watch(parent: int) -> None:
    """Read from stdin what runs, until the worker is gone; then kill what is left.

    Args:
        parent: The worker's process id.
    """
    groups: set[int] = set()
    rest = b""
    while True:
        orphaned = os.getppid() != parent  # then all that it had to say is in the pipe
        readable, _, _ = select.select([0], [], [], 0 if orphaned else _LOOKS)
        data = os.read(0, 65536) if readable else b""
        if not data and (readable or orphaned):
            break
        *lines, rest = (rest + data).split(b"\n")
        for line in lines:
            (groups.add if line.startswith(b"+") else groups.discard)(int(line[1:]))
    for group in groups:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(group, signal.SIGKILL)


if __name__ == "__main__":
    watch(int(sys.argv[1]))
