"""Every error that backfill raises by name.

Two families under `BackfillError`: what the library itself reports, and `WorkerError`, which handlers raise to say
whether another attempt can help. The arguments of an error are kept as attributes and in `args`, so errors can be
pickled and compared by what they are about, not by their words.
"""

from dataclasses import dataclass
from typing import ClassVar, Final


class BackfillError(Exception):
    """The base of every error of this library."""


class ConfigurationError(BackfillError):
    """A setting, an environment variable or a handler's definition that cannot work; the message names it."""


class SchemaError(BackfillError):
    """The database schema is missing, too old, too new, or not readable by this role."""


class BreakingMigrationError(SchemaError):
    """While a worker ran, its schema was taken to a revision that this version cannot work with; it stopped in order.

    Attributes:
        revision: The revision.
    """

    def __init__(self, schema: str, revision: int, newest: int) -> None:
        super().__init__(
            f"schema {schema!r} was taken to the breaking revision {revision} of Graphile Worker, and this backfill knows up to"
            f" {newest}, so the worker has stopped: upgrade backfill",
        )
        self.revision = revision


class DatabaseError(BackfillError):
    """The database refused a statement or could not be reached.

    Parameters:
        message: What happened, and what to do.
        in_doubt: Whether the statement that failed may have been carried out all the same, its answer being lost.

    Attributes:
        in_doubt: As given. When false, that statement was surely not carried out.
    """

    def __init__(self, message: str, *, in_doubt: bool = False) -> None:
        super().__init__(message)
        self.in_doubt = in_doubt


@dataclass(frozen=True, slots=True)
class CrontabProblem:
    """One thing that is wrong with a crontab or a cron item.

    Attributes:
        expected: What should stand there.
        found: What does; empty when the other words say it.
        line: The line, counted from 1; None for an item that was made in code.
        column: The character of the line, counted from 1; None with the line.
        length: How many characters it is about.
        text: The line itself.
    """

    expected: str
    found: str
    line: int | None = None
    column: int | None = None
    length: int = 1
    text: str = ""

    def __str__(self) -> str:
        said = f"expected {self.expected}, found {self.found}" if self.found else self.expected
        if self.line is None or self.column is None:
            return said
        start = max(0, self.column - 1 - 60)  # of a long line, what is around the place
        cut = self.text[start : start + 120].translate(_BLANKS).rstrip()
        marks = "^" * max(1, min(self.length, len(cut) - (self.column - 1 - start)))
        return f"line {self.line}, column {self.column}: {said}\n  {cut}\n  {' ' * (self.column - 1 - start)}{marks}"


_BLANKS: Final = dict.fromkeys((*range(32), 127), " ")


class CrontabError(BackfillError):
    """A crontab, or an item made in code, that cannot be; each wrong line is named with the place and what was expected.

    Parameters:
        problems: All that is wrong, in the order of the lines; of each line the first thing.
    """

    def __init__(self, *problems: CrontabProblem) -> None:
        super().__init__(*problems)
        self.problems = problems

    def __str__(self) -> str:
        if len(self.problems) == 1:
            only = self.problems[0]
            return f"bad cron item: {only}" if only.line is None else f"bad crontab: {only}"
        return f"bad crontab, {len(self.problems)} problems:\n" + "\n".join(map(str, self.problems))


class JobScheduleSkipped(BackfillError):  # noqa: N818 - a name of the public surface
    """A ``before_job_schedule`` hook kept a job from being added; nothing was written.

    Parameters:
        identifier: The task of the job.
    """

    def __init__(self, identifier: str) -> None:
        super().__init__(identifier)
        self.identifier = identifier

    def __str__(self) -> str:
        return f"a before_job_schedule hook skipped a job of {self.identifier!r}: nothing was added"


class JobScheduleFailed(BackfillError):  # noqa: N818 - a name of the public surface
    """A ``before_job_schedule`` hook refused a job, or raised; nothing was written.

    Parameters:
        identifier: The task of the job.
        message: Why.
    """

    def __init__(self, identifier: str, message: str) -> None:
        super().__init__(identifier, message)
        self.identifier = identifier
        self.message = message

    def __str__(self) -> str:
        return f"a before_job_schedule hook refused a job of {self.identifier!r}: {self.message}; nothing was added"


class InvalidJob(BackfillError, ValueError):  # noqa: N818 - a name of the public surface
    """A value of a job, a policy, a payload or a filter that was refused before anything was written."""


