"""What the heartbeat tells of a worker, what it asks it, and what it tells it."""

import os
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import msgspec

from backfill.worker.config import QueueConfig

if TYPE_CHECKING:
    from backfill.worker.claimed import Claimed


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


class Jobs(Protocol):
    """What the heartbeat's thread asks the worker."""

    def sample(self) -> Sample:
        """What a beat tells."""
        ...

    def held(self) -> Sequence["Claimed"]:
        """All claimed jobs."""
        ...

    def running(self) -> Sequence["Claimed"]:
        """Those of them that run."""
        ...


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
