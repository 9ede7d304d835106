"""How long this process may take the jobs it has claimed for its own.

A worker holds its jobs by a lease that its heartbeat renews. Others may take them once the lease has ended by the database's
clock, so this process has to stop before that, by a clock of its own: when it is frozen, cut off from the database, or the
machine was asleep, nobody tells it. Each acknowledged beat moves two moments, counted from when it was *sent*, which is no
later than when the database noted it:

* the **deadline**, a margin before the end: nothing is claimed or begun any more, handlers are cancelled, and what they do
  through their context is refused;
* the **end**.

The clock is one that goes on while the machine sleeps, where there is such a clock (Linux).

A `Fence` stands for the claims made in one unbroken time of the lease. Once that has lapsed it never stands again, even when
the worker is registered anew a moment later: its claims may have been given to others meanwhile. So each claimed job carries
the fence that it was claimed under.
"""

import time
from typing import Final

from backfill.errors import ClaimLost

LEAST: Final = 5.0  # seconds that a lease must have: below, a busy machine loses it
_CLOCK: Final = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def boot_time() -> float:
    """Seconds of a clock that goes on while the machine sleeps, where there is one; the same in every process."""
    return time.clock_gettime(_CLOCK)


class Fence:
    """What stands between a job and effects that it must no longer have.

    Attributes:
        deadline: On the clock of ``boot_time``.
        lapsed: Whether it has been passed, or the database said that the worker is dead. Never taken back.
    """

    __slots__ = ("deadline", "lapsed")

    def __init__(self, deadline: float) -> None:
        self.deadline = deadline
        self.lapsed = False

    def stands(self) -> bool:
        """Whether claims made under it are certainly still this worker's."""
        return not self.lapsed and boot_time() < self.deadline

    def check(self, job_id: int, doing: str) -> None:
        """Return if it stands.

        Raises:
            ClaimLost: It does not.
        """
        if not self.stands():
            raise ClaimLost(
                f"job {job_id} may run on another worker by now: this worker's lease ended without a heartbeat that the"
                f" database acknowledged, so it may not {doing}"
            )


class Lease:
    """This worker's lease. Written by the heartbeat's thread, read everywhere.

    Attributes:
        seconds: How long it lasts after a beat.
        margin: Seconds between the deadline and the end.
        fence: For claims that are made now.
        ends: When others may take the jobs, on the clock of ``boot_time``, unless it is renewed.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.margin = 1.0 + seconds / 10
        self.ends = 0.0
        self.fence = Fence(0.0)
        self.fence.lapsed = True

    def renew(self, sent_at: float) -> bool:
        """Note an acknowledged beat.

        Args:
            sent_at: When it was sent, by ``boot_time``.

        Returns:
            Whether the lease is a new one: it had lapsed, or this is the first beat.
        """
        deadline = sent_at + self.seconds - self.margin
        self.ends = sent_at + self.seconds
        if self.fence.stands():
            self.fence.deadline = deadline
            return False
        self.fence.lapsed = True
        self.fence = Fence(deadline)
        return True

    def lose(self) -> None:
        """The database says that this worker is dead, or its deadline has passed: what it holds may be given to others."""
        self.fence.lapsed = True
