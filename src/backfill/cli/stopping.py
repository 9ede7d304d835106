"""How signals and the end of a parent process stop a worker, and how the process then ends.

The first SIGTERM or SIGINT asks for an orderly stop, the second hurries it, the third ends the process on the spot. The
handlers are Python's own rather than the event loop's, so that the third works while a handler of the user's keeps the
loop busy.
"""

import asyncio
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import Final, NoReturn

from backfill.worker.program import kill_programs

logger = logging.getLogger(__name__)

SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)


class StopRequests:
    """Listens for reasons to stop; made inside of a running event loop.

    Attributes:
        last: The signal that came last; None while none has come.
    """

    def __init__(
        self,
        stop: Callable[[], object],
        hurry: Callable[[], object],
        stopping: str = "jobs that run may finish",
        *,
        on_signal: Callable[[], object] = lambda: None,
    ) -> None:
        """Begin to listen.

        Args:
            stop: Called in the loop at the first request.
            hurry: Called in the loop at the second.
            stopping: What the first means, for the log.
            on_signal: Called in the loop before either, if a signal is the reason.
        """
        self.last: int | None = None
        self._loop = asyncio.get_running_loop()
        self._steps = (
            (stop, f"stopping: {stopping}; a second signal hurries"),
            (hurry, "hurrying: jobs that run are cancelled and handed back; a third signal ends the process"),
        )
        self._told = on_signal
        self._count = 0
        for number in SIGNALS:
            signal.signal(number, self._on_signal)

    def watch(self, pipe: int) -> None:
        """Stop when the other end of a pipe is closed: the process that holds it has ended."""
        self._loop.add_reader(pipe, self._on_orphaned, pipe)

    def _on_orphaned(self, pipe: int) -> None:
        self._loop.remove_reader(pipe)
        logger.warning("the parent process has ended: stopping")
        if not self._count:
            self._count = 1
            self._step(0)

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        self.last = number
        self._count += 1
        if self._count > len(self._steps):
            leave(128 + number)
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._step, self._count - 1)

    def _step(self, number: int) -> None:
        act, said = self._steps[number]
        logger.info("%s", said)
        if self.last is not None:
            self._told()
        act()


def leave(code: int) -> NoReturn:
    """End the process on the spot, once what was logged and printed is out; threads and handlers that run are cut off."""
    kill_programs()
    try:
        logging.shutdown()
        sys.stdout.flush()
    finally:  # a signal's handler may have interrupted a write
        os._exit(code)


def leave_within(seconds: float, code: int) -> None:
    """End the process in so long if it has not ended by itself: threads that handlers left behind can hold it up."""

    def late() -> None:
        logger.warning("threads of handlers still run %g s after the end of the worker: leaving them", seconds)
        leave(code)

    timer = threading.Timer(seconds, late)
    timer.daemon = True
    timer.start()
