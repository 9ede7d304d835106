"""Every error that backfill raises by name.

Two families under `BackfillError`: what the library itself reports, and `WorkerError`, which handlers raise to say
whether another attempt can help. The arguments of an error are kept as attributes and in `args`, so errors can be
pickled and compared by what they are about, not by their words.
"""

from typing import ClassVar


class BackfillError(Exception):
    """The base of every error of this library."""


class ConfigurationError(BackfillError):
    """A setting, an environment variable or a handler's definition that cannot work; the message names it."""


class SchemaError(BackfillError):
    """The database schema is missing, too old, too new, or not readable by this role."""


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


class CrontabError(BackfillError):
    """A crontab line that cannot be read; the message quotes it and says where."""


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
