"""Claiming: one statement for all lanes that have room, whenever there is a reason to look.

Reasons: a notification; a slot that needs work while there may be more; a queue that a release has freed; the time at
which a job is known to become due; and a poll, always, since any of the others can be missed.

A claim whose reply is lost is in doubt: the server may have given us jobs that we do not know of. So each time the
connection was lost, our locks in the database are compared with what we hold (``Reconciler``) before the next claim.
"""

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import datetime
from typing import Final

from backfill.db import DRIVER_ERRORS
from backfill.errors import BackfillError
from backfill.worker.claimed import Claimed
from backfill.worker.floors import Piece
from backfill.worker.forbidden import ForbiddenFlags, ForbiddenFlagsError
from backfill.worker.freed import FreedQueues
from backfill.worker.handler import Handler
from backfill.worker.lane import Lane
from backfill.worker.lease import Lease
from backfill.worker.link import Link
from backfill.worker.release import Releaser
from backfill.worker.statements import ClaimStatements
from backfill.worker.teller import Teller

logger = logging.getLogger(__name__)

POLL_WHILE_LISTENING: Final = 2.0  # seconds, at least, between polls while notifications are known to arrive
_REREAD_TASKS: Final = 60.0  # seconds between readings of the task ids
_REREAD_IN_VAIN: Final = 1.0  # seconds between readings that a notification for nothing may cause
_RECONCILE_AGAIN: Final = 1.0  # seconds until what could not be handed back is tried again
_TELL: Final = 0.05  # seconds between notifications about queues that became free
_ASK_DUE: Final = 1.0  # seconds, at least, between questions for the next due time that notifications and polls cause
_OVERTAKE: Final = 0.002  # seconds between looks for what is more urgent than what is claimed already
_MUCH: Final = 100  # a claim of more jobs takes several times as long as one of none
_QUIET: Final = (
    20  # what was looked for in vain, or is asked now and then, is so again after so many times what it cost
)


