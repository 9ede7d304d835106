"""CronItem: a job to be added at the times of a schedule."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any, Final
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import msgspec

from backfill.cron.fields import parse_pattern
from backfill.cron.match import CronPattern, CronSchedule, matches, never_runs, next_run, runs, whole_minute
from backfill.errors import CrontabError, CrontabProblem, InvalidJob
from backfill.model import JobKeyMode, Task, TaskHandler, checked_identifier, checked_int, encode_payload, options_of
from backfill.model.values import MAX_ATTEMPTS, MAX_JOB_KEY, MAX_QUEUE_NAME, checked_text

NO_TIME: Final = timedelta(0)
_PRIORITIES: Final = (-32768, 32767)
_MODES: Final = (JobKeyMode.REPLACE, JobKeyMode.PRESERVE_RUN_AT)


class MissedRuns(StrEnum):
    """What becomes of runs whose time passed while no worker could schedule them."""

    SKIP = "skip"
    """They are left out."""
    LATEST = "latest"
    """The latest of them is made up for; with a ``fill``, if it is no older than that."""
    ALL = "all"
    """Those that are no older than ``fill`` are made up for."""


@dataclass(frozen=True, slots=True, init=False)
class CronItem:
    """A job that is added each time its schedule is met; checked when it is made.

    Attributes:
        task: The task's identifier; a ``Task`` or a TaskHandler class may be given for it.
        schedule: The times: the five fields of a cron line, such as ``"0 4 * * mon-fri"``, kept as a ``CronPattern``; or a
            function that is given a ``CronMoment`` and says whether that minute is one.
        payload_text: The JSON text of the job's payload, an object; given as ``payload``. ``_cron`` is added to it.
        identifier: By what the database remembers the item, and by what a fleet's workers know that they mean the same one:
            unlike all others in it. By default the task's identifier.
        fill: How old a missed run may be to be made up for, in whole seconds; zero is Graphile Worker's default.
        missed: What becomes of missed runs. By default ``all`` if there is a ``fill``, else ``skip``, as in Graphile Worker.
        max_attempts: Runs in all of each job, 1 to 32767; None is 25, Graphile Worker's default.
        queue: The serial queue's name, or None.
        priority: -32768 to 32767; None is 0.
        job_key: A name under which only one job can wait: a run whose predecessor has not begun replaces it.
        job_key_mode: ``replace`` or ``preserve_run_at``; None is ``replace``.
        zone: The time zone whose wall clock the schedule means, as an IANA name (``Europe/Berlin``) or a ZoneInfo; None is UTC.

    Raises:
        CrontabError: A value cannot be; the message names it.
    """

    task: str
    schedule: CronSchedule
    payload_text: str
    identifier: str
    fill: timedelta
    missed: MissedRuns
    max_attempts: int | None
    queue: str | None
    priority: int | None
    job_key: str | None
    job_key_mode: JobKeyMode | None
    zone: ZoneInfo | None

    def __init__(
        self,
        task: str | Task[Any] | type[TaskHandler],
        schedule: str | CronSchedule,
        payload: object = msgspec.UNSET,
        *,
        identifier: str | None = None,
        fill: timedelta = NO_TIME,
        missed: MissedRuns | str | None = None,
        max_attempts: int | None = None,
        queue: str | None = None,
        priority: int | None = None,
        job_key: str | None = None,
        job_key_mode: JobKeyMode | str | None = None,
        zone: ZoneInfo | str | None = None,
    ) -> None:
        put = object.__setattr__  # the dataclass is frozen
        try:
            put(self, "task", checked_identifier(task if isinstance(task, str) else options_of(task).identifier))
            put(self, "schedule", _checked_schedule(schedule))
            put(self, "payload_text", _object_text(payload))
            put(self, "identifier", checked_text("identifier", self.task if identifier is None else identifier))
            put(self, "fill", _checked_fill(fill))
            put(self, "missed", _checked_missed(missed, self.fill))
            if max_attempts is not None:
                checked_int("max_attempts", max_attempts, 1, MAX_ATTEMPTS)
            put(self, "max_attempts", max_attempts)
            put(self, "queue", None if queue is None else checked_text("queue", queue, MAX_QUEUE_NAME))
            put(self, "priority", None if priority is None else int(checked_int("priority", priority, *_PRIORITIES)))
            put(self, "job_key", None if job_key is None else checked_text("job_key", job_key, MAX_JOB_KEY))
            put(self, "job_key_mode", _checked_mode(job_key_mode, self.job_key))
            put(self, "zone", zone_of(zone) if isinstance(zone, str) else zone)
        except InvalidJob as error:
            raise CrontabError(CrontabProblem(str(error), "")) from error

    @property
    def payload(self) -> dict[str, Any]:
        """The payload, without ``_cron``."""
        value: dict[str, Any] = msgspec.json.decode(self.payload_text)
        return value

    @property
    def never_runs(self) -> bool:
        """Whether there is no day on which it runs, as with 30 February; False for a function, which nobody can know."""
        return isinstance(self.schedule, CronPattern) and never_runs(self.schedule)

    def matches(self, time: datetime) -> bool:
        """Whether it runs in the minute that the time (aware) is in."""
        return matches(self.schedule, self.zone, whole_minute(time))

    def next_run(self, after: datetime) -> datetime | None:
        """The first run after the minute that a time (aware) is in, in UTC.

        Returns:
            None when there is none; for a function, when there is none within 32 days.
        """
        return next_run(self.schedule, self.zone, whole_minute(after))

    def runs(self, after: datetime, until: datetime) -> Iterator[datetime]:
        """The runs after the minute that a time is in, up to and including the minute that another is in, in UTC."""
        return runs(self.schedule, self.zone, whole_minute(after), whole_minute(until))

    def job_payload(self, tick: datetime, *, backfilled: bool) -> str:
        """The JSON text of the payload of the job of one run: the item's own, and ``_cron`` as Graphile Worker makes it."""
        ts = tick.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        return encode_payload({**self.payload, "_cron": {"ts": ts, "backfilled": backfilled}})


