"""What a worker is told: the lanes, the intervals, where the database is. From code, or from the environment."""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final, Self

from backfill.db import DEFAULT_SCHEMA, check_schema_name
from backfill.errors import ConfigurationError
from backfill.worker.forbidden import ForbiddenFlags, checked_forbidden
from backfill.worker.lease import LEAST

LOWEST_PRIORITY: Final = -32768
HIGHEST_PRIORITY: Final = 32767
DEAD_LETTER_QUEUE: Final = "dead_letter"
_MAX_CONCURRENCY: Final = 10_000
_LONGEST_LEASE: Final = 86_400.0  # seconds
_OPTIONAL_SPANS: Final = (
    "dlq_processor_interval",
    "stale_lock_cleanup_interval",
    "stale_queue_lock_timeout",
    "stale_job_lock_timeout",
)
_MOST_DIGITS: Final = 9  # of a number in the environment: milliseconds for eleven days, seconds for thirty years


@dataclass(frozen=True, slots=True)
class QueueConfig:
    """One lane of a worker: so many slots, for the jobs of one serial queue or of a range of priorities.

    A job belongs to the first lane that matches it, lanes of a queue before lanes of priorities. The slots of a lane run
    nothing else, so fast work keeps its slots however much bulk work waits.

    Attributes:
        name: What logs and views call the lane.
        concurrency: Slots: how many of its jobs run at once, 1 to 10,000.
        queue_name: The serial queue whose jobs it runs; None for a lane of priorities.
        priority_range: Lowest and highest priority it runs, both included; None for all.

    Raises:
        ConfigurationError: A value is out of its range, or both a queue and a range are given.
    """

    name: str
    concurrency: int
    queue_name: str | None = None
    priority_range: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        if not self.name:
            raise ConfigurationError("a lane needs a name")
        if type(self.concurrency) is not int or not 1 <= self.concurrency <= _MAX_CONCURRENCY:
            raise ConfigurationError(
                f"lane {self.name}: concurrency {self.concurrency!r} is not in 1..{_MAX_CONCURRENCY}"
            )
        if self.priority_range is not None:
            low, high = self.priority_range
            if self.queue_name is not None:
                raise ConfigurationError(f"lane {self.name}: give a queue or a range of priorities, not both")
            if not LOWEST_PRIORITY <= low <= high <= HIGHEST_PRIORITY:
                raise ConfigurationError(
                    f"lane {self.name}: priorities {low}..{high} must go upwards within {LOWEST_PRIORITY}..{HIGHEST_PRIORITY}"
                )

    @classmethod
    def default_queue(cls, concurrency: int = 10) -> Self:
        """A lane for everything that no other lane runs."""
        return cls("default", concurrency)

    @classmethod
    def named_queue(cls, queue_name: str, concurrency: int = 1) -> Self:
        """A lane for one serial queue, whose jobs run one at a time in the whole cluster whatever the concurrency is."""
        return cls(queue_name, concurrency, queue_name=queue_name)

    @classmethod
    def priority_queue(cls, name: str, concurrency: int, lowest: int, highest: int) -> Self:
        """A lane for the priorities from ``lowest`` to ``highest``, both included. Lower numbers are more urgent."""
        return cls(name, concurrency, priority_range=(lowest, highest))

    @property
    def pieces(self) -> tuple[int, int]:
        """Lowest and highest priority of the lane."""
        return self.priority_range or (LOWEST_PRIORITY, HIGHEST_PRIORITY)


