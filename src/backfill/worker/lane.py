"""A lane at work: its slots, the jobs claimed for them, and how far ahead it may claim.

Claiming ahead (prefetch) is what makes short jobs cheap: one claim for hundreds of them. It must not make anybody wait: a
job claimed here and not started is one that no other worker can start. So a lane claims ahead only what, by the run times
it sees, begins within a few milliseconds, and nothing before it has seen any. The run time is a decaying maximum, so
one slow task among fast ones ends the prefetch. A job that has waited in the buffer too long all the same (a handler
took longer than its like) is handed back, and the lane claims nothing ahead for a while.

The controller: with a run time r, n slots and an overhead o of each job, n / (r + n o) jobs begin in a second; the lane may
hold as many as begin in AHEAD_SECONDS, nothing if r is longer than that, and AHEAD_MOST at most. A claim brings CLAIM_MOST at
most (fewer while jobs are being added, so that an urgent one need not wait long for the claim under way), and the next one is sent as soon as there is room for half of that. So of quick jobs one claim is under way while the
jobs of the last are run, and the server never waits for the worker. A lane with idle slots fills these first.
"""

import asyncio
import itertools
import logging
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from backfill.worker.config import DEAD_LETTER_LANE, HIGHEST_PRIORITY, LOWEST_PRIORITY, QueueConfig

if TYPE_CHECKING:
    from backfill.worker.claimed import Claimed

logger = logging.getLogger(__name__)

AHEAD_SECONDS: Final = 0.01  # a job claimed ahead should start within this
AHEAD_MOST: Final = 1000  # claimed ahead and not begun: so a claim may be under way while the jobs of another are run
CLAIM_MOST: Final = 500  # claimed ahead by one claim; plans were checked for batches of this size
CLAIM_WHILE_ADDED: Final = (
    200  # the same while jobs are being added: an urgent one waits for the claim that is under way
)
_ADDED: Final = 1.0  # seconds after a notification that this holds
STALE_SECONDS: Final = 0.25  # buffered longer than this: handed back
PAUSE_SECONDS: Final = 2.0  # without prefetch after that
_DECAY: Final = 0.98  # per run: a slow run is forgotten after some hundred fast ones
_TURN: Final = 0.002  # seconds that handlers which never suspend may run before others get the loop
_OVERHEAD: Final = 0.000_01  # seconds a slot spends around a handler that does nothing


