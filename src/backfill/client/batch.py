"""Many jobs, checked and arranged for as few statements as possible.

Jobs without keys are cut into chunks; what jobs of a chunk have in common is kept once, as a ``Kind``. Jobs with keys are
arranged by mode, then by queue and key, so that two batches lock the same rows in the same order.
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

CHUNK_JOBS: Final = 5_000
CHUNK_CHARACTERS: Final = 16_000_000  # PostgreSQL takes no message over 1 GB, and both sides hold it in memory


@dataclass(slots=True)
class Chunk:
    """Jobs without keys for one statement; the four lists of jobs run in parallel.

    Attributes:
        kinds: The kinds that occur.
        numbers: For each job its kind, from 1.
        payloads: For each job its payload.
        positions: For each job its place in the batch, from 0.
    """

    kinds: list[Kind] = field(default_factory=list)
    numbers: list[int] = field(default_factory=list)
    payloads: list[str] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)

    def args(self, notification: str | None) -> tuple[Any, ...]:
        """The arguments of ``insert_jobs``."""
        columns = _columns((kind.task, kind.queue, *_settings(kind)) for kind in self.kinds)
        return (*columns, self.numbers, self.payloads, notification)

    def store(self, row: asyncpg.Record, outcomes: list[EnqueueOutcome | None]) -> None:
        """Put the outcomes of ``insert_jobs`` where they belong."""
        created_at, kinds = row["created_at"], self.kinds
        for job_id, number, payload, position in zip(
            row["ids"], self.numbers, self.payloads, self.positions, strict=True
        ):
            outcomes[position] = Enqueued(kinds[number - 1].job(job_id, payload, created_at))


@dataclass(frozen=True, slots=True)
class Keyed:
    """A job with a key, and its place in the batch."""

    position: int
    kind: Kind
    payload: str

    def store(self, row: asyncpg.Record, outcomes: list[EnqueueOutcome | None]) -> None:
        """Put the outcome where it belongs."""
        outcomes[self.position] = added(self.kind, self.payload, row)


@dataclass(slots=True)
class Batch:
    """The jobs of one ``enqueue_many``.

    Attributes:
        size: How many they are.
        chunks: Those without a key.
        keyed: Those with a key, by mode.
    """

    size: int
    chunks: list[Chunk]
    keyed: dict[JobKeyMode, list[Keyed]]

    def kinds(self) -> list[Kind]:
        """All kinds, those of the keyed jobs included."""
        plain = [kind for chunk in self.chunks for kind in chunk.kinds]
        return plain + [job.kind for jobs in self.keyed.values() for job in jobs]


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
            task, payload, spec = _parts(job)
            same = (task if isinstance(task, str) else id(task), id(spec))
            if same not in known:
                known[same] = (kind_of(task, spec), task, spec)
            kind = known[same][0]
            encoded = payload_text(payload)
        except InvalidJob as error:
            raise InvalidJob(f"job {position + 1} of the batch: {error}; no job was added") from error
        if kind.key is None:
            chunks.add(position, kind, encoded)
        elif kind.key in keyed:
            raise InvalidJob(
                f"jobs {keyed[kind.key].position + 1} and {position + 1} of the batch have the same job_key {kind.key!r};"
                " no job was added",
            )
        else:
            keyed[kind.key] = Keyed(position, kind, encoded)
    return Batch(position + 1, chunks.finished, _by_mode(keyed.values()))


def keyed_args(jobs: Iterable[Keyed]) -> tuple[Any, ...]:
    """The arguments that ``add_keyed_jobs`` and ``add_deduped_jobs`` have in common."""
    kinds = [(job.kind, job.payload) for job in jobs]
    return _columns((kind.task, payload, kind.queue, *_settings(kind), kind.key) for kind, payload in kinds)


def pieces(jobs: list[Keyed]) -> Iterator[dict[str, Keyed]]:
    """The jobs by key, in their order, as many at a time as a statement takes."""
    piece: dict[str, Keyed] = {}
    characters = 0
    for job in jobs:
        if piece and (len(piece) >= CHUNK_JOBS or characters + len(job.payload) > CHUNK_CHARACTERS):
            yield piece
            piece, characters = {}, 0
        piece[str(job.kind.key)] = job
        characters += len(job.payload)
    if piece:
        yield piece


class _Chunks:
    """Puts jobs into chunks, in their order."""

    __slots__ = ("_numbers", "_room", "finished")

    def __init__(self) -> None:
        self.finished: list[Chunk] = []
        self._numbers: dict[int, int] = {}  # by the kind's identity: kinds are shared, and comparing them costs more
        self._room = 0

    def add(self, position: int, kind: Kind, payload: str) -> None:
        self._room -= len(payload)
        if self._room < 0 or len(self.finished[-1].payloads) >= CHUNK_JOBS:
            self.finished.append(Chunk())
            self._numbers = {}
            self._room = CHUNK_CHARACTERS - len(payload)
        chunk = self.finished[-1]
        number = self._numbers.get(id(kind))
        if number is None:
            chunk.kinds.append(kind)
            number = self._numbers[id(kind)] = len(chunk.kinds)
        chunk.numbers.append(number)
        chunk.payloads.append(payload)
        chunk.positions.append(position)


def _parts(job: Any) -> tuple[TaskName, Any, JobSpec | None]:
    """Task, payload and spec of one job of a batch."""
    if not isinstance(job, tuple | list) or not 1 <= len(job) <= 3:
        raise InvalidJob(f"write (task, payload, spec), not {job!r:.100}")
    payload = job[1] if len(job) > 1 else msgspec.UNSET
    return job[0], payload, job[2] if len(job) > 2 else None


def _settings(kind: Kind) -> tuple[Any, ...]:
    return kind.priority, kind.run_at, kind.max_attempts, kind.flags_json


def _columns(rows: Iterable[tuple[Any, ...]]) -> tuple[list[Any], ...]:
    return tuple(list(column) for column in zip(*rows, strict=True))


def _by_mode(jobs: Iterable[Keyed]) -> dict[JobKeyMode, list[Keyed]]:
    by_mode: dict[JobKeyMode, list[Keyed]] = {}
    for job in sorted(jobs, key=lambda job: (job.kind.queue or "", job.kind.key or "")):
        by_mode.setdefault(job.kind.mode, []).append(job)
    return by_mode