DEAD_LETTER_LANE: Final = QueueConfig.named_queue(DEAD_LETTER_QUEUE, 2)  # as the environment has it by default


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkerConfig:
    """How a worker runs. Reads no environment; ``from_env`` does.

    Attributes:
        database_url: Where the database is, ``postgresql://…``.
        listen_url: Another way to the same database, to listen at; None = ``database_url``. For when that leads through a
            connection pooler, which does not carry notifications.
        schema: The schema that holds the jobs.
        queue_configs: The lanes; their concurrencies add up.
        poll_interval: Time between looks at the database while notifications are not known to arrive. While they are,
            it looks every 2 s (or this, if longer).
        dlq_processor_interval: Time between scans for used-up jobs that other workers or crashes left; None turns the dead
            letter queue off: jobs that failed for good then stay in the queue, used up.
        stale_lock_cleanup_interval: Time between looks for old locks of Node and Rust workers; None = it does not look.
        stale_queue_lock_timeout: How old such a lock of a serial queue must be to be freed; None = over four hours.
        stale_job_lock_timeout: How old such a lock of a job must be; None = over four hours. With a shorter time a job of
            theirs that takes longer runs twice. Locks of backfill's own workers don't go by age.
        lease: How long the worker may be silent before others take its jobs over, at least 5 s. It says that it lives six times
            in that time.
        shutdown_timeout: How long a stop may take in all. The last five seconds (or half of it, if shorter) are for
            handlers that have to be cancelled.
        log_jobs: Log a line at INFO for each job that ends well.
        forbidden_flags: Jobs with one of these flags are left alone: names, or a function without parameters (``def`` or
            ``async def``) that is asked before each claim and gives names or None. It runs in the event loop.

    Raises:
        ConfigurationError: A value is out of its range; the message names it.
    """

    database_url: str
    schema: str = DEFAULT_SCHEMA
    queue_configs: Sequence[QueueConfig] = (QueueConfig("default", 10),)
    poll_interval: timedelta = timedelta(milliseconds=200)
    dlq_processor_interval: timedelta | None = timedelta(seconds=60)
    stale_lock_cleanup_interval: timedelta | None = timedelta(seconds=60)
    stale_queue_lock_timeout: timedelta | None = None
    stale_job_lock_timeout: timedelta | None = None
    lease: timedelta = timedelta(seconds=30)
    shutdown_timeout: timedelta = timedelta(seconds=30)
    log_jobs: bool = False
    listen_url: str | None = None
    forbidden_flags: ForbiddenFlags = None

    def __post_init__(self) -> None:
        if not self.database_url:
            raise ConfigurationError(
                "no database: give database_url, or set DATABASE_URL and use WorkerConfig.from_env()"
            )
        check_schema_name(self.schema)
        object.__setattr__(self, "queue_configs", tuple(self.queue_configs))
        if not self.queue_configs:
            raise ConfigurationError("queue_configs is empty: a worker without a lane runs nothing")
        for what, seen in (("name", [q.name for q in self.queue_configs]), ("queue", self._lane_queues())):
            twice = next((value for value in seen if seen.count(value) > 1), None)
            if twice is not None:
                raise ConfigurationError(f"two lanes have the {what} {twice!r}")
        for name in ("poll_interval", "shutdown_timeout"):
            _positive(name, getattr(self, name))
        if not LEAST <= self.lease.total_seconds() <= _LONGEST_LEASE:
            raise ConfigurationError(
                f"lease is {self.lease!r}: give a timedelta of {LEAST:g} to {_LONGEST_LEASE:g} seconds"
            )
        for name in _OPTIONAL_SPANS:
            span = getattr(self, name)
            if span is not None:
                _positive(name, span)
        object.__setattr__(self, "forbidden_flags", checked_forbidden(self.forbidden_flags))

    def _lane_queues(self) -> list[str]:
        return [lane.queue_name for lane in self.queue_configs if lane.queue_name is not None]

    @property
    def concurrency(self) -> int:
        """The slots of all lanes together."""
        return sum(lane.concurrency for lane in self.queue_configs)

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None, **overrides: Any) -> Self:
        """A configuration from environment variables.

        Read are ``DATABASE_URL``, ``BACKFILL_LISTEN_URL``, ``GRAPHILE_WORKER_SCHEMA``, ``FAST_QUEUE_CONCURRENCY`` (10, priorities below 0),
        ``BULK_QUEUE_CONCURRENCY`` (5, priorities from 0), ``DEAD_LETTER_QUEUE_CONCURRENCY`` (2, the serial queue
        ``dead_letter``; 0 = no such lane), ``POLL_INTERVAL_MS`` (200), ``SHUTDOWN_TIMEOUT_SECS`` (30), ``BACKFILL_LEASE_SECS`` (30),
        ``DLQ_PROCESSOR_INTERVAL_SECS`` (60; 0 = off), ``BACKFILL_STALE_LOCK_CLEANUP_INTERVAL_SECS`` (60; 0 = off),
        ``BACKFILL_STALE_QUEUE_LOCK_TIMEOUT_SECS`` and ``BACKFILL_STALE_JOB_LOCK_TIMEOUT_SECS`` (0 = over four hours) and ``BACKFILL_FORBIDDEN_FLAGS`` (names, with commas between). An
        unset or empty variable means its default.

        Args:
            environ: The variables; the process's own when None.
            overrides: Fields of WorkerConfig that come before the environment.

        Raises:
            ConfigurationError: A value does not parse (the message names variable and value), or a field is not valid.
        """
        env = _Environment(os.environ if environ is None else environ)
        values: dict[str, Any] = {
            "database_url": env.text("DATABASE_URL", ""),
            "schema": env.text("GRAPHILE_WORKER_SCHEMA", DEFAULT_SCHEMA),
            "listen_url": env.text("BACKFILL_LISTEN_URL", "") or None,
            "poll_interval": timedelta(milliseconds=env.number("POLL_INTERVAL_MS", 200, least=1)),
            "lease": timedelta(seconds=env.number("BACKFILL_LEASE_SECS", 30, least=int(LEAST))),
            "shutdown_timeout": timedelta(seconds=env.number("SHUTDOWN_TIMEOUT_SECS", 30, least=1)),
            "dlq_processor_interval": env.seconds("DLQ_PROCESSOR_INTERVAL_SECS", 60),
            "stale_lock_cleanup_interval": env.seconds("BACKFILL_STALE_LOCK_CLEANUP_INTERVAL_SECS", 60),
            "stale_queue_lock_timeout": env.seconds("BACKFILL_STALE_QUEUE_LOCK_TIMEOUT_SECS", 0),
            "stale_job_lock_timeout": env.seconds("BACKFILL_STALE_JOB_LOCK_TIMEOUT_SECS", 0),
            "forbidden_flags": env.names("BACKFILL_FORBIDDEN_FLAGS"),
        }
        if "queue_configs" not in overrides:
            values["queue_configs"] = env.lanes()
        return cls(**{**values, **overrides})

    def with_queue_configs(self, *lanes: QueueConfig) -> Self:
        """The same with other lanes."""
        return dataclasses.replace(self, queue_configs=lanes)

    def with_schema(self, schema: str) -> Self:
        """The same for another schema."""
        return dataclasses.replace(self, schema=schema)

    def with_poll_interval(self, interval: timedelta) -> Self:
        """The same with another poll interval."""
        return dataclasses.replace(self, poll_interval=interval)

    def with_dlq_processor_interval(self, interval: timedelta | None) -> Self:
        """The same with another interval of the scan for used-up jobs; None turns the dead letter queue off."""
        return dataclasses.replace(self, dlq_processor_interval=interval)

    def with_stale_lock_cleanup_interval(self, interval: timedelta | None) -> Self:
        """The same with another interval of the looks for old locks of Node and Rust workers; None turns them off."""
        return dataclasses.replace(self, stale_lock_cleanup_interval=interval)

    def with_stale_queue_lock_timeout(self, timeout: timedelta | None) -> Self:
        """The same with another age of stale locks of serial queues."""
        return dataclasses.replace(self, stale_queue_lock_timeout=timeout)

    def with_stale_job_lock_timeout(self, timeout: timedelta | None) -> Self:
        """The same with another age of stale locks of jobs."""
        return dataclasses.replace(self, stale_job_lock_timeout=timeout)

    def with_lease(self, lease: timedelta) -> Self:
        """The same with another lease."""
        return dataclasses.replace(self, lease=lease)

    def with_shutdown_timeout(self, timeout: timedelta) -> Self:
        """The same with another time for a stop."""
        return dataclasses.replace(self, shutdown_timeout=timeout)


