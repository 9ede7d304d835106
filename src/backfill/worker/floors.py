"""From which times on claims look for jobs without a queue, while dead index entries are in their way.

A claimed job's entry stays in the index of waiting jobs until vacuum takes it out, which it can't while any transaction is older than the claim:
under one that stays open for minutes each claim passes by the entries of all jobs since, 0.1 ms for a thousand of them.

Jobs are claimed in the order of their times. So where the last claim of a priority came to, there is nothing left before, but for
what comes late: a job added by a transaction that was long open, or handed back. After a claim that took long, the following ones begin
there for a while, in each priority that they know of; between these priorities they look as always, so that one of a new priority starts
at once. A claim that looks everywhere follows when the while is over: after twenty times what the slow one took, 2 s at most, so that
such claims have a twentieth of the time. What comes late waits as long. Each poll, and whatever may bring jobs back, ends it too.
"""

import math
import time
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from typing import Final

from backfill.db import moment
from backfill.worker.claimed import Claimed

_SLOW: Final = 0.002  # seconds, beside what the quickest took, and what it takes to bring jobs
_SLOW_JOB: Final = 0.000_03  # seconds for each job brought
_TIMES: Final = 20
_SHORTEST: Final = 0.1  # seconds
_LONGEST: Final = 2.0
_MARGIN: Final = timedelta(seconds=1)  # adds that are under way at once commit in any order
_MOST: Final = 10  # priorities

Piece = tuple[int, int, int, int, int]  # lane, lowest and highest priority, idle slots, jobs wanted


class Floors:
    """The times, by priority; there are none at first."""

    def __init__(self, *, is_used: bool) -> None:
        """Make it.

        Args:
            is_used: Whether there ever are any. A run that ends when nothing is left can't do with what is true for the most part.
        """
        self._is_used = is_used
        self._latest: dict[int, int] = {}
        self._until = 0.0
        self._quickest = math.inf

    @property
    def seconds_left(self) -> float | None:
        """For how long they still stand; None if there are none."""
        left = self._until - time.monotonic()
        return left if left > 0 else None

    def split(self, pieces: Sequence[Piece]) -> tuple[list[Piece], list[datetime | None]]:
        """The pieces of a claim, cut where priorities have a time of their own, and each one's time."""
        if self.seconds_left is None:
            return list(pieces), [None] * len(pieces)
        known = sorted(self._latest.items())
        split: list[Piece] = []
        floors: list[datetime | None] = []
        for lane, low, high, idle, wanted in pieces:
            begin = low
            for priority, latest in known:
                if not begin <= priority <= high:
                    continue
                if begin < priority:
                    split.append((lane, begin, priority - 1, idle, wanted))
                    floors.append(None)
                split.append((lane, priority, priority, idle, wanted))
                floors.append(moment(latest) - _MARGIN)
                begin = priority + 1
            if begin <= high:
                split.append((lane, begin, high, idle, wanted))
                floors.append(None)
        return split, floors

    def claimed(self, seconds: float, jobs: Iterable[Claimed], *, everywhere: bool) -> None:
        """Note what a claim was like.

        Args:
            seconds: How long it took.
            jobs: What it brought.
            everywhere: Whether it looked without these times.
        """
        count, latest = 0, self._latest
        for job in jobs:
            count += 1
            if job.queue_id is None and job.due > latest.get(job.priority, job.due - 1):
                latest[job.priority] = job.due
        while len(latest) > _MOST:
            del latest[next(iter(latest))]
        self._quickest = min(self._quickest * 1.01, seconds)
        if self._is_used and everywhere and latest and seconds > 2 * self._quickest + _SLOW + _SLOW_JOB * count:
            self._until = time.monotonic() + min(_LONGEST, max(_SHORTEST, _TIMES * seconds))

    def forget(self) -> None:
        """There may be jobs before: the next claim looks everywhere."""
        self._until = 0.0
