"""Processes for tasks with ``executor="process"``: what goes wrong in there fails one job and nothing else.

Each process runs one job at a time. It is started when a slot needs one and none is idle, and used again afterwards, so
there are never more than slots. A process is a child of the worker in a session of its own (a terminal's Ctrl-C is the
worker's business), finds the task by module and name, and answers over a socket.

How a run ends:

* the process answers: the handler returned, or raised; what it raised is described and classified over there.
* the process dies (a crash, `os._exit`, the system's out-of-memory killer): ``ProcessDiedError``, a failure worth another try.
  The other slots' processes do not notice.
* the run is cancelled (a time limit, a stop, a lost claim, a cancellation): the process and all that it started are
  killed, and the slot goes on only when it has ended, since a job that still runs must not start elsewhere.
* the worker itself ends, however: each process watches its parent and follows at once. A frozen worker (SIGSTOP, suspend)
  is no parent to go by, so the lease's deadline stands in shared memory, and a process ends itself when it has passed.

Why not a library: the pools that were looked at (the standard library's, pebble) answer a cancellation before the process
has ended, or take every running job down with one crash; see docs/decisions/0010-processes-of-our-own.md.
"""

import asyncio
import contextlib
import logging
import os
import signal
import socket
import struct
import sys
import tempfile
from collections.abc import Awaitable
from mmap import mmap
from typing import Any, Final

import msgspec

from backfill.errors import WorkerError
from backfill.worker.wire import LENGTH, Ended, Logged, Run, frame, reports

_ENDS: Final = 5.0  # seconds that an idle process is given to end at a stop
DEADLINE: Final = struct.Struct("d")
_BEGIN: Final = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from backfill.worker.child import main;"
    " main(*map(int, sys.argv[2:]))"
)


class ProcessDiedError(WorkerError):
    """The process that ran the handler ended without an answer; retryable."""


class FailedInProcessError(WorkerError):
    """The handler raised in its process; carries what was found out about the error there.

    Attributes:
        message: For ``last_error``.
        detail: For the dead letter, a JSON object.
        retryable: Whether trying again may help.
        payload: What of a batch is left to do.
    """

    def __init__(self, ended: Ended) -> None:
        super().__init__(ended.message)
        self.message = ended.message
        self.detail = ended.detail
        self.retryable = ended.retryable
        self.payload = ended.payload


class Processes:
    """A worker's processes; one for each slot that runs such a task at the moment, at most."""

    def __init__(self) -> None:
        self._idle: list[_Process] = []
        self._deadline: mmap | None = None
        self._file: Any = None
        self._seconds = float("inf")

    def extend(self, deadline: float) -> None:
        """Let processes run until that reading of ``lease.boot_time``; without a call they are not limited. For any thread."""
        self._seconds = deadline
        shared = self._deadline
        if shared is not None and not shared.closed:
            DEADLINE.pack_into(shared, 0, deadline)

    async def run(self, order: Run) -> None:
        """Run a job in a process of its own.

        Raises:
            FailedInProcessError: The handler raised.
            ProcessDiedError: The process ended instead of answering.
            asyncio.CancelledError: This was cancelled; the process has ended.
        """
        process = self._idle.pop() if self._idle else await self._start()
        try:
            ended = await process.ask(order)
        except BaseException:
            await wait_whatever(process.kill())
            raise
        self._idle.append(process)
        if ended.failed:
            raise FailedInProcessError(ended)

    async def close(self) -> None:
        """End the processes; those that run jobs belong to their slots, which have ended by now."""
        idle, self._idle = self._idle, []
        await asyncio.gather(*(process.close() for process in idle))
        deadline, self._deadline = self._deadline, None  # another thread may be about to set it
        if deadline is not None:
            deadline.close()
            self._file.close()
            self._file = None

    async def _start(self) -> "_Process":
        if self._deadline is None:
            self._file = tempfile.TemporaryFile()  # noqa: SIM115 - open as long as the processes
            self._file.truncate(DEADLINE.size)
            self._deadline = mmap(self._file.fileno(), DEADLINE.size)
            self.extend(self._seconds)
        level = logging.getLogger().getEffectiveLevel()
        ours, theirs = socket.socketpair()
        with theirs:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-c",
                _BEGIN,
                msgspec.json.encode(sys.path).decode(),
                *(str(number) for number in (theirs.fileno(), self._file.fileno(), os.getpid(), level)),
                stdin=asyncio.subprocess.DEVNULL,
                pass_fds=(theirs.fileno(), self._file.fileno()),
                start_new_session=True,
            )
        try:
            reader, writer = await asyncio.open_connection(sock=ours)
        except BaseException:
            ours.close()
            process.kill()
            raise
        return _Process(process, reader, writer)


class _Process:
    """One child, idle or with one job."""

    def __init__(
        self, process: asyncio.subprocess.Process, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self._process = process
        self._reader = reader
        self._writer = writer

    async def ask(self, order: Run) -> Ended:
        """Send a job and wait for its end; what the process logs meanwhile is logged here."""
        try:
            self._writer.write(frame(order))
            await self._writer.drain()
            while True:
                (length,) = LENGTH.unpack(await self._reader.readexactly(LENGTH.size))
                report = reports.decode(await self._reader.readexactly(length))
                if isinstance(report, Ended):
                    return report
                _log(report)
        except (asyncio.IncompleteReadError, OSError) as error:
            status = await self._process.wait()
            raise ProcessDiedError(f"the process of the job {_how_it_ended(status)}") from error

    async def kill(self) -> None:
        """End it and what it started, now, and wait until it has ended."""
        with contextlib.suppress(ProcessLookupError):  # it has ended by itself
            os.killpg(self._process.pid, signal.SIGKILL)
        await self._process.wait()
        self._writer.close()

    async def close(self) -> None:
        """Let it end, or kill it."""
        self._writer.close()
        try:
            async with asyncio.timeout(_ENDS):
                await self._process.wait()
        except TimeoutError:
            await self.kill()


def _log(report: Logged) -> None:
    record = logging.makeLogRecord(report.record)
    logger = logging.getLogger(record.name)
    if logger.isEnabledFor(record.levelno):
        logger.handle(record)


def _how_it_ended(status: int) -> str:
    if status >= 0:
        return f"ended with exit status {status} before the handler returned"
    try:
        name = signal.Signals(-status).name
    except ValueError:
        name = f"signal {-status}"
    why = ", perhaps for lack of memory" if -status == signal.SIGKILL else ""
    return f"was killed by {name}{why}"


async def wait_whatever(awaited: Awaitable[None]) -> None:
    """Wait for its end, also when this is cancelled meanwhile."""
    task = asyncio.ensure_future(awaited)
    while not task.done():
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.shield(task)
    task.result()