class _Environment:
    """Typed access to environment variables; an error names the variable and its value."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = environ

    def text(self, name: str, default: str) -> str:
        value = self._environ.get(name, "")
        return value or default

    def number(self, name: str, default: int, *, least: int) -> int:
        value = self._environ.get(name, "").strip()
        if not value:
            return default
        if not value.isascii() or not value.isdigit() or len(value) > _MOST_DIGITS or int(value) < least:
            raise ConfigurationError(
                f"{name}={value!r:.50} is not a whole number of at least {least} and at most {_MOST_DIGITS} digits"
            )
        return int(value)

    def seconds(self, name: str, default: int) -> timedelta | None:
        number = self.number(name, default, least=0)
        return timedelta(seconds=number) if number else None

    def names(self, name: str) -> list[str] | None:
        found = [part.strip() for part in self._environ.get(name, "").split(",")]
        return [part for part in found if part] or None

    def lanes(self) -> list[QueueConfig]:
        lanes = [
            QueueConfig.priority_queue("fast", self.number("FAST_QUEUE_CONCURRENCY", 10, least=1), LOWEST_PRIORITY, -1),
            QueueConfig.priority_queue("bulk", self.number("BULK_QUEUE_CONCURRENCY", 5, least=1), 0, HIGHEST_PRIORITY),
        ]
        dead_letter = self.number("DEAD_LETTER_QUEUE_CONCURRENCY", DEAD_LETTER_LANE.concurrency, least=0)
        if dead_letter:
            lanes.append(QueueConfig.named_queue(DEAD_LETTER_QUEUE, dead_letter))
        return lanes


def _positive(name: str, value: timedelta) -> None:
    if value <= timedelta(0):
        raise ConfigurationError(f"{name} is {value!r}: give a timedelta above zero")