class DlqEntryNotFound(BackfillError):  # noqa: N818 - a name of the public surface
    """There is no such entry in the dead letter queue, or it is out: requeued, and not back.

    Parameters:
        entry_id: The id that was asked for.
        requeued_job_id: The job that the entry is out as; None when there is no entry.
    """

    def __init__(self, entry_id: int, requeued_job_id: int | None = None) -> None:
        super().__init__(entry_id, requeued_job_id)
        self.entry_id = entry_id
        self.requeued_job_id = requeued_job_id

    def __str__(self) -> str:
        if self.requeued_job_id is None:
            return f"the dead letter queue has no entry {self.entry_id}"
        return (
            f"DLQ entry {self.entry_id} is already requeued as job {self.requeued_job_id}; "
            "its success deletes the entry, its failure brings it back"
        )


class KeyInUse(BackfillError):  # noqa: N818 - a name of the public surface
    """A requeue was refused because a job with the same key is queued or running.

    Parameters:
        job_key: The key that both jobs have.
        job_id: The job that holds the key now, when it is known.
        entry_id: The DLQ entry that stays where it is, when there is one.
    """

    def __init__(self, job_key: str, job_id: int | None = None, entry_id: int | None = None) -> None:
        super().__init__(job_key, job_id, entry_id)
        self.job_key = job_key
        self.job_id = job_id
        self.entry_id = entry_id

    def __str__(self) -> str:
        holder = "another job" if self.job_id is None else f"job {self.job_id}"
        entry = "the job was not requeued" if self.entry_id is None else f"DLQ entry {self.entry_id} was not requeued"
        return (
            f"job key {self.job_key!r} is in use by {holder}, queued or running, so {entry}: "
            "wait for that job or remove it, or force the requeue to replace it"
        )


class AlreadyInProgressError(BackfillError):
    """`unwrap()` of an enqueue that added nothing: the key's job is running and the mode is `unsafe_dedupe`.

    Parameters:
        job_key: The key of the running job.
    """

    def __init__(self, job_key: str) -> None:
        super().__init__(job_key)
        self.job_key = job_key

    def __str__(self) -> str:
        return (
            f"no job was added: the job with key {self.job_key!r} is running and the key mode is unsafe_dedupe; "
            "use 'replace' or 'preserve_run_at' to have a successor queued"
        )


class WorkerError(BackfillError):
    """The base of the errors that handlers raise to say how a failure is to be treated.

    `is_retryable` decides: a retryable failure is tried again while attempts are left, any other goes to the dead
    letter queue at once. Raised itself, it is retryable. Subclasses of your own set `is_retryable` too.
    """

    is_retryable: ClassVar[bool] = True


class InvalidInput(WorkerError):  # noqa: N818 - a name of the public surface
    """The payload's values make no sense for this task; not retryable."""

    is_retryable = False


class MalformedData(WorkerError):  # noqa: N818 - a name of the public surface
    """Data that cannot be read, such as a payload that does not fit the handler's type; not retryable."""

    is_retryable = False


class Unauthorized(WorkerError):  # noqa: N818 - a name of the public surface
    """Credentials are missing or were refused; not retryable."""

    is_retryable = False


class Forbidden(WorkerError):  # noqa: N818 - a name of the public surface
    """The credentials are good, the action is not allowed; not retryable."""

    is_retryable = False


class ResourceNotFound(WorkerError):  # noqa: N818 - a name of the public surface
    """What the job is about does not exist; not retryable."""

    is_retryable = False


class ValidationFailed(WorkerError):  # noqa: N818 - a name of the public surface
    """A rule of the application refuses the job; not retryable."""

    is_retryable = False


class ConnectionTimeout(WorkerError):  # noqa: N818 - a name of the public surface
    """A service did not answer in time; retryable."""


class NetworkError(WorkerError):
    """The way to a service is broken; retryable."""


class ServiceUnavailable(WorkerError):  # noqa: N818 - a name of the public surface
    """A service answered that it cannot serve now; retryable."""


class RateLimitExceeded(WorkerError):  # noqa: N818 - a name of the public surface
    """A service refused because of too many requests; retryable."""


class TemporaryUnavailable(WorkerError):  # noqa: N818 - a name of the public surface
    """A resource is busy or locked for the moment; retryable."""


class JobFailed(WorkerError):  # noqa: N818 - a name of the public surface
    """The job failed for a reason that none of the others names; retryable."""


class ClaimLost(WorkerError):  # noqa: N818 - named like the others
    """The worker no longer holds the job: its lease ended, or the claim was taken away. What it did not do is done elsewhere."""
