"""What a worker's heartbeat tells, and whom it tells what."""

import os
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from backfill.worker.config import QueueConfig

if TYPE_CHECKING:
    from backfill.worker.claimed import Claimed
    from backfill.worker.slot import Slot


class Late(NamedTuple):
    """A worker whose beats have stopped, or that counts as dead.

    Attributes:
        id: The worker.
        heartbeat_at: Its last beat.
        lease: Seconds that its lease lasts.
        left: Seconds of it that are left, by the database's clock; below zero it has ended.
        dead: Whether somebody has declared it dead.
    """

    id: str
    heartbeat_at: datetime
    lease: float
    left: float
    dead: bool


@dataclass(frozen=True, slots=True)
class Sample:
    """What a beat tells of the worker.

    Attributes:
        running: Ids of the jobs that run.
        ages: For how many seconds each.
        loop_lag: Seconds by which the event loop is behind.
    """

    running: list[int]
    ages: list[float]
    loop_lag: float


@dataclass(frozen=True, slots=True)
class Listeners:
    """Whom the heartbeat tells what; all but the first are called in the worker's loop.

    Attributes:
        on_deadline: There is a new deadline, by ``boot_time``. Called in the heartbeat's thread.
        on_lapse: The lease has lapsed.
        on_renewed: There is a new lease, after one that lapsed or as the first.
        on_cancellations: Ids of our jobs that are to be cancelled; and whether there are such jobs that nobody holds.
        on_late: Workers that are late; when that was read, by ``boot_time``; and whether our own beats have been steady.
    """

    on_deadline: Callable[[float], None]
    on_lapse: Callable[[], None]
    on_renewed: Callable[[], None]
    on_cancellations: Callable[[frozenset[int], bool], None]
    on_late: Callable[[Sequence[Late], float, bool], None]


class Vitals:
    """What a worker's beats tell, read from the heartbeat's thread while its loop goes on, or does not."""

    def __init__(self, slots: Sequence["Slot"], held: Mapping[int, "Claimed"], pulse: float) -> None:
        """Prepare it.

        Args:
            slots: The worker's.
            held: Every claimed job that is not released, by id; read as it is.
            pulse: Seconds between calls of ``beat_of_loop``.
        """
        self._slots = slots
        self._held = held
        self._pulse = pulse
        self._pulse_at = time.monotonic()

    def beat_of_loop(self, now: float) -> None:
        """Note that the worker's loop goes round: every ``pulse`` seconds, unless something holds it up."""
        self._pulse_at = now

    def sample(self) -> Sample:
        """What runs, for how long, and by how much the loop is behind."""
        now = time.monotonic()
        running = [(job.id, now - slot.started_at) for slot in self._slots if (job := slot.current) is not None]
        lag = max(0.0, now - self._pulse_at - self._pulse)
        return Sample([job for job, _ in running], [age for _, age in running], lag)

    def held(self) -> "Sequence[Claimed]":
        """Every claimed job that is not released."""
        return list(self._held.values())

    def running(self) -> "Sequence[Claimed]":
        """Those that run."""
        return [job for slot in self._slots if (job := slot.current) is not None]


def worker_row(worker_id: str, lanes: Sequence[QueueConfig], tasks: Sequence[str]) -> tuple[Any, ...]:
    """What a worker's row says and no beat changes: the first parameters of ``register_worker``."""
    shown = [
        {
            "name": lane.name,
            "concurrency": lane.concurrency,
            "queue": lane.queue_name,
            "priorities": lane.priority_range,
        }
        for lane in lanes
    ]
    return (
        worker_id,
        socket.gethostname(),
        os.getpid(),
        version("backfill"),
        msgspec.json.encode(shown).decode(),
        sorted(tasks),
    )
