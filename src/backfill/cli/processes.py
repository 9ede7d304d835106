"""Several workers as forks of one process.

The parent runs nothing itself: it passes SIGTERM and SIGINT on to the workers and waits for all of them. Each worker is a
process group of its own, or else a terminal's Ctrl-C would reach it twice. None is restarted: that is the business of
whatever runs the parent. A parent that ends, however it does, closes a pipe, and the workers stop in order.
"""

import contextlib
import logging
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from types import FrameType

from backfill.cli.stopping import SIGNALS

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Ended:
    """A worker process that has ended.

    Attributes:
        pid: Its process id.
        code: Its exit code; the negative number of the signal that killed it.
    """

    pid: int
    code: int


def run_processes(count: int, work: Callable[[int], int]) -> list[Ended]:
    """Run so many processes until all have ended; return how they ended.

    Args:
        count: How many.
        work: What each does; it takes the descriptor of the pipe whose end is the parent's, and gives the exit code.
    """
    orphaned, _held = os.pipe()  # the parent keeps its end open for as long as it lives
    running: set[int] = set()
    received: list[int] = []

    def pass_on(number: int, _frame: FrameType | None) -> None:
        received.append(number)
        for pid in running:
            with contextlib.suppress(ProcessLookupError):  # it has just ended
                os.kill(pid, number)

    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        before = {number: signal.signal(number, pass_on) for number in SIGNALS}
        for _ in range(count):
            sys.stdout.flush()
            pid = os.fork()
            if pid == 0:
                for number, handler in before.items():
                    signal.signal(number, handler)
                os.close(_held)
                _be_worker(orphaned, work)
            os.setpgid(pid, pid)
            running.add(pid)
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    logger.info("started the worker processes %s", ", ".join(map(str, sorted(running))))
    return _wait_for(running, received)


def _be_worker(orphaned: int, work: Callable[[int], int]) -> None:
    """The life of a forked process; does not return."""
    code = 1
    try:
        os.setpgid(0, 0)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        code = work(orphaned)
    finally:
        logging.shutdown()
        sys.stdout.flush()
        os._exit(code)


def _wait_for(running: set[int], received: list[int]) -> list[Ended]:
    ended = []
    while running:
        pid, status = os.wait()
        if pid not in running:  # another child of this process, such as the embedded server's supervisor
            continue
        running.discard(pid)
        code = os.waitstatus_to_exitcode(status)
        if len(received) <= 2 and code in {end for number in received for end in (-number, 128 + number)}:
            code = 0  # it was told to go before it had begun
        ended.append(Ended(pid, code))
        if code:
            how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
            logger.error("worker process %d %s; %d still run", pid, how, len(running))
    return ended
