"""What an enqueue came to."""

from dataclasses import dataclass

from backfill.errors import AlreadyInProgressError
from backfill.model.job import Job


@dataclass(frozen=True, slots=True)
class Enqueued:
    """The job is in the queue, new or changed.

    Attributes:
        job: The job as it now is.
    """

    job: Job

    def unwrap(self) -> Job:
        """Return the job."""
        return self.job

    @property
    def is_enqueued(self) -> bool:
        """True: the job is in the queue."""
        return True

    @property
    def is_already_in_progress(self) -> bool:
        """False: nothing was in the way."""
        return False

    @property
    def conflicting_job_key(self) -> None:
        """None: no key was in the way."""
        return


@dataclass(frozen=True, slots=True)
class AlreadyInProgress:
    """Nothing was added: the key's job is running, and the mode is `unsafe_dedupe`.

    Attributes:
        job_key: The key.
    """

    job_key: str

    @property
    def job(self) -> None:
        """None: there is no new job."""
        return

    def unwrap(self) -> Job:
        """Raise, since there is no job.

        Raises:
            AlreadyInProgressError: Always.
        """
        raise AlreadyInProgressError(self.job_key)

    @property
    def is_enqueued(self) -> bool:
        """False: nothing was added."""
        return False

    @property
    def is_already_in_progress(self) -> bool:
        """True: the key's job is running."""
        return True

    @property
    def conflicting_job_key(self) -> str:
        """The key of the running job."""
        return self.job_key


EnqueueOutcome = Enqueued | AlreadyInProgress
"""What an enqueue returns; `match` on it, or `unwrap()` it."""