def zone_of(name: str) -> ZoneInfo:
    """The time zone of an IANA name.

    Raises:
        InvalidJob: There is none of that name on this machine.
    """
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise InvalidJob(
            f"zone must be an IANA name of a time zone, such as Europe/Berlin, not {name!r}"
            " (a machine without a time zone database gets one by: pip install tzdata)"
        ) from error


def _checked_schedule(schedule: Any) -> CronSchedule:
    if isinstance(schedule, str):
        return parse_pattern(schedule)
    if isinstance(schedule, CronPattern) or callable(schedule):
        return schedule  # type: ignore[no-any-return]  # a function's type cannot be checked
    raise InvalidJob(f"schedule must be the five fields of a cron line or a function of a CronMoment, not {schedule!r}")


def _object_text(payload: object) -> str:
    text = "{}" if payload is msgspec.UNSET else encode_payload(payload)
    if not text.startswith("{"):
        raise InvalidJob(f"payload must be a JSON object, as `_cron` is added to it, not {text:.60}")
    return text


def _checked_fill(fill: object) -> timedelta:
    if not isinstance(fill, timedelta):
        raise InvalidJob(f"fill must be a timedelta, not {fill!r} ({type(fill).__name__})")
    if fill < NO_TIME or fill.microseconds:
        raise InvalidJob(f"fill must be zero or more whole seconds, not {fill}")
    return fill


def _checked_missed(missed: str | None, fill: timedelta) -> MissedRuns:
    if missed is None:
        return MissedRuns.ALL if fill else MissedRuns.SKIP
    try:
        found = MissedRuns(missed)
    except ValueError as error:
        raise InvalidJob(f"missed must be 'skip', 'latest' or 'all', not {missed!r}") from error
    if found is MissedRuns.ALL and not fill:
        raise InvalidJob("missed 'all' needs a fill, which says how old a run may be to be made up for")
    if found is MissedRuns.SKIP and fill:
        raise InvalidJob("missed 'skip' and a fill exclude each other: a fill is for making up for missed runs")
    return found


def _checked_mode(mode: str | None, job_key: str | None) -> JobKeyMode | None:
    if mode is None:
        return None if job_key is None else JobKeyMode.REPLACE
    if mode not in _MODES:
        raise InvalidJob(f"job_key_mode must be 'replace' or 'preserve_run_at' for a cron item, not {mode!r}")
    return JobKeyMode(mode)
