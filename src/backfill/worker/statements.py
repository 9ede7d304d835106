"""What a claimer asks the database, and the jobs that come of it: held by the releaser, and in their lanes.

When to ask, and for which lanes, is ``Claimer``'s to decide.
"""

import time
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any, Final

import asyncpg

from backfill.db import moment
from backfill.hooks import LocalQueueGetJobsComplete
from backfill.worker.claimed import Claimed
from backfill.worker.floors import Floors, Piece
from backfill.worker.forbidden import ForbiddenFlags, flags_now
from backfill.worker.frontier import Frontier
from backfill.worker.handler import Handler
from backfill.worker.lane import Lane
from backfill.worker.lease import Fence, Lease
from backfill.worker.link import Link
from backfill.worker.release import Releaser
from backfill.worker.teller import Teller

_MOST_PASSED: Final = 100  # queues that a poll looks behind at most


class ClaimStatements:
    """Sends the statements of a claimer.

    Attributes:
        sent: Claims sent; each token has its number.
        frontier: Where claims begin to look for queued jobs.
        floors: Where they begin to look for others.
    """

    def __init__(
        self,
        link: Link,
        *,
        worker_id: str,
        lanes: Sequence[Lane],
        handlers: Sequence[Handler],
        releaser: Releaser,
        teller: Teller,
        lease: Lease,
        began_at: datetime | None,
        forbidden_flags: ForbiddenFlags,
        on_suspect: Callable[[], None],
    ) -> None:
        """Prepare it; before the first claim, ``read_tasks``.

        Args:
            link: The connection.
            worker_id: Begins the claims' tokens.
            lanes: Where claimed jobs go.
            handlers: What this worker can run.
            releaser: Is given what is held.
            teller: Tells hooks what claims brought.
            lease: By which the jobs are held.
            began_at: Only what was due then, or was added since to run at once, is claimed; None for no such limit.
            forbidden_flags: Jobs with these are not claimed.
            on_suspect: Called when a suspect was claimed: others were left, and what comes behind them.
        """
        self.sent = 0
        self.frontier = Frontier(is_used=began_at is None)
        self.floors = Floors(is_used=began_at is None)
        self._link = link
        self._worker_id = worker_id
        self._lanes = {lane.number: lane for lane in lanes}
        self._by_name = {handler.identifier: handler for handler in handlers}
        self._by_task: dict[int, Handler] = {}
        self._task_ids: list[int] = []
        self._other_queues = [lane.config.queue_name for lane in lanes if lane.config.queue_name is not None]
        self._by_priority: dict[int, Lane] = {}
        self._passed: list[int] = []
        self._suspect: Claimed | None = None
        self._may_be_queued = True
        self._releaser = releaser
        self._teller = teller
        self._lease = lease
        self._began_at = began_at
        self._forbidden_flags = forbidden_flags
        self._on_suspect = on_suspect

    # -- claims -----------------------------------------------------------------------------------

    async def claim_pieces(self, pieces: Sequence[Piece], *, suspects: bool = True) -> dict[int, list[Claimed]]:
        """Claim for pieces of lanes, and put the jobs into the lanes.

        Args:
            pieces: The pieces; they don't overlap.
            suspects: Whether a suspect may be among the jobs, if none runs.

        Returns:
            What came, by the lanes' numbers.
        """
        pieces, floors = self.floors.split(pieces)
        began, everywhere = time.monotonic(), not any(floors)
        columns: list[Any] = [list(column) for column in zip(*pieces, strict=True)]
        token, fence = self._next_token(), self._lease.fence
        args = (token, self._task_ids, *columns, self._began_at, suspects and self._suspect is None)
        rows: list[asyncpg.Record] = []
        if self._is_small(pieces):
            rows = await self._link.fetch("claim_free_jobs", *args)
            self._may_be_queued = not rows and await self._has_queues()
        if not rows and (self._may_be_queued or not self._is_small(pieces)):
            passed = [*self._passed, *self.frontier.passed, *self._own_queues()]
            rows = await self._fetch_permitted(
                "claim_jobs",
                "claim_jobs_without_flags",
                *args,
                self._other_queues,
                passed,
                *self.frontier.columns,
                floors,
            )
        took = time.monotonic() - began
        jobs: dict[int, list[Claimed]] = {}
        received = self._received(rows, token, fence, None)
        self.floors.claimed(took, received, everywhere=everywhere)
        for job in received:
            jobs.setdefault(job.lane.number, []).append(job)
        for number, claimed in jobs.items():
            self._lanes[number].put(claimed)
        return jobs

    async def claim_next(self, lane: Lane, done: Sequence[Claimed]) -> int:
        """Claim the next jobs of queues that the release of these jobs has freed, and put them into the lane; how many came.

        Args:
            lane: The only lane. It has an idle slot for each of the queues.
            done: The jobs, one of each queue.
        """
        token, fence = self._next_token(), self._lease.fence
        ((low, high),) = lane.pieces
        rows = await self._link.fetch(
            "claim_next_of_queues",
            token,
            self._task_ids,
            [job.queue_id for job in done],
            [job.priority for job in done],
            [moment(job.due) for job in done],
            [job.id for job in done],
            low,
            high,
            self._suspect is None,
        )
        if rows:
            lane.put(self._received(rows, token, fence, lane))
        return len(rows)

    async def claim_head(self, lane: Lane, queue_name: str) -> int:
        """Claim the head of a queue for the lane that is its own, and put it there; how many came."""
        token, fence = self._next_token(), self._lease.fence
        args = (token, self._task_ids, queue_name, self._began_at, self._suspect is None)
        rows = await self._fetch_permitted("claim_queue_head", "claim_queue_head_without_flags", *args)
        if rows:
            lane.put(self._received(rows, token, fence, lane))
        return len(rows)

    def forget(self) -> None:
        """There may be jobs where claims do not look now."""
        self.frontier.forget()
        self.floors.forget()

    def _is_small(self, pieces: Sequence[Piece]) -> bool:
        """Whether there were no queues when last looked, and ``claim_free_jobs`` does for these pieces what ``claim_jobs`` would."""
        if self._may_be_queued or self._forbidden_flags is not None:
            return False
        lanes = {lane for lane, *_ in pieces}
        return len(lanes) == len(pieces) and all(idle == wanted for *_, idle, wanted in pieces)

    def suspect_is_done(self) -> bool:
        """Whether the suspect that ran is released: there may be another one, and this is asked once."""
        suspect = self._suspect
        if suspect is None or self._releaser.held.get(suspect.id) is suspect:
            return False
        self._suspect, self._passed = None, []
        return True

    def _own_queues(self) -> list[int]:
        """The queues that this worker's jobs hold: to pass them by, a claim need not ask the database of each of their jobs."""
        return [job.queue_id for job in self._releaser.held.values() if job.queue_id is not None]

    def _next_token(self) -> str:
        self.sent += 1
        return f"{self._worker_id}/{self.sent}"

    def _received(self, rows: Sequence[asyncpg.Record], token: str, fence: Fence, lane: Lane | None) -> list[Claimed]:
        now, held, by_task = time.monotonic(), self._releaser.held, self._by_task
        jobs = [
            Claimed(row, token, lane or self._lane_of(row[6]), by_task[row[1]], claimed_at=now, fence=fence)
            for row in rows
        ]
        for job in jobs:
            held[job.id] = job
            if job.is_suspect:
                self._suspect = job
                self._on_suspect()
        if jobs and self._teller.hooks.wants(LocalQueueGetJobsComplete):
            self._teller.tell([LocalQueueGetJobsComplete(worker_id=self._worker_id, jobs_count=len(jobs))])
        return jobs

    def _lane_of(self, priority: int) -> Lane:
        """The lane that takes that priority."""
        lane = self._by_priority.get(priority)
        if lane is None:
            takes = [lane for lane in self._lanes.values() for low, high in lane.pieces if low <= priority <= high]
            # None takes it: the row's priority was changed while it was being claimed.
            lane = self._by_priority[priority] = takes[0] if takes else next(iter(self._lanes.values()))
        return lane

    # -- questions --------------------------------------------------------------------------------

    async def _has_queues(self) -> bool:
        has_queues: bool = (await self._link.fetch("has_queues"))[0]["has_queues"]
        return has_queues

    async def read_tasks(self) -> bool:
        """Read the ids of the handlers' tasks, and whether there are queues; whether the ids are others than before."""
        before = self._task_ids
        self._may_be_queued = await self._has_queues()
        rows = await self._link.fetch("register_tasks", list(self._by_name))
        self._by_task = {row["id"]: self._by_name[row["identifier"]] for row in rows}
        self._task_ids = sorted(self._by_task)
        return before != self._task_ids

    async def find_frontier(self) -> None:
        """Find where claims may begin to look for queued jobs."""
        began = time.monotonic()
        self.frontier.being_made()
        rows = await self._link.fetch("find_frontier", self._task_ids, self._worker_id, self._other_queues)
        self.frontier.found(rows, time.monotonic() - began)

    @property
    def runs_suspect(self) -> bool:
        """Whether a suspect runs: the others wait for it, and so do the queues whose first jobs they are."""
        return self._suspect is not None

    async def is_more_behind(self) -> bool:
        """Whether free queues are left, whose first jobs somebody must have locked, or have to wait; the next claim looks behind them."""
        idle = sum(lane.idle for lane in self._lanes.values())
        rows = []
        if idle and self._may_be_queued and len(self._passed) < _MOST_PASSED:
            rows = await self._fetch_permitted(
                "free_queues", "free_queues_without_flags", self._task_ids, self._other_queues, self._passed, idle
            )
        self._passed = [*self._passed, *(row["queue_id"] for row in rows)] if rows else []
        return bool(rows)

    async def next_due(self) -> float | None:
        """In how many seconds the next job becomes due by itself; None if none will."""
        seconds: float | None = (await self._link.fetch("next_due", self._task_ids))[0]["seconds"]
        return seconds

    async def tell_others(self) -> None:
        """Wake every worker: a queue became free."""
        await self._link.fetch("tell_others")

    async def _fetch_permitted(self, name: str, variant: str, *args: Any) -> list[asyncpg.Record]:
        """The rows of a statement, or of its variant when flags are forbidden now."""
        forbidden = await flags_now(self._forbidden_flags) if self._forbidden_flags is not None else None
        if forbidden:
            return await self._link.fetch(variant, *args, forbidden)
        return await self._link.fetch(name, *args)