class Lane:
    """The slots of one QueueConfig and their buffer of claimed jobs.

    Attributes:
        config: What it was made from.
        number: Its place, by which claim statements name it.
        pieces: The ranges of priorities that are its own, after those of the lanes before it.
        hungry: Whether there may be more jobs for it: then it claims as soon as it has room.
        low_mark: With so many buffered jobs or fewer it has room for a claim that is worth its while.
        idle: Slots that wait for a job.
    """

    def __init__(self, config: QueueConfig, number: int, pieces: Sequence[tuple[int, int]]) -> None:
        self.config = config
        self.number = number
        self.pieces = tuple(pieces)
        self.hungry = True
        self.low_mark = 0
        self.idle = 0
        self._may_be_overtaken = False
        self._turn_began = 0.0
        self._turn_ends = False
        self._may_prefetch = True
        self._looked = False
        self._added_until = 0.0
        self._buffer: list[tuple[int, int, int, int, Claimed]] = []
        self._number = itertools.count()
        self._waiters: list[asyncio.Future[None]] = []
        self._run_time: float | None = None
        self._paused_until = 0.0

    def __str__(self) -> str:
        config = self.config
        if config.queue_name is not None:
            return f"lane {config.name} ({config.concurrency} for queue {config.queue_name})"
        low, high = config.pieces
        return f"lane {config.name} ({config.concurrency} for priorities {low}..{high})"

    @property
    def buffered(self) -> int:
        """Jobs claimed and not started."""
        return len(self._buffer)

    def wanted(self) -> tuple[int, int]:
        """How many jobs a claim should bring: for idle slots, and in all. (0, 0) while a claim is not worth it."""
        if not self.hungry:
            return 0, 0
        buffered = len(self._buffer)
        ahead = self._ahead()
        most = CLAIM_MOST if time.monotonic() > self._added_until else CLAIM_WHILE_ADDED
        self.low_mark = max(ahead // 2, ahead - most // 2)
        idle = max(0, self.idle - buffered)
        if not idle and (not ahead or buffered > self.low_mark):
            return 0, 0
        self._looked = False
        return idle, idle + min(most, max(0, ahead - max(0, buffered - self.idle)))

    def claimed(self, idle: int, wanted: int, got: Sequence["Claimed"]) -> None:
        """Note what a claim for ``idle`` slots and ``wanted`` jobs in all brought.

        If there was a reason to look again while it was under way, that stands.
        """
        if not self._looked:
            self._may_prefetch = len(got) >= wanted and any(job.queue_id is None for job in got)
            self.hungry = len(got) >= idle
            self._may_be_overtaken = False

    def look_again(self, *, ahead: bool = True) -> None:
        """There may be new jobs.

        Args:
            ahead: Whether any that can be claimed ahead; not, if it is only that a queue became free.
        """
        self.hungry = True
        self._may_prefetch |= ahead and not self.idle  # idle slots are filled first: a small claim is quicker
        self._looked = True
        self._may_be_overtaken = True

    def note_added(self) -> None:
        """Jobs are being added: for a while claims are smaller."""
        self._added_until = time.monotonic() + _ADDED

    @property
    def may_be_overtaken(self) -> bool:
        """Whether there may be new jobs that are more urgent than those that wait for a slot."""
        return self._may_be_overtaken and len(self._buffer) > self.idle

    def overtaking(self) -> list[tuple[int, int]]:
        """The lane's priorities that are more urgent than all in the buffer; once for each ``look_again``."""
        self._may_be_overtaken = False
        if not self._buffer:
            return []
        best = self._buffer[-1][0]
        return [(low, min(high, best - 1)) for low, high in self.pieces if low < best]

    def _ahead(self) -> int:
        known = self._run_time
        if known is None or not self._may_prefetch or self.config.queue_name is not None:
            return 0
        if known > AHEAD_SECONDS or time.monotonic() < self._paused_until:  # all slots may just have begun
            return 0
        slots = self.config.concurrency
        return min(AHEAD_MOST, int(AHEAD_SECONDS * slots / (known + _OVERHEAD * slots)))

    def put(self, jobs: Sequence["Claimed"]) -> None:
        """Add claimed jobs; the most urgent start first."""
        number = self._number
        self._buffer += [(job.priority, job.due, job.id, next(number), job) for job in jobs]
        self._buffer.sort(reverse=True)  # two runs that are in order, for the most part
        if len(self._waiters) == self.config.concurrency:  # none has had a turn
            self._turn_began = time.monotonic()
        for _ in range(min(len(jobs), len(self._waiters))):
            waiter = self._waiters.pop()
            if not waiter.done():
                waiter.set_result(None)

    def turn_is_over(self, now: float) -> bool:
        """Whether the slots have run for so long that others should get the loop: the slot that asks yields, and asks again.

        All slots share a turn. If each had its own, the loop would come round only after all of them.

        Args:
            now: The monotonic clock.
        """
        if now - self._turn_began <= _TURN:
            return False
        if not self._turn_ends:
            self._turn_ends = True
            asyncio.get_running_loop().call_soon(self._begin_turn)  # when the loop has come round
        return True

    def _begin_turn(self) -> None:
        self._turn_began, self._turn_ends = time.monotonic(), False

    def take(self) -> "Claimed | None":
        """The most urgent claimed job, for a slot that is free; None when there is none."""
        return self._buffer.pop()[-1] if self._buffer else None

    async def wait(self) -> None:
        """Wait for ``put``; may return without a job to take."""
        waiter = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        self.idle += 1
        try:
            await waiter
        finally:
            self.idle -= 1
            if waiter in self._waiters:
                self._waiters.remove(waiter)

    def ran(self, seconds: float) -> None:
        """Note how long a run took."""
        known = self._run_time
        self._run_time = seconds if known is None else max(seconds, known * _DECAY)

    def take_stale(self, now: float) -> list["Claimed"]:
        """Take out everything if something has been waiting too long, and claim nothing ahead for a while.

        Not what idle slots are about to take: then it was this process that did not get on.

        Args:
            now: The monotonic clock.
        """
        if len(self._buffer) <= self.idle or not any(
            now - entry[-1].claimed_at > STALE_SECONDS for entry in self._buffer
        ):
            return []
        self._paused_until = now + PAUSE_SECONDS
        return self.take_all()

    def take_all(self) -> list["Claimed"]:
        """Take out everything that has not started."""
        jobs, self._buffer = [entry[-1] for entry in self._buffer], []
        return jobs


def make_lanes(configs: Sequence[QueueConfig]) -> list[Lane]:
    """The lanes in the order in which they take jobs: those of a queue first, then those of priorities as given.

    Each piece of the range of priorities goes to the first lane that names it.
    """
    lanes: list[Lane] = []
    free = [(LOWEST_PRIORITY, HIGHEST_PRIORITY)]
    for config in sorted(configs, key=lambda config: config.queue_name is None):
        pieces: list[tuple[int, int]] = []
        if config.queue_name is None:
            pieces, free = _split(free, *config.pieces)
        lanes.append(Lane(config, len(lanes), pieces))
    return lanes


def gaps(lanes: Sequence[Lane]) -> list[tuple[int, int]]:
    """The ranges of priorities that no lane takes."""
    free = [(LOWEST_PRIORITY, HIGHEST_PRIORITY)]
    for lane in lanes:
        for low, high in lane.pieces:
            _, free = _split(free, low, high)
    return free


def _split(ranges: list[tuple[int, int]], low: int, high: int) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """The parts of the ranges inside low..high, and those outside."""
    inside = [(max(a, low), min(b, high)) for a, b in ranges if a <= high and b >= low]
    outside = [part for a, b in ranges for part in ((a, min(b, low - 1)), (max(a, high + 1), b)) if part[0] <= part[1]]
    return inside, outside


def warn_of_gaps(lanes: Sequence[Lane]) -> None:
    """Warn of priorities that no lane runs, and of slots that a serial queue cannot use."""
    left_out = gaps(lanes)
    if left_out:
        ranges = ", ".join(f"{low}..{high}" for low, high in left_out)
        logger.warning("no lane of this worker runs jobs of the priorities %s", ranges)
    for lane in lanes:
        if lane.config.queue_name is not None and lane.config.concurrency > 1 and lane.config != DEAD_LETTER_LANE:
            logger.warning(
                "lane %s has %d slots, but the jobs of a serial queue run one at a time",
                lane.config.name,
                lane.config.concurrency,
            )
