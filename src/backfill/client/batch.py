"""Many jobs, checked and arranged for as few statements as possible.

Jobs without keys are cut into chunks; what jobs of a chunk have in common is kept once, as a ``Kind``. Jobs with keys are
sorted by key, so that two batches come to the same rows in the same order.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

import asyncpg
import msgspec

from backfill.client.enqueue import added
from backfill.client.rows import Kind, TaskName, kind_of, payload_text
from backfill.errors import InvalidJob
from backfill.model import Enqueued, EnqueueOutcome, JobKeyMode, JobSpec

JobTuple: TypeAlias = tuple[TaskName] | tuple[TaskName, Any] | tuple[TaskName, Any, JobSpec | None]
"""A job of a batch: task, payload (left out: ``{}``) and spec (left out: the defaults)."""

# How much goes into one statement. PostgreSQL takes no message over 1 GB, and both sides hold it in memory.
CHUNK_JOBS: Final = 5_000
CHUNK_CHARACTERS: Final = 16_000_000
_JOB_CHARACTERS: Final = CHUNK_CHARACTERS // CHUNK_JOBS  # what a job counts for at least


@dataclass(slots=True)
class Chunk:
    """Jobs without keys for one statement.

    Attributes:
        kinds: The kinds that occur.
        jobs: Of each job the number of its kind (from 1), its payload, and its place in the batch (from 0).
    """

    kinds: list[Kind] = field(default_factory=list)
    jobs: list[tuple[int, str, int]] = field(default_factory=list)

    def args(self, notification: str | None) -> tuple[Any, ...]:
        """The arguments of ``insert_jobs``."""
        kinds = _columns((kind.task, kind.queue, *_settings(kind)) for kind in self.kinds)
        numbers, payloads, _ = zip(*self.jobs, strict=True)
        return (*kinds, numbers if len(self.kinds) > 1 else (1,), payloads, notification)

    def store(self, row: asyncpg.Record, outcomes: list[EnqueueOutcome | None]) -> None:
        """Put the outcomes of ``insert_jobs`` where they belong."""
        patterns = [kind.job(0, "", row["created_at"]) for kind in self.kinds]
        for job_id, (number, payload, position) in zip(row["ids"], self.jobs, strict=True):
            job = msgspec.structs.replace(patterns[number - 1], id=job_id, payload_text=payload)
            outcomes[position] = Enqueued(job)


@dataclass(frozen=True, slots=True)
class Keyed:
    """A job with a key, and its place in the batch."""

    position: int
    kind: Kind
    payload: str

    def store(self, row: asyncpg.Record, outcomes: list[EnqueueOutcome | None], *, at_once: bool) -> None:
        """Put the outcome where it belongs: a row of ``add_keyed_jobs`` (``at_once``) or of ``add_jobs_by_mode``."""
        if at_once:
            outcomes[self.position] = Enqueued(self.kind.keyed_job(row, self.payload))
        else:
            outcomes[self.position] = added(self.kind, self.payload, row)


@dataclass(slots=True)
class Batch:
    """The jobs of one ``enqueue_many``.

    Attributes:
        size: How many they are.
        chunks: Those without a key.
        keyed: Those with a key, in the order of the keys.
    """

    size: int
    chunks: list[Chunk]
    keyed: list[Keyed]

    def kinds(self) -> list[Kind]:
        """All kinds, those of the keyed jobs included."""
        return [kind for chunk in self.chunks for kind in chunk.kinds] + [job.kind for job in self.keyed]

    def mode(self) -> JobKeyMode | None:
        """The mode that all keyed jobs have; None when they have several."""
        modes = {job.kind.mode for job in self.keyed}
        return modes.pop() if len(modes) == 1 else None


def prepare(jobs: Iterable[JobTuple]) -> Batch:
    """Check all jobs and arrange them; nothing is sent.

    Raises:
        InvalidJob: A job cannot be, with its place in the batch; or two have the same key.
        ConfigurationError: A TaskHandler class is not complete.
    """
    # By identity, and with what has it, which lives as long as this; comparing specs would cost more than all the rest.
    known: dict[tuple[object, int], tuple[Kind, object, object]] = {}
    chunks = _Chunks()
    keyed: dict[str, Keyed] = {}
    position = -1
    for position, job in enumerate(jobs):
        try:
            task, payload, spec = parts(job)
            same = (task if isinstance(task, str) else id(task), id(spec))
            found = known.get(same)
            if found is None:
                found = known[same] = (kind_of(task, spec), task, spec)
            kind = found[0]
            encoded = payload_text(payload, kind)
        except InvalidJob as error:
            raise refused(position, error) from error
        if kind.key is None:
            chunks.add(position, kind, encoded)
        elif kind.key in keyed:
            raise InvalidJob(
                f"jobs {keyed[kind.key].position + 1} and {position + 1} of the batch have the same job_key {kind.key!r};"
                " no job was added",
            )
        else:
            keyed[kind.key] = Keyed(position, kind, encoded)
    return Batch(position + 1, chunks.finished, [keyed[key] for key in sorted(keyed)])


def keyed_args(jobs: Iterable[Keyed]) -> tuple[Any, ...]:
    """The arguments that ``add_keyed_jobs`` and ``add_jobs_by_mode`` have in common."""
    rows = ((job.kind.task, job.payload, job.kind.queue, *_settings(job.kind), job.kind.key) for job in jobs)
    tasks, payloads, queues, priorities, run_ats, most_attempts, flags, keys = _columns(rows)
    return (
        _once(tasks),
        payloads,
        _if_any(queues),
        _once(priorities),
        _if_any(run_ats),
        _once(most_attempts),
        _if_any(flags),
        keys,
    )


def pieces(jobs: list[Keyed]) -> Iterator[dict[str, Keyed]]:
    """The jobs by key, in their order, as many at a time as a statement takes."""
    piece: dict[str, Keyed] = {}
    room = CHUNK_CHARACTERS
    for job in jobs:
        taken = max(len(job.payload), _JOB_CHARACTERS)
        room -= taken
        if piece and room < 0:
            yield piece
            piece, room = {}, CHUNK_CHARACTERS - taken
        piece[str(job.kind.key)] = job
    if piece:
        yield piece


class _Chunks:
    """Puts jobs into chunks, in their order."""

    __slots__ = ("_chunk", "_numbers", "_room", "finished")

    def __init__(self) -> None:
        self.finished: list[Chunk] = []
        self._chunk = Chunk()
        self._numbers: dict[int, int] = {}  # by the kind's identity: kinds are shared, and comparing them costs more
        self._room = 0

    def add(self, position: int, kind: Kind, payload: str) -> None:
        taken = max(len(payload), _JOB_CHARACTERS)
        self._room -= taken
        if self._room < 0:
            self._chunk = Chunk()
            self.finished.append(self._chunk)
            self._numbers = {}
            self._room = CHUNK_CHARACTERS - taken
        number = self._numbers.get(id(kind))
        if number is None:
            self._chunk.kinds.append(kind)
            number = self._numbers[id(kind)] = len(self._chunk.kinds)
        self._chunk.jobs.append((number, payload, position))


def parts(job: Any) -> tuple[TaskName, Any, JobSpec | None]:
    """Task, payload and spec of one job of a batch that may leave some out."""
    if not isinstance(job, tuple) or not 1 <= len(job) <= 3:
        raise InvalidJob(f"write (task, payload, spec), not {job!r:.100}")
    return (*job, *(msgspec.UNSET, None)[len(job) - 1 :])


def refused(position: int, error: InvalidJob) -> InvalidJob:
    """The error for the job at that place of a batch, counted from 0."""
    return InvalidJob(f"job {position + 1} of the batch: {error}; no job was added")


def _settings(kind: Kind) -> tuple[Any, ...]:
    return kind.priority, kind.run_at, kind.max_attempts, kind.flags_json


def _once(column: list[Any]) -> list[Any]:
    """The column, or its value alone if all have the same: the driver takes its time over each value."""
    return column[:1] if column.count(column[0]) == len(column) else column


def _if_any(column: list[Any]) -> list[Any]:
    """The column, or nothing if it holds nothing."""
    return [] if column.count(None) == len(column) else column


def _columns(rows: Iterable[tuple[Any, ...]]) -> tuple[list[Any], ...]:
    return tuple(list(column) for column in zip(*rows, strict=True))
