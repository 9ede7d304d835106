"""What runs in a process of ``executor="process"``; see ``processes`` for its life."""

import asyncio
import ctypes
import functools
import importlib
import inspect
import logging
import os
import signal
import socket
import sys
import threading
import time
from mmap import PROT_READ, mmap
from typing import TYPE_CHECKING, Any, Final, NoReturn

from backfill.errors import ConfigurationError
from backfill.model import Job, Task
from backfill.worker.batch import ItemsFailedError, settle_items
from backfill.worker.classify import describe, detail, is_retryable
from backfill.worker.context import WorkerContext
from backfill.worker.handler import Handler, make_handler
from backfill.worker.lease import boot_time
from backfill.worker.processes import DEADLINE
from backfill.worker.wire import LENGTH, Ended, Logged, Run, frame, orders

if TYPE_CHECKING:
    from backfill.db import Pool

_LOOKS: Final = 0.25  # seconds between looks at the parent and the deadline
_SET_DEATH_SIGNAL: Final = 1  # PR_SET_PDEATHSIG


class ProcessContext(WorkerContext):
    """The context of a handler that runs in a process: the job and the attempt, but nothing that needs the worker's loop."""

    __slots__ = ()

    def __init__(self, job: Job, worker_id: str) -> None:
        self._job = job
        self._worker_id = worker_id

    @property
    def attempt(self) -> int:
        """Which run this is, from 1."""
        return self.job.attempts

    @property
    def cancel_requested(self) -> bool:
        """False: a process that should end is killed."""
        return False

    @property
    def pool(self) -> "Pool":
        """There is none here.

        Raises:
            AttributeError: Always.
        """
        raise AttributeError(
            "ctx.pool is not to be had in a handler with executor='process': open a connection of its own"
        )

    def transaction(self) -> NoReturn:
        """There is none here.

        Raises:
            AttributeError: Always.
        """
        raise AttributeError(
            "ctx.transaction is not to be had in a handler with executor='process': open a connection of its own"
        )

    async def enqueue(self, *_: Any, **__: Any) -> NoReturn:
        """Not from here.

        Raises:
            AttributeError: Always.
        """
        raise AttributeError(
            "ctx.enqueue is not to be had in a handler with executor='process': use a BackfillClient of its own, or"
            " enqueue in the task that adds this job"
        )


class _Line:
    """The socket, with whole messages; several threads may send."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._lock = threading.Lock()

    def read(self) -> Run | None:
        """The next message; None at the end."""
        head = self._exactly(LENGTH.size)
        if head is None:
            return None
        body = self._exactly(*LENGTH.unpack(head))
        return None if body is None else orders.decode(body)

    def send(self, message: Logged | Ended) -> None:
        """Send a message whole."""
        with self._lock:
            self._connection.sendall(frame(message))

    def _exactly(self, size: int) -> bytes | None:
        got = bytearray()
        while len(got) < size:
            part = self._connection.recv(min(size - len(got), 1 << 20))
            if not part:
                return None
            got += part
        return bytes(got)


class _ToWorker(logging.Handler):
    """Sends log records to the worker, which logs them as its own."""

    def __init__(self, line: _Line) -> None:
        super().__init__()
        self.setFormatter(logging.Formatter("%(message)s"))  # the worker's log says the rest
        self._line = line

    def emit(self, record: logging.LogRecord) -> None:
        """Send one record, its text made."""
        try:
            text = self.format(record)
            values = {
                **record.__dict__,
                "msg": text,
                "args": None,
                "exc_info": None,
                "exc_text": None,
                "stack_info": None,
            }
            plain = {name: value for name, value in values.items() if isinstance(value, str | int | float | None)}
            self._line.send(Logged(plain))
        except Exception:  # noqa: BLE001 - as logging's handlers do: a record that can't be sent must not fail the job
            self.handleError(record)


def main(socket_number: int, deadline_number: int, parent: int, log_level: int) -> None:
    """Run jobs until the worker hangs up.

    Args:
        socket_number: The socket's descriptor.
        deadline_number: The descriptor of a file that holds the lease's deadline, by ``boot_time``.
        parent: The worker's process id.
        log_level: From which level on log records are wanted.
    """
    _follow(parent, mmap(deadline_number, DEADLINE.size, prot=PROT_READ))
    line = _Line(socket.socket(fileno=socket_number))
    logging.basicConfig(level=log_level, handlers=[_ToWorker(line)])
    while (order := line.read()) is not None:
        line.send(_run(order))


def _follow(parent: int, deadline: mmap) -> None:
    """End with the worker, or when its lease has ended."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_SET_DEATH_SIGNAL, signal.SIGKILL)
    threading.Thread(target=_watch, args=(parent, deadline), daemon=True).start()


def _watch(parent: int, deadline: mmap) -> None:
    while os.getppid() == parent and boot_time() < DEADLINE.unpack_from(deadline)[0]:
        time.sleep(_LOOKS)
    os.killpg(0, signal.SIGKILL)


def _run(order: Run) -> Ended:
    try:
        handler = handler_of(order.module, order.name)
        arguments = handler.arguments(order.job.payload_text, lambda: ProcessContext(order.job, order.worker_id))
        result = handler.function(*arguments)
        if handler.is_batch:
            asyncio.run(settle_items(order.job.payload_text, result))
        elif inspect.iscoroutine(result):
            asyncio.run(result)
    except (Exception, SystemExit, KeyboardInterrupt, asyncio.CancelledError) as error:  # noqa: BLE001 - it fails this job
        more = {"attempt": order.job.attempts, "max_attempts": order.job.max_attempts, "worker_id": order.worker_id}
        return Ended(
            failed=True,
            message=describe(error),
            detail=detail(error, **more),
            retryable=is_retryable(error),
            payload=error.payload if isinstance(error, ItemsFailedError) else None,
        )
    return Ended()


@functools.cache
def handler_of(module: str, name: str) -> Handler:
    """The handler of the task of that module and qualified name.

    Raises:
        ConfigurationError: There is none.
    """
    found: Any = importlib.import_module(module)
    for part in name.split("."):
        found = getattr(found, part, None)
    if not isinstance(found, Task):
        raise ConfigurationError(f"{module}.{name} is no task in the process that should run it: define it in a module")
    return make_handler(found)
