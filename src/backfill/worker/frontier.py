"""Where claims begin to look for queued jobs, so that they do not pass by the same jobs again and again.

No index leads from a queue to its jobs. A claim looks for queued jobs in the order of all jobs, and has to pass by everything that
waits in queues others hold; and to find which of many jobs of one moment comes first in its queue, it has to look at them all.
With a hundred thousand such jobs that takes a claim 20 to 100 ms. So after a claim that took long, or brought a second job of one moment, ``find_frontier`` does it
once, and for a while claims begin where that came to.

A frontier is for a short while, and less often made the more it costs, since there is no way to know that it no longer holds:

* Others may free a queue whose jobs are before it, or give the job back there that they hold of one. Claims leave these queues
  (``passed``) alone, or else they would take a later job of such a queue for its first. Our own counted as free when it was made.
* Others may add a job with a time in the past: the order is then kept only among what is behind it.

What the worker itself learns of (jobs handed back, workers that died, a lost connection) ends it at once, and so does each poll.
"""

import time
from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final

import asyncpg

from backfill.db import moment

_SLOW: Final = 0.002  # seconds, without what it took to bring jobs: a claim that passes by nothing takes less
_SLOW_JOB: Final = 0.000_03  # seconds for each job brought
_TIMES: Final = 20  # it stands for so many times what it took to make, so that a twentieth of the time goes into it
_SHORTEST: Final = 0.1  # seconds
_LONGEST: Final = 2.0

Columns = tuple[list[int], list[datetime], list[int | None]]
_NONE: Final[Columns] = ([], [], [])


class Frontier:
    """What is known of where claims may begin; it begins empty."""

    def __init__(self, *, is_used: bool) -> None:
        """Make it.

        Args:
            is_used: Whether there ever is one. A run that ends when nothing is left can't do with what is true for the most part.
        """
        self._is_used = is_used
        self._columns: Columns = _NONE
        self._passed: list[int] = []
        self._wanted = False
        self._again = False
        self._is_outdated = False
        self._moment: tuple[int, int] | None = None
        self._next_at = 0.0

    @property
    def columns(self) -> Columns:
        """Priorities, times and ids, as a claim takes them."""
        return self._columns

    @property
    def passed(self) -> list[int]:
        """The queues of the jobs before it."""
        return self._passed if self._columns[0] else []

    @property
    def seconds_left(self) -> float | None:
        """For how long it still stands; None if there is none."""
        return max(0.0, self._next_at - time.monotonic()) if self._columns[0] else None

    @property
    def is_wanted(self) -> bool:
        """Whether to make one before the next claim."""
        if not self._is_used or time.monotonic() < self._next_at:
            return False
        if self._columns[0]:  # it has had its time; without it the next claim would take as long as it takes to make it
            self._columns = _NONE
            return self._wanted or self._again
        return self._wanted

    def claimed(self, seconds: float, jobs: int, moment: tuple[int, int] | None) -> None:
        """Note what a claim was like that looked for queued jobs.

        Args:
            seconds: How long it took.
            jobs: How many it brought.
            moment: Priority and time of one of them that is queued. The same one twice in a row is probably that of many.
        """
        if seconds > _SLOW + jobs * _SLOW_JOB or (moment is not None and moment == self._moment):
            self._wanted = True
        self._moment = moment

    def being_made(self) -> None:
        """``find_frontier`` is about to be sent; if there is something to forget meanwhile, what it gives is not taken."""
        self._is_outdated = False

    def found(self, rows: Sequence[asyncpg.Record], seconds: float) -> None:
        """Take over what ``find_frontier`` gave, and how long that took."""
        if self._is_outdated:
            return
        self._wanted = False
        columns: list[Any] = [[row[0] for row in rows], [moment(row[1]) for row in rows], [row[2] for row in rows]]
        self._columns = (columns[0], columns[1], columns[2])
        self._passed = sorted({queue_id for row in rows for queue_id in row[3]})
        self._again = seconds > _SLOW
        self._next_at = time.monotonic() + min(_LONGEST, max(_SHORTEST, _TIMES * seconds))

    def forget(self) -> None:
        """It may no longer hold: if it was needed, it is made again."""
        self._is_outdated = True
        if self._columns[0]:
            self._columns, self._wanted, self._next_at = _NONE, True, 0.0
