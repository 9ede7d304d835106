"""Running a program for one job: what it is told, what becomes of what it says, and how it is ended.

A program runs in a session and process group of its own, so that what it starts can be ended with it, and a terminal's
Ctrl-C reaches the worker alone. It is never run through a shell.

* Its stdin is written while it runs and given up when it ends: a program need not read it.
* Each line of its stdout and stderr is handed on, cut at some length; what is no UTF-8 is shown as it can be.
* It has ended when the program itself has. Processes that it left behind and that still hold its output are given a second,
  then nobody listens to them any more; they are not ended.
* Cancelled, the whole group gets SIGTERM, three seconds later SIGKILL, and the run ends when the program has.
* The worker's own end takes them along: ``kill_programs``; and if it dies without a word (SIGKILL), a ``Watchman`` does.
"""

import asyncio
import contextlib
import logging
import os
import signal
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Final, cast

from backfill.worker.processes import wait_whatever
from backfill.worker.watchman import Watchman

logger = logging.getLogger(__name__)

GRACE: Final = 3.0  # seconds between SIGTERM and SIGKILL; less than the last phase of a stop
_LINGER: Final = 1.0  # seconds that output is read after the program's end
_LONGEST_LINE: Final = 4_000  # bytes
_LOOK: Final = 0.02  # seconds between looks at a group that should end

_groups: set[int] = set()
_watchman = Watchman()


class Lines:
    """Makes lines of a stream's pieces."""

    def __init__(self, tell: Callable[[str], None]) -> None:
        """Prepare it.

        Args:
            tell: Takes each line, without its end; empty ones are left out.
        """
        self._tell = tell
        self._line = bytearray()
        self._left_out = 0

    def feed(self, data: bytes) -> None:
        """Take more of the stream."""
        *lines, rest = data.split(b"\n")
        for line in lines:
            self._add(line)
            self.end()
        self._add(rest)

    def end(self) -> None:
        """The line has ended, or the stream has."""
        text = "".join(map(_shown, self._line.decode("utf-8", "replace").rstrip()))
        if self._left_out:
            text += f" [{self._left_out} bytes left out]"
        self._line.clear()
        self._left_out = 0
        if text:
            self._tell(text)

    def _add(self, part: bytes) -> None:
        room = _LONGEST_LINE - len(self._line)
        self._line += part[:room]
        self._left_out += max(0, len(part) - room)


class _Program(asyncio.SubprocessProtocol):
    """A program at work.

    Attributes:
        exited: Set when it has ended.
        silent: Set when nobody holds its stdout and stderr any more.
        reads: Whether its stdin is open.
    """

    def __init__(self, out: Lines, err: Lines) -> None:
        self.exited = asyncio.Event()
        self.silent = asyncio.Event()
        self.reads = True
        self._streams = {1: out, 2: err}

    def pipe_data_received(self, fd: int, data: bytes) -> None:
        if fd in self._streams:
            self._streams[fd].feed(data)

    def pipe_connection_lost(self, fd: int, _exc: Exception | None) -> None:
        self.reads = self.reads and fd != 0
        stream = self._streams.pop(fd, None)
        if stream is not None:
            stream.end()
        if not self._streams:
            self.silent.set()

    def process_exited(self) -> None:
        self.exited.set()

    def stop_listening(self) -> None:
        for fd in tuple(self._streams):
            self.pipe_connection_lost(fd, None)


async def run_program(path: Path, given: bytes, environment: Mapping[str, str], out: Lines, err: Lines) -> int:
    """Run a program to its end.

    Args:
        path: The file.
        given: What it can read from stdin.
        environment: Its environment variables.
        out: Takes its stdout.
        err: Takes its stderr.

    Returns:
        Its exit code, or the negative number of the signal that killed it.

    Raises:
        OSError: It can't be run.
        asyncio.CancelledError: This was cancelled; the program has ended.
    """
    begin = asyncio.get_running_loop().subprocess_exec
    beginning = asyncio.ensure_future(
        begin(partial(_Program, out, err), str(path), env=environment, start_new_session=True)
    )
    try:
        transport, program = await asyncio.shield(beginning)
    except asyncio.CancelledError:
        await wait_whatever(_end_at_once(beginning))
        raise
    group = transport.get_pid()
    _groups.add(group)
    _watchman.begun(group)
    stdin = cast("asyncio.WriteTransport", transport.get_pipe_transport(0))
    try:
        if not stdin.is_closing():  # as it is if the program has ended already
            stdin.write(given)
            stdin.close()  # when it is written
        await program.exited.wait()
        with contextlib.suppress(TimeoutError, asyncio.CancelledError):  # it has ended: too late to be cancelled
            async with asyncio.timeout(_LINGER):
                await program.silent.wait()
        if not program.silent.is_set():
            logger.warning("%s has ended, but processes that it left behind hold its output; they run on", path)
    except BaseException:
        await wait_whatever(_end(group, program))
        raise
    finally:
        _groups.discard(group)
        _watchman.ended(group)
        program.stop_listening()
        if program.reads:
            stdin.abort()  # what it has not read by now, nobody will
        transport.close()
    code = transport.get_returncode()
    return 0 if code is None else code


def kill_programs() -> None:
    """Kill every program that runs for a job of this process, and what it started: the process itself is about to end."""
    for group in tuple(_groups):
        _signal(group, signal.SIGKILL)


async def _end_at_once(beginning: "asyncio.Future[tuple[asyncio.SubprocessTransport, _Program]]") -> None:
    """End a program that is being started."""
    with contextlib.suppress(OSError):  # it could not be started
        transport, program = await beginning
        await _end(transport.get_pid(), program)
        program.stop_listening()
        transport.close()


async def _end(group: int, program: _Program) -> None:
    until = time.monotonic() + GRACE
    alive = _signal(group, signal.SIGTERM)
    while alive and time.monotonic() < until:
        await asyncio.sleep(_LOOK)
        alive = _signal(group, 0)
    _signal(group, signal.SIGKILL)
    await program.exited.wait()


def _signal(group: int, number: int) -> bool:
    """Send a signal to a process group; whether there is anybody in it."""
    try:
        os.killpg(group, number)
    except ProcessLookupError:
        return False
    except PermissionError:  # somebody in it has become another user
        return True
    return True


def _shown(character: str) -> str:
    return character if character.isprintable() or character == "\t" else character.encode("unicode_escape").decode()