class Claimer:
    """Claims jobs for the lanes and puts them there.

    Attributes:
        polls: Looks that only the poll timer caused.
        notified: Notifications that asked for a look.
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
        poll_interval: float,
        is_listening: Callable[[], bool],
        reconcile: Callable[[], Awaitable[bool]],
        lease: Lease,
        began_at: datetime | None = None,
        forbidden_flags: ForbiddenFlags = None,
    ) -> None:
        """Prepare it; ``run`` is its life.

        Args:
            link: The connection it claims through.
            worker_id: Begins the claims' tokens.
            lanes: Where claimed jobs go.
            handlers: What this worker can run.
            releaser: Knows what is held and how much waits to be released.
            teller: Tells hooks what claims brought.
            poll_interval: Seconds between polls while ``is_listening`` says no.
            is_listening: Whether notifications are known to arrive.
            reconcile: Called after the connection was lost, before the next claim; whether it could do all of it.
            lease: Nothing is claimed without it.
            began_at: The database's time at the start of a run that ends when nothing due is left; None to go on for ever.
            forbidden_flags: Jobs with these are not claimed.
        """
        self.polls = 0
        self.notified = 0
        self.stopping = False
        self._link = link
        self._lanes = {lane.number: lane for lane in lanes}
        self._statements = ClaimStatements(
            link,
            worker_id=worker_id,
            lanes=lanes,
            handlers=handlers,
            releaser=releaser,
            teller=teller,
            lease=lease,
            began_at=began_at,
            forbidden_flags=forbidden_flags,
            on_suspect=self.look,
        )
        self._frontier = self._statements.frontier
        self._tasks_read_at = 0.0
        self._quiet_until: dict[int, float] = {}
        self._overtook_at = 0.0
        self._heard_of_new = False
        self._behind_at = 0.0
        self._behind = False
        self._freed = False
        self._freed_queues = FreedQueues(lanes, is_used=began_at is None and forbidden_flags is None)
        self._told_at = 0.0
        self._releaser = releaser
        self._poll_interval = poll_interval
        self._is_listening = is_listening
        self._reconcile = reconcile
        self._lease = lease
        self._began_at = began_at
        self._event = asyncio.Event()
        self._due_at: float | None = None
        self._again_at: float | None = None
        self._ask_due = began_at is None
        self._asked_due_at = 0.0
        self._ask_pause = _ASK_DUE
        self._heard = False
        self._poll_at = 0.0
        self._losses = 0

    @property
    def claims(self) -> int:
        """Claim statements sent."""
        return self._statements.sent

    @property
    def in_doubt(self) -> bool:
        """Whether the connection was lost since locks and memory were last compared."""
        return self._link.losses != self._losses

    # -- reasons to look ------------------------------------------------------------------------

    def wake(self) -> None:
        """A lane that may get more has room."""
        if not self._event.is_set():
            self._event.set()

    def look(self, *, ahead: bool = True) -> None:
        """There may be new jobs for every lane; without ``ahead`` none that could be claimed ahead."""
        for lane in self._lanes.values():
            lane.look_again(ahead=ahead)
        self._heard_of_new |= ahead
        self.wake()

    def on_queues_freed(self, done: Sequence[Claimed]) -> None:
        """A release has freed the queues of these jobs: their next ones can start."""
        if self._freed_queues.note(done):
            self.wake()
        else:
            self.on_queue_freed()

    def on_queue_freed(self) -> None:
        """A queue is free: its next job can start."""
        self._quiet_until.clear()
        self._freed = self._began_at is None
        self.look(ahead=False)

    def look_and_ask(self) -> None:
        """What a statement did is not known: there may be new jobs, freed queues, and due times that no timer is set for."""
        self._ask_due = self._began_at is None
        self._statements.forget()
        self.on_queue_freed()
        self.look()

    def compare(self) -> None:
        """Compare locks with memory before the next claim, when no claim is under way."""
        self._losses = -1
        self.wake()

    def on_notify(self) -> None:
        """A notification said that there are new jobs."""
        self.notified += 1
        for lane in self._lanes.values():
            lane.note_added()
        self._heard = True
        asked_ago = time.monotonic() - self._asked_due_at
        if asked_ago > self._ask_pause:
            self._ask_due = True
        else:
            self.look_in(self._ask_pause - asked_ago)
        self.look()

    def look_in(self, seconds: float) -> None:
        """A job becomes due in so many seconds. Only the first such time is kept: then the next is asked for."""
        at = time.monotonic() + max(0.0, seconds)
        if self._due_at is None or at < self._due_at:
            self._due_at = at
            self.wake()

    def _look_again_in(self, seconds: float) -> None:
        """Look again in so many seconds, for another reason than that a job becomes due."""
        at = time.monotonic() + max(0.0, seconds)
        if self._again_at is None or at < self._again_at:
            self._again_at = at
            self.wake()

    # -- the loop -------------------------------------------------------------------------------

    async def run(self) -> None:
        """Claim until ``stopping`` is set; with ``began_at``, until nothing due is left and nothing runs."""
        self._poll_at = time.monotonic() + self._pause()
        while not self.stopping:
            self._event.clear()
            self._timers_rang()
            released = self._releaser.ran
            try:
                got = await self._round()
                if not got and await self._look_further():
                    self.look()
                    continue
            except (*DRIVER_ERRORS, BackfillError) as error:
                theirs = error if isinstance(error, ForbiddenFlagsError) else None
                words = str(error) or type(error).__name__
                logger.warning("cannot claim jobs, will try again: %s", words, exc_info=theirs)
                self.look_and_ask()
                await self._link.pause()
                continue
            except Exception:
                logger.exception("claiming failed in an unforeseen way, will try again")
                self.compare()  # what was claimed and is not known goes back
                self.look_and_ask()
                await self._link.pause()
                continue
            if got:
                continue
            if self._began_at is not None and self._nothing_left(released):
                return
            await self._wait()

    def _nothing_left(self, released: int) -> bool:
        """After a round that claimed nothing: whether nothing runs either, and nothing ended meanwhile."""
        looks = any(lane.hungry for lane in self._lanes.values())
        idle = not looks and not self._releaser.held and released == self._releaser.ran
        return idle and self._lease.fence.stands()

    async def _round(self) -> int:
        """Claim once for every lane that wants jobs; how many came."""
        if not self._lease.fence.stands():
            return 0
        self._look_for_suspects()
        losses = self._link.losses
        if losses != self._losses:
            complete = await self._reconcile()
            self._statements.forget()  # what was given back may be where claims do not look
            if complete:
                self._losses = losses
            else:
                self._look_again_in(_RECONCILE_AGAIN)
        if time.monotonic() - self._tasks_read_at > _REREAD_TASKS:
            await self._read_tasks()
        if self._releaser.is_stuck:
            return 0
        if self._frontier.is_wanted:
            await self._statements.find_frontier()
        got = await self._claim_next() + await self._claim_overtaking() + await self._claim_priorities()
        for lane in self._lanes.values():
            if lane.config.queue_name is not None:
                got += await self._claim_queue(lane, lane.config.queue_name)
        return got

    async def _look_further(self) -> bool:
        """After a round that claimed nothing: ask what may be behind that. Whether to claim again."""
        if self._heard and await self._tasks_are_others():
            return True
        if self._freed:
            await self._tell_others()
        if self._behind or self._statements.runs_suspect:
            self._behind = await self._statements.is_more_behind()
            if self._behind:
                return True
        if self._ask_due:
            await self._learn_next_due()
            return True  # what became due between the claim and the question was in neither
        return False

    async def _tell_others(self) -> None:
        """A queue became free and there was no job of it for us: there may be one for another worker, which has not heard."""
        wait = self._told_at + _TELL - time.monotonic()
        if wait > 0:
            self._look_again_in(wait)
            return
        self._freed, self._told_at = False, time.monotonic()
        await self._statements.tell_others()

    async def _tasks_are_others(self) -> bool:
        """After a notification that led to no job: whether the tasks' rows were collected and made anew meanwhile."""
        wait = self._tasks_read_at + _REREAD_IN_VAIN - time.monotonic()
        if wait > 0:
            self._look_again_in(wait)
            return False
        self._heard = False
        return await self._read_tasks()

    async def _read_tasks(self) -> bool:
        """Read the tasks' ids; whether they are others than before."""
        others = await self._statements.read_tasks()
        if others:  # the frontier was found for jobs of the old ones
            self._statements.forget()
        self._tasks_read_at = time.monotonic()
        return others

    async def _learn_next_due(self) -> None:
        """Set the timer for the next job that becomes due by itself."""
        self._ask_due, self._asked_due_at = False, time.monotonic()
        seconds = await self._statements.next_due()
        self._ask_pause = max(_ASK_DUE, _QUIET * (time.monotonic() - self._asked_due_at))
        if seconds is not None:
            self.look_in(seconds)

    async def _claim_next(self) -> int:
        """Claim the next jobs of the queues that a release has freed, if that is all that there is to look for; how many came."""
        lane = self._freed_queues.lane
        done, alone = self._freed_queues.take()
        if not done or lane is None:
            return 0
        got = await self._statements.claim_next(lane, done) if alone else 0
        if not self._freed_queues.asked(done, got):
            self.on_queue_freed()
        return got

    async def _claim_overtaking(self) -> int:
        """After a reason to look: claim what is more urgent than all that waits in a lane's buffer, though no slot is idle.

        No more than there are slots: so these begin as soon as a slot is free, whether they have a key or a queue or not.
        """
        lanes = [lane for lane in self._lanes.values() if lane.may_be_overtaken]
        if not lanes:
            return 0
        wait = self._overtook_at + _OVERTAKE - time.monotonic()
        if wait > 0:
            asyncio.get_running_loop().call_later(wait, self.wake)
            return 0
        self._overtook_at = time.monotonic()
        slots = {lane.number: lane.config.concurrency for lane in lanes}
        pieces = [
            (lane.number, *bounds, slots[lane.number], slots[lane.number])
            for lane in lanes
            for bounds in lane.overtaking()
        ]
        jobs = await self._statements.claim_pieces(pieces, suspects=False) if pieces else {}
        return sum(map(len, jobs.values()))

    async def _claim_priorities(self) -> int:
        asked: dict[int, tuple[int, int]] = {}
        pieces: list[Piece] = []
        for lane in self._lanes.values():
            idle, wanted = lane.wanted() if lane.pieces else (0, 0)
            if wanted:
                asked[lane.number] = idle, wanted
                pieces += [(lane.number, low, high, idle, wanted) for low, high in lane.pieces]
        if not pieces:
            return 0
        much = sum(wanted for _, wanted in asked.values()) > _MUCH
        if not (self._heard_of_new and much and len(asked) > 1):
            return await self._claim_for(asked, pieces)
        # An urgent job shall not wait until hundreds of others have been claimed with it.
        self._heard_of_new, got = False, 0
        for number in sorted(asked, key=lambda number: self._lanes[number].pieces):
            got += await self._claim_for({number: asked[number]}, [piece for piece in pieces if piece[0] == number])
        return got

    async def _claim_for(self, asked: Mapping[int, tuple[int, int]], pieces: Sequence[Piece]) -> int:
        """Claim for lanes: numbers of idle slots, and of jobs wanted, by the lanes' numbers; how many came."""
        sent_at = time.monotonic()
        jobs = await self._statements.claim_pieces(pieces)
        took = time.monotonic() - sent_at
        got = sum(map(len, jobs.values()))
        for number, (idle, wanted) in asked.items():
            self._lanes[number].claimed(idle, wanted, jobs.get(number, ()))
        queued = next((job for claimed in jobs.values() for job in claimed if job.queue_id is not None), None)
        if queued is not None:
            self._freed_queues.claimed(queued.queue_id)
        if any(idle for idle, _ in asked.values()):
            self._frontier.claimed(took, got, None if queued is None else (queued.priority, queued.due))
        if got < sum(wanted for _, wanted in asked.values()):
            for left in (self._frontier.seconds_left, self._statements.floors.seconds_left):
                if left is not None:
                    self._look_again_in(left)  # what did not come may be what is not looked at until then
        if not got:
            self._behind_at = sent_at + took + _QUIET * took
        elif queued is not None:
            # A claim looks at as many jobs as it has slots for, and takes one of each queue: others may be behind. But a
            # look in vain has to pass by all that waits in held queues, so it is made again after many times what it took.
            self._look_again_in(self._behind_at - time.monotonic())
        return got

    async def _claim_queue(self, lane: Lane, queue_name: str) -> int:
        """Claim the head of the lane's queue.

        A look that finds nothing may have to pass by all that waits, so the next is put off by many times what it took.
        """
        now = time.monotonic()
        idle, _ = lane.wanted()
        quiet_until = self._quiet_until.get(lane.number, 0.0)
        if not idle:
            return 0
        if now < quiet_until and self._began_at is None:
            self._look_again_in(quiet_until - now)
            lane.claimed(idle, idle, ())
            return 0
        got = await self._statements.claim_head(lane, queue_name)
        if not got:
            lane.claimed(idle, idle, ())
            self._quiet_until[lane.number] = now + _QUIET * (time.monotonic() - now)
        return got

    def _look_for_suspects(self) -> None:
        """If the suspect that ran is released: there may be another one."""
        if self._statements.suspect_is_done():
            self._quiet_until.clear()
            self._statements.floors.forget()
            self.look()

    # -- waiting --------------------------------------------------------------------------------

    async def _wait(self) -> None:
        """Wait for a reason to look; a poll and a known time are two of them."""
        until = min(at for at in (self._poll_at, self._due_at, self._again_at) if at is not None)
        timer = asyncio.get_running_loop().call_later(max(0.0, until - time.monotonic()), self._event.set)
        try:
            await self._event.wait()
        finally:
            timer.cancel()

    def _timers_rang(self) -> None:
        now = time.monotonic()
        if self._due_at is not None and self._due_at <= now:
            self._due_at = None
            self._ask_due = self._began_at is None
            self.look()
        if self._again_at is not None and self._again_at <= now:
            self._again_at = None
            self.look()
        if self._poll_at <= now:
            self._poll_at = now + self._pause()
            self._behind = True
            self._ask_due |= now - self._asked_due_at > self._ask_pause
            self._statements.forget()
            self.polls += 1
            self.look()

    def _pause(self) -> float:
        interval = self._poll_interval
        if self._is_listening():
            interval = max(POLL_WHILE_LISTENING, interval)
        return interval * random.uniform(1.0, 1.25)  # noqa: S311 - spreads a fleet, no secret
