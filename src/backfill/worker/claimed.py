"""A claimed job on its way through the worker, and how its run ended."""

import re
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Final

import asyncpg

from backfill.db import moment
from backfill.model import Extras, Job, decode_flags_text, has_extras

if TYPE_CHECKING:
    from backfill.worker.handler import Handler
    from backfill.worker.lane import Lane
    from backfill.worker.lease import Fence


_ARRAY: Final = re.compile(r"\s*\[")


class Claimed:
    """A job that this process has claimed: the row as the claim gave it, and the token that the claim wrote into it.

    Only what every job needs is read here; the rest waits in the row until somebody asks.

    Attributes:
        id: The job's id.
        token: The claim's token: what every write that ends this run must find in the row.
        lane: The lane that it was claimed for.
        handler: What runs it.
        row: The claim's row.
        claimed_at: Monotonic seconds.
        queue_id: Its queue's id; None for a job without a queue.
        keyed: Whether it had a key when it was claimed.
        priority: Its priority.
        due: Its run_at, as the number for ``moment``.
        fence: The worker's lease when it was claimed.
        requeued: Whether it may be out of the dead letter queue: its flag says so, or it has a key, and whoever added the job
            again under its key has dropped the flag.
        released: Whether its row has been released, and only its queue has not.
        cancel_requested: Whether its handler should end.
        seconds: How long its handler took; set when its run has ended.
    """

    seconds: float

    __slots__ = (
        "_extras",
        "cancel_requested",
        "claimed_at",
        "due",
        "fence",
        "handler",
        "id",
        "keyed",
        "lane",
        "priority",
        "queue_id",
        "released",
        "requeued",
        "row",
        "seconds",
        "token",
    )

    def __init__(
        self, row: asyncpg.Record, token: str, lane: "Lane", handler: "Handler", *, claimed_at: float, fence: "Fence"
    ) -> None:
        self.id: int = row[0]
        self.queue_id: int | None = row[2]
        self.keyed = row[3] is not None
        self.priority: int = row[6]
        self.due: int = row[7]
        self.row = row
        self.token = token
        self.lane = lane
        self.handler = handler
        self.claimed_at = claimed_at
        self.fence = fence
        self.released = False
        self.cancel_requested = False
        self._extras: Extras | None = None
        self.requeued = self.keyed or (has_extras(row[4]) and self.extras.dlq)

    @property
    def extras(self) -> Extras:
        """What the job's flags say about retries and time limits."""
        if self._extras is None:
            self._extras = decode_flags_text(self.row[4])[1]
        return self._extras

    @property
    def adds_up(self) -> bool:
        """Whether it is an array under a key: what is added under the key while it runs then comes on top of it."""
        return self.keyed and _ARRAY.match(self.row[8]) is not None

    @property
    def is_suspect(self) -> bool:
        """Whether a worker has died with it in its hands."""
        return has_extras(self.row[4]) and self.extras.crashes > 0

    @property
    def locked_at(self) -> datetime:
        """When it was claimed, by the database's clock."""
        return moment(self.row["locked_at"])

    @property
    def attempt(self) -> int:
        """Which run this is, from 1."""
        attempts: int = self.row["attempts"]
        return attempts

    def job(self) -> Job:
        """The job as a value, its payload decoded."""
        row = self.row
        flags, extras = decode_flags_text(row["flags"])
        return Job(
            id=self.id,
            task_identifier=self.handler.identifier,
            queue_name=row["queue_name"],
            payload_text=row["payload"],
            priority=row["priority"],
            run_at=moment(row["run_at"]),
            attempts=row["attempts"],
            max_attempts=row["max_attempts"],
            last_error=row["last_error"],
            created_at=moment(row["created_at"]),
            updated_at=moment(row["updated_at"]),
            key=row["key"],
            revision=row["revision"],
            locked_at=self.locked_at,
            locked_by=self.token,
            flags=flags,
            extras=extras,
        )


@dataclass(frozen=True, slots=True)
class Failure:
    """A run that failed.

    Attributes:
        message: For ``last_error`` and the log: the error's type and text.
        detail: For the dead letter: a JSON object with type, message, traceback and more.
        retryable: Whether trying again may help.
        delay: Seconds until the next try, if there is one.
        payload: The JSON that the payload becomes: what of a batch is left to do. None leaves it as it is.
        interrupted: Whether it was cut short by a stop, and a hook wants that to count as a failure.
    """

    message: str
    detail: str
    retryable: bool
    delay: float
    payload: str | None = None
    interrupted: bool = False


@dataclass(frozen=True, slots=True)
class HandBack:
    """A run that was not begun, or was cut short by a stop: the attempt does not count.

    Attributes:
        delay: Seconds before it may run again; 0 leaves its time as it was.
        interrupted: Whether it was begun, and cut short by a stop.
        run_at: When it is to run, if a hook has said so.
        attempts: How many attempts then count, if a hook has said so.
    """

    delay: float = 0.0
    interrupted: bool = False
    run_at: datetime | None = None
    attempts: int | None = None


@dataclass(frozen=True, slots=True)
class Leave:
    """A run that was cut short, and a hook has said to leave the job as it is: locked."""


# None = it ended well.
Outcome = Failure | HandBack | Leave | None
