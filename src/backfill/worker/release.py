"""Writing down how runs ended.

Outcomes collect while a flush is under way, and the next flush takes all of them, so that under load a statement carries
hundreds and an idle worker's job is released at once. A flush is at most one statement for each kind: completed, completed
and out of the dead letter queue, failed, handed back.

Each statement writes only rows that still carry the claim's token, and never waits for a row that somebody else has
locked. What becomes of an outcome:

* **released**: its row matched.
* **parked**: the row carries the token but somebody has it locked (a user's transaction that adds the key again, say). It
  stays here and is sent again, with back-off.
* **stale**: no row carries the token: the claim was taken away, or an earlier try of the flush was carried out although its
  reply was lost. There is nothing left to write; it is counted.
* **the connection is lost**: the whole flush is sent again once there is one. The token makes that harmless.
* **the database refuses the flush** (a trigger or a constraint of the user's): it is halved until the bad outcomes stand
  alone. A failure that even alone is refused is written without the dead letter: the job stays in the queue, used up and
  unlocked, and that is logged as an error.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Any, Final

import asyncpg

from backfill.db import DRIVER_ERRORS, is_connection_error, takes_no_writes
from backfill.errors import BackfillError, DatabaseError
from backfill.worker.claimed import Claimed, Failure, HandBack, Leave, Outcome
from backfill.worker.link import Link
from backfill.worker.teller import Settled, Teller

logger = logging.getLogger(__name__)

_BATCH: Final = 1000  # outcomes a statement carries at most
_PARKED_PAUSES: Final = (0.02, 0.05, 0.1, 0.25, 0.5, 1.0)  # seconds
# Conflicts of transactions, lack of memory or disk, orders of an operator, errors of the system; and: the server takes no
# writes for now, no lock within lock_timeout.
_PASSING_CLASSES: Final = frozenset({"40", "53", "57", "58"})
_PASSING_STATES: Final = frozenset({"25006", "55P03"})
_STUCK: Final = 5_000  # unreleased outcomes from which on claiming waits
_STATEMENTS: Final = {Failure: "release_failed", HandBack: "hand_back", Leave: "leave"}


class Releaser:
    """Collects outcomes and releases them in batches.

    Attributes:
        held: Every job this worker has claimed and not released, by id.
        ran: Runs that ended, hand-backs left out.
        stale: Outcomes that met no row with their token.
    """

    def __init__(
        self,
        link: Link,
        *,
        worker_id: str,
        bury: bool,
        clean_up: bool,
        log_jobs: bool,
        teller: Teller,
        on_released: Callable[[Sequence[Claimed]], None],
        on_retry: Callable[[float], None],
        on_stale: Callable[[], None],
        on_back: Callable[[], None],
    ) -> None:
        """Prepare it; ``run`` is its life.

        Args:
            link: The connection it writes through.
            worker_id: For the dead letters' ``created_by``.
            bury: Whether jobs that failed for good go to the dead letter queue.
            clean_up: Whether a requeued job that is done takes its dead letter with it.
            log_jobs: Log each completed job at INFO.
            teller: Tells hooks what was done.
            on_released: Called after jobs were released; with those of them whose queues became free.
            on_retry: Called with the seconds until a failed job is due again.
            on_stale: Called when outcomes met no row with their token: an earlier try of the same flush may have freed
                queues and set times for retries, without a reply that said so.
            on_back: Called after ``on_released`` when jobs were handed back, which may come before all that claims look at.
        """
        self.held: dict[int, Claimed] = {}
        self.ran = 0
        self.stale = 0
        self._link = link
        self._worker_id = worker_id
        self._bury = bury
        self._clean_up = clean_up
        self._log_jobs = log_jobs
        self._teller = teller
        self._on_released = on_released
        self._on_retry = on_retry
        self._on_stale = on_stale
        self._on_back = on_back
        self._settled: list[Settled] = []
        self._event = asyncio.Event()
        self._parked: list[Settled] = []
        self._parked_rounds = 0

    @property
    def is_stuck(self) -> bool:
        """Whether so much waits that claiming more would only add to it."""
        return len(self._settled) >= _STUCK or self._teller.is_behind

    def settle(self, job: Claimed, outcome: Outcome) -> None:
        """Take the outcome of a job; it is written by the next flush."""
        self._settled.append((job, outcome))
        if not self._event.is_set():
            self._event.set()

    async def run(self) -> None:
        """Flush whenever there are outcomes; until cancelled."""
        while True:
            await self._event.wait()
            self._event.clear()
            await self.flush()

    async def flush(self) -> None:
        """Release everything that has settled; returns when it is done. One flush at a time."""
        while self._settled:
            batch, self._settled = self._settled[:_BATCH], self._settled[_BATCH:]
            await self._release(batch)

    async def _release(self, batch: list[Settled]) -> None:
        left: list[Settled] = []
        groups = self._groups(batch)
        try:
            while groups:
                left += await self._release_first(groups)
        except BaseException:  # cancelled, or unforeseen: nothing is forgotten
            self._settled[:0] = [*left, *(settled for _, group in groups for settled in group)]
            self._event.set()
            raise
        if left:
            self._park(left)
        elif not self._parked:
            self._parked_rounds = 0

    def _groups(self, batch: Sequence[Settled]) -> list[tuple[str, list[Settled]]]:
        """The outcomes by the statement that writes them; ``leave`` is none.

        ``release_completed`` compares the jobs' tokens with all of the batch's, not each with its own: so it takes only jobs
        of which this worker has made no later claim.
        """
        groups: dict[str, list[Settled]] = {}
        held, clean_up = self.held, self._clean_up
        for settled in batch:
            job, outcome = settled
            if outcome is not None:
                name = _STATEMENTS[type(outcome)]
            elif (clean_up and job.requeued) or held.get(job.id) is not job:
                name = "release_completed_requeued"
            else:
                name = "release_completed"
            groups.setdefault(name, []).append(settled)
        return list(groups.items())

    async def _release_first(self, groups: list[tuple[str, list[Settled]]]) -> list[Settled]:
        """Send the first group and take it off the list, or halve it if it is refused; what to send again later is returned."""
        statement, group = groups[0]
        try:
            left = await self._send(statement, group)
        except (*DRIVER_ERRORS, BackfillError) as error:
            if is_connection_error(error) or takes_no_writes(error) or isinstance(error, BackfillError):
                logger.warning("cannot release %d jobs, will try again: %s", len(group), error)
                await self._link.pause()
                return []
            if len(group) > 1:
                half = len(group) // 2
                groups[:1] = [(statement, group[:half]), (statement, group[half:])]
                return []
            left = await self._refused(statement, group[0], error)
        del groups[0]
        return left

    async def _refused(self, statement: str, settled: Settled, error: Exception) -> list[Settled]:
        """One outcome that the database does not take: keep the job, without its dead letter if that was the reason."""
        job, outcome = settled
        if isinstance(outcome, Failure) and not _will_pass(error):
            logger.error(
                "job %d (%s) failed, and the database refused to take it into the dead letter queue: %s."
                " It stays in the queue, used up; after mending the cause, run process_failed_jobs",
                job.id,
                job.handler.identifier,
                error,
            )
            try:
                return await self._send(statement, [settled], bury=False)
            except (*DRIVER_ERRORS, BackfillError) as again:
                error = again
        logger.error("job %d (%s) cannot be released, will try again: %s", job.id, job.handler.identifier, error)
        return [settled]

    async def _send(self, statement: str, group: Sequence[Settled], *, bury: bool | None = None) -> list[Settled]:
        """Send one statement; what has to be sent again is returned."""
        if statement == "leave":
            for settled in group:
                self._forget(*settled)
            self._on_released(())
            return []
        args = _common(group)
        queues = len(args[0])
        if statement == "release_failed":
            return await self._send_failed(group, args, self._bury if bury is None else bury)
        if statement == "hand_back":
            backs = [outcome for _, outcome in group if isinstance(outcome, HandBack)]
            args += (
                [job.keyed for job, _ in group],
                [back.delay for back in backs],
                *_added_to(group),
                [back.run_at for back in backs],
                [back.attempts for back in backs],
            )
        say_which = self._teller.wants(statement)
        sent = (*args[:3], list(dict.fromkeys(args[3]))) if statement == "release_completed" else args
        row = (await self._link.fetch(statement, *sent, say_which))[0]
        if say_which:
            self._teller.released(group, row["ids"] or ())
        whole = (row["released"], row["freed"]) == (len(group), queues)
        left = await self._done(group, args, released=row["released"], whole=whole)
        if statement == "hand_back":
            self._on_back()
        return left

    async def _send_failed(self, group: Sequence[Settled], args: tuple[Any, ...], bury: bool) -> list[Settled]:
        failures = [outcome for _, outcome in group if isinstance(outcome, Failure)]
        rows = await self._link.fetch(
            "release_failed",
            *args,
            [job.keyed for job, _ in group],
            [failure.message for failure in failures],
            [failure.detail for failure in failures],
            [failure.retryable for failure in failures],
            [failure.delay for failure in failures],
            self._worker_id,
            bury,
            [failure.payload for failure in failures] if any(failure.payload for failure in failures) else None,
            *_added_to(group),
        )
        freed = rows[0]["freed"] if rows else 0
        verdicts = {row["job_id"]: row for row in rows if row["verdict"] != "refused"}
        for job, outcome in group:
            if job.id in verdicts and isinstance(outcome, Failure):
                self._report(job, outcome, verdicts[job.id])
        if verdicts and self._teller.wants("release_failed"):
            self._teller.failed(group, verdicts)
        whole = len(verdicts) == len(group) and freed == len(args[0])
        left = await self._done(group, args, released=len(verdicts), whole=whole)
        refused = {row["job_id"] for row in rows} - verdicts.keys()
        for settled in [settled for settled in left if settled[0].id in refused]:
            left.remove(settled)
            left += await self._refused(
                "release_failed", settled, DatabaseError("a trigger kept the row from being stored")
            )
        return left

    async def _done(
        self, group: Sequence[Settled], args: tuple[Any, ...], *, released: int, whole: bool
    ) -> list[Settled]:
        """Forget what was released or taken away; what is still ours, since somebody else has its row locked, is returned.

        Args:
            group: The outcomes that were sent.
            args: Their queues, jobs and tokens.
            released: How many jobs' rows were written.
            whole: Whether these were all jobs and all queues.
        """
        rows = [] if whole else await self._link.fetch("still_held", *args[:4])
        jobs = {row["job_id"] for row in rows if row["job_id"] is not None}
        queues = {row["queue_id"] for row in rows if row["queue_id"] is not None}
        stale = sum(not job.released for job, _ in group) - released - len(jobs)
        if stale > 0:
            self.stale += stale
            logger.info("%d of %d outcomes met no claim of theirs: released before, or taken away", stale, len(group))
        left: list[Settled] = []
        for job, outcome in group:
            job.released = job.id not in jobs
            if job.id in jobs or job.queue_id in queues:
                left.append((job, outcome))
            else:
                self._forget(job, outcome)
        self._on_released([job for job, _ in group if job.queue_id is not None and job.queue_id not in queues])
        if stale > 0:
            self._on_stale()
        return left

    def _forget(self, job: Claimed, outcome: Outcome) -> None:
        if self.held.get(job.id) is job:
            del self.held[job.id]
        if outcome is None or isinstance(outcome, Failure):
            self.ran += 1
        if self._log_jobs and outcome is None:
            logger.info("job %d (%s) done, attempt %d", job.id, job.handler.identifier, job.attempt, extra=_fields(job))

    def _report(self, job: Claimed, failure: Failure, row: asyncpg.Record) -> None:
        """Log a failed run, and let the worker know when it is due again."""
        fields = _fields(job)
        if row["verdict"] == "retry":
            self._on_retry(row["wait_seconds"])
            logger.warning(
                "job %d (%s) failed in attempt %d of %d, next run in %.1f s: %s",
                job.id,
                job.handler.identifier,
                row["attempts"],
                row["max_attempts"],
                row["wait_seconds"],
                failure.message,
                extra={**fields, "next_run_in": row["wait_seconds"]},
            )
            return
        where = "it is gone" if row["is_gone"] else "it stays in the queue, used up"
        if row["dlq_id"] is not None:
            where = f"now dead letter {row['dlq_id']}"
        logger.warning(
            "job %d (%s) failed for good in attempt %d of %d (%s), %s: %s",
            job.id,
            job.handler.identifier,
            row["attempts"],
            row["max_attempts"],
            row["verdict"],
            where,
            failure.message,
            extra={**fields, "verdict": row["verdict"], "dlq_id": row["dlq_id"]},
        )

    def _park(self, left: list[Settled]) -> None:
        """Send them again after a while; new outcomes need not wait for them."""
        pause = _PARKED_PAUSES[min(self._parked_rounds, len(_PARKED_PAUSES) - 1)]
        self._parked_rounds += 1
        if self._parked_rounds == len(_PARKED_PAUSES):
            logger.warning("%d jobs cannot be released while other transactions hold their rows", len(left))
        self._parked += left
        asyncio.get_running_loop().call_later(pause, self._unpark)

    def _unpark(self) -> None:
        parked, self._parked = self._parked, []
        self._settled += parked
        self._event.set()


def _will_pass(error: Exception) -> bool:
    """Whether it is a trouble of the database's, not of the outcome: a conflict, a lack of room, a limit of time."""
    state = getattr(error, "sqlstate", None) or ""
    return state[:2] in _PASSING_CLASSES or state in _PASSING_STATES


def _common(group: Sequence[Settled]) -> tuple[Any, ...]:
    """Queue ids and tokens, job ids and tokens: the first four parameters of each statement."""
    queued = [job for job, _ in group if job.queue_id is not None]
    return (
        [job.queue_id for job in queued],
        [job.token for job in queued],
        [job.id for job, _ in group],
        [job.token for job, _ in group],
    )


def _added_to(group: Sequence[Settled]) -> tuple[list[str | None] | None, list[int] | None]:
    """Key and attempt of each job whose successor would only add to it; None for both where there is none, as mostly."""
    if not any(job.adds_up for job, _ in group):
        return None, None
    return [job.row[3] if job.adds_up else None for job, _ in group], [job.attempt for job, _ in group]


def _fields(job: Claimed) -> dict[str, Any]:
    """What structured logs carry for a job."""
    return {"job_id": job.id, "task": job.handler.identifier, "attempt": job.attempt}
