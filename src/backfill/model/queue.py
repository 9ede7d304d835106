"""Queues: whether a job may run beside others."""

from dataclasses import dataclass
from typing import ClassVar, Self

from backfill.model.values import MAX_QUEUE_NAME, checked_text


@dataclass(frozen=True, slots=True)
class Queue:
    """Where a job waits: in parallel with all others, or one at a time under a name.

    Jobs of one serial queue never run at the same time, in the whole cluster.

    Attributes:
        name: The serial queue's name, of 1 to 128 characters without NUL; None is the parallel queue.
    """

    PARALLEL: ClassVar["Queue"]

    name: str | None = None

    def __post_init__(self) -> None:
        if self.name is not None:
            checked_text("queue name", self.name, MAX_QUEUE_NAME)

    @classmethod
    def parallel(cls) -> "Queue":
        """Return the queue without a name, whose jobs run concurrently."""
        return cls.PARALLEL

    @classmethod
    def serial(cls, name: str) -> Self:
        """Return the queue of that name, which runs one job at a time.

        Raises:
            InvalidJob: The name is empty, over 128 characters, or has a NUL character.
        """
        return cls(checked_text("queue name", name, MAX_QUEUE_NAME))

    @classmethod
    def serial_for(cls, entity: str, entity_id: object) -> Self:
        """Return the serial queue of one thing of the application, named `entity:entity_id`, as in `user:42`."""
        return cls.serial(f"{entity}:{entity_id}")

    @classmethod
    def dead_letter(cls) -> Self:
        """Return the serial queue named `dead_letter`."""
        return cls("dead_letter")

    @classmethod
    def coerce(cls, value: "Queue | str | None") -> "Queue":
        """Return a queue for a queue, for a serial queue's name, or for None, the parallel queue."""
        if value is None:
            return cls.PARALLEL
        return value if isinstance(value, Queue) else cls.serial(value)

    @property
    def is_parallel(self) -> bool:
        """Whether its jobs run concurrently."""
        return self.name is None

    @property
    def is_serial(self) -> bool:
        """Whether its jobs run one at a time."""
        return self.name is not None

    def __str__(self) -> str:
        return "parallel" if self.name is None else self.name


Queue.PARALLEL = Queue()
