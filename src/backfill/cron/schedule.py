"""The scheduler: adds the jobs of cron items when they are due. Each worker with items has one.

**Who decides.** Each worker, ours or Node's, tries to add the job of each run; the database lets the first one do it, by the
item's row in `_private_known_crontabs` (see the statement `schedule_crontabs`). So nothing here needs to be exact: a run that
is tried twice is added once.

**Which clock.** The worker's wall clock says which minute it is, as in Graphile Worker; the database's says when the job, whose
`run_at` is the run's minute, begins. A clock that is ahead adds jobs early, and they begin on time all the same; one that is
behind finds its runs done by others. Waiting is by the monotonic clock, never for longer than a few seconds, after which the
wall clock is looked at anew. A timer that is early has therefore no effect, and a step of the clock is seen at once.

**States of an item.** Its *cursor* is the minute up to which its runs are settled: added, added by others, or left out. A pass
takes the runs between the cursor and now. Usually that is one minute. It is more after a pause of the process (SIGSTOP, a
suspended machine), a step of the clock or an outage of the database:

* If the oldest is at most ten minutes old, they are all added, each for its own minute (of an item with `latest` the last).
* If it is older, the item's policy for missed runs decides, as at a start: see `MissedRuns`. The current minute is no missed run.

A clock that was set back moves the cursor back as well. The runs that come round again were done before, says the database.

**At a start** the items become known. What an item that was known before has missed since then is made up for as its policy
says, marked as backfilled, in the order of the runs.

**Failures.** An outage leaves the cursors where they are; the pass is made again after a back-off, for as long as it takes. An item
that the database refuses (a trigger of a user's, say) fails by itself: it is tried again, and the others go on.
"""

import asyncio
import logging
import random
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final

from backfill.cron.item import CronItem
from backfill.cron.match import MINUTE, whole_minute
from backfill.cron.missed import due_runs, minute_from, missed_runs
from backfill.cron.store import Run, known_crontabs, register, schedule
from backfill.db import DRIVER_ERRORS, Connection, is_connection_error
from backfill.errors import BackfillError, InvalidJob, JobScheduleFailed, JobScheduleSkipped
from backfill.hooks import CronJobScheduled, CronTick, HookRegistry
from backfill.model import JobSpec, decode_payload, encode_payload

logger = logging.getLogger(__name__)

_LOOK: Final = 5.0  # seconds that pass at most between two looks at the clock
_AFTER: Final = 0.001  # seconds after the minute has begun, as in Graphile Worker
_FIRST_PAUSE: Final = 0.2  # seconds, after a failure
_LONGEST_PAUSE: Final = 60.0
_GROWTH: Final = 1.5
_MAX_ATTEMPTS: Final = 25  # Graphile Worker's default, for what hooks are told

Connect = Callable[[], AbstractAsyncContextManager[Connection]]


@dataclass(frozen=True, slots=True)
class Scheduled:
    """A job that was added.

    Attributes:
        identifier: The item's.
        tick: The minute for which it was due.
        job_id: The job.
        backfilled: Whether it makes up for a missed run.
    """

    identifier: str
    tick: datetime
    job_id: int
    backfilled: bool


@dataclass(slots=True)
class Pass:
    """What a pass of the scheduler did.

    Attributes:
        scheduled: The jobs it added, in order.
        failed: The identifiers of items that failed and will be tried again.
    """

    scheduled: list[Scheduled] = field(default_factory=list)
    failed: set[str] = field(default_factory=set)


@dataclass(slots=True)
class _Entry:
    """An item, and how far it is.

    Attributes:
        item: The item.
        cursor: Its runs up to this minute are settled, but for those in ``missed``.
        missed: Runs from before the start that are to be made up for.
        warned: Whether its last execution was said to lie in the future.
    """

    item: CronItem
    cursor: datetime
    missed: deque[datetime] = field(default_factory=deque)
    warned: bool = False


class CronScheduler:
    """Adds the jobs of items when they are due; see the module's docstring."""

    def __init__(
        self,
        items: Sequence[CronItem],
        schema: str,
        connect: Connect,
        *,
        hooks: HookRegistry | None = None,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """Prepare it.

        Args:
            items: The items; no two have one identifier.
            schema: The schema's name, unquoted.
            connect: Gives a connection for the length of an ``async with`` block.
            hooks: Who is told of ``cron_tick`` and ``cron_job_scheduled``, and asked by ``before_job_schedule``.
            clock: The wall clock: an aware time.
        """
        self._items = tuple(items)
        self._schema = schema
        self._connect = connect
        self._hooks = HookRegistry() if hooks is None else hooks
        self._clock = clock
        self._entries: list[_Entry] | None = None
        self._now = datetime.min.replace(tzinfo=UTC)
        self._told: datetime | None = None
        self._stopping = asyncio.Event()

    def stop(self) -> None:
        """Have ``run`` end after what it is doing."""
        self._stopping.set()

    async def run(self) -> None:
        """Schedule until stopped."""
        failures = 0
        while not self._stopping.is_set():
            try:
                done = await self.run_once(self._clock())
                failures = failures + 1 if done.failed else 0
            except (*DRIVER_ERRORS, BackfillError) as error:
                failures += 1
                logger.warning("cannot schedule cron items now, will try again: %s", str(error) or type(error).__name__)
            await self._wait(self._pause(failures))

    async def run_once(self, now: datetime) -> Pass:
        """Schedule what is due, and at the first call what has been missed.

        Args:
            now: The wall clock (aware).

        Raises:
            BackfillError: The database can't be reached; what was not done is done by the next call.
        """
        done = Pass()
        self._now = now
        entries = self._entries
        if entries is None:
            entries = self._entries = await self._start(now)
        minute = whole_minute(now)
        told = self._tell_of(minute)
        try:
            _follow_steps(entries, minute)
            due = self._due(entries, now, done)
            if due:
                async with self._connect() as connection:
                    for tick in sorted(due):
                        if self._stopping.is_set():
                            return done
                        await self._settle(connection, tick, due[tick], done)
            for entry in entries:
                if entry.item.identifier not in done.failed:
                    entry.cursor = max(entry.cursor, minute)
        finally:
            await asyncio.gather(*told)
        return done

    # -- what is due ----------------------------------------------------------------------------

    async def _start(self, now: datetime) -> list[_Entry]:
        """Make the items known, and find out what they have missed."""
        async with self._connect() as connection:
            known = await register(connection, self._schema, self._items, now)
        begin = minute_from(now)
        entries = [_Entry(item, begin - MINUTE) for item in self._items]
        for entry in entries:
            row = known.get(entry.item.identifier)
            if row is not None:
                entry.missed.extend(missed_runs(entry.item, row.known_since, row.last_execution, now))
                _warn_if_ahead(entry, row.last_execution, now)
        count = sum(len(entry.missed) for entry in entries)
        logger.info("cron started: %d items, %d missed runs to make up for", len(entries), count)
        return entries

    def _due(self, entries: list[_Entry], now: datetime, done: Pass) -> dict[datetime, list[tuple[_Entry, bool]]]:
        """The runs to settle, by their minutes, each with whether it is backfilled."""
        due: dict[datetime, list[tuple[_Entry, bool]]] = {}
        for entry in entries:
            for tick in entry.missed:
                due.setdefault(tick, []).append((entry, True))
            try:
                for tick, backfilled in _late(entry, now):
                    due.setdefault(tick, []).append((entry, backfilled))
            except Exception:  # a schedule that is a function is the user's code
                logger.exception("the schedule of cron item %s failed", entry.item.identifier)
                done.failed.add(entry.item.identifier)
        return due

    # -- adding jobs ----------------------------------------------------------------------------

    async def _settle(self, connection: Connection, tick: datetime, due: list[tuple[_Entry, bool]], done: Pass) -> None:
        """Add the jobs of one minute; if that fails by something in them, each by itself."""
        due = [(entry, backfilled) for entry, backfilled in due if entry.item.identifier not in done.failed]
        try:
            await self._add(connection, tick, due, done)
        except (*DRIVER_ERRORS, BackfillError) as error:
            if is_connection_error(error):
                raise
            if len(due) == 1:
                identifier = due[0][0].item.identifier
                done.failed.add(identifier)
                words = str(error) or type(error).__name__
                logger.warning(
                    "cron item %s can't be scheduled for %s, will be tried again: %s", identifier, _shown(tick), words
                )
                return
            for each in due:
                await self._settle(connection, tick, [each], done)

    async def _add(self, connection: Connection, tick: datetime, due: list[tuple[_Entry, bool]], done: Pass) -> None:
        runs = await self._runs(connection, tick, due)
        outcomes = await schedule(connection, self._schema, tick, runs) if runs else []
        by_identifier = {outcome.item.identifier: outcome for outcome in outcomes}
        for entry, backfilled in due:
            if entry.missed and entry.missed[0] == tick:
                entry.missed.popleft()
            entry.cursor = max(entry.cursor, tick)
            outcome = by_identifier.get(entry.item.identifier)
            if outcome is None:
                continue
            if not outcome.won:
                _warn_if_ahead(entry, outcome.last_execution, self._now)
            elif outcome.job_id is not None:
                done.scheduled.append(Scheduled(entry.item.identifier, tick, outcome.job_id, backfilled))
                await self._tell_added(entry.item, done.scheduled[-1])

    async def _runs(self, connection: Connection, tick: datetime, due: list[tuple[_Entry, bool]]) -> list[Run]:
        """The runs with their payloads, as the hooks let them in.

        Hooks are asked while nothing is locked, so several workers may ask for one run; the answer to the first to add it
        stands. What the database knows to be done is not asked for.
        """
        plain = [Run(entry.item, entry.item.job_payload(tick, backfilled=backfilled)) for entry, backfilled in due]
        if not self._hooks.around_adding:
            return plain
        known = {row.identifier: row.last_execution for row in await known_crontabs(connection, self._schema)}
        open_ = [run for run in plain if (last := known.get(run.item.identifier)) is None or last < tick]
        return [Run(run.item, await self._asked(run, tick)) for run in open_]

    async def _asked(self, run: Run, tick: datetime) -> str | None:
        """The payload with which the hooks let a job in; None when they keep it out."""
        item = run.item
        spec = JobSpec(
            run_at=tick,
            priority=item.priority or 0,
            queue=item.queue,
            max_attempts=item.max_attempts or _MAX_ATTEMPTS,
            job_key=item.job_key,
            job_key_mode=item.job_key_mode or "replace",
        )
        try:
            asked = await self._hooks.ask_before_adding(item.task, decode_payload(run.payload or "{}"), spec)
            return encode_payload(asked)
        except JobScheduleSkipped as error:
            logger.info("cron item %s is left out at %s: %s", item.identifier, _shown(tick), error)
        except (JobScheduleFailed, InvalidJob) as error:
            logger.warning("cron item %s is left out at %s: %s", item.identifier, _shown(tick), error)
        return None

    # -- telling --------------------------------------------------------------------------------

    def _tell_of(self, minute: datetime) -> list["asyncio.Future[None]"]:
        """Tell of a minute that has begun, once; what is to be awaited at the end of the pass."""
        if minute == self._told:
            return []
        self._told = minute
        if not self._hooks.wants(CronTick):
            return []
        started = self._hooks.start(CronTick(timestamp=minute, crontabs=self._items))
        return [asyncio.ensure_future(each) for each in started]

    async def _tell_added(self, item: CronItem, added: Scheduled) -> None:
        level = logging.INFO if added.backfilled else logging.DEBUG
        logger.log(level, "cron item %s: added job %d for %s", item.identifier, added.job_id, _shown(added.tick))
        if self._hooks.wants(CronJobScheduled):
            await self._hooks.observe(CronJobScheduled(crontab=item, scheduled_at=added.tick))

    # -- waiting --------------------------------------------------------------------------------

    def _pause(self, failures: int) -> float:
        """Seconds until the next pass: to the next minute, or after a failure until the next attempt."""
        now = self._clock()
        to_minute = 60 - now.second - now.microsecond / 1_000_000 + _AFTER
        if not failures:
            return min(to_minute, _LOOK)
        pause = min(_FIRST_PAUSE * _GROWTH ** min(failures - 1, 20), _LONGEST_PAUSE)
        spread = random.uniform(0.5, 1.5)  # noqa: S311 - spreads a fleet, no secret
        return min(pause * spread, to_minute)  # the items that did not fail are not to wait

    async def _wait(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._stopping.wait()
        except TimeoutError:
            pass


def _late(entry: _Entry, now: datetime) -> Iterator[tuple[datetime, bool]]:
    """The runs of an item since its cursor that are to be settled, each with whether it is backfilled."""
    item = entry.item
    found = due_runs(item, entry.cursor, now)
    if found is None:
        return
    if found.is_late and found.oldest < found.kept:
        logger.warning(
            "cron item %s: its runs from %s to before %s are left out, as it says for runs that come as late as %s",
            item.identifier,
            _shown(found.oldest),
            _shown(found.kept),
            str(now - found.oldest).split(".", maxsplit=1)[0],
        )
    entry.cursor = max(entry.cursor, found.kept - MINUTE)
    yield from found.ticks(item)


def _follow_steps(entries: list[_Entry], minute: datetime) -> None:
    """Move the cursors back with a clock that was set back; a minute is less than a timer may be early by."""
    ahead = [entry for entry in entries if entry.cursor - minute > MINUTE]
    if ahead:
        logger.warning(
            "the clock was set back, from %s to %s; runs that come round again are not scheduled again",
            _shown(max(entry.cursor for entry in ahead)),
            _shown(minute),
        )
    for entry in ahead:
        entry.cursor = minute


def _warn_if_ahead(entry: _Entry, last_execution: datetime | None, now: datetime) -> None:
    """Say that an item can't run for a while, because somebody's clock was wrong."""
    is_ahead = last_execution is not None and last_execution > now + MINUTE
    if is_ahead and not entry.warned and last_execution is not None:
        logger.warning(
            "cron item %s was last scheduled for %s, which is in the future (some worker's clock is or was wrong): it will"
            " not run before that time. To have it run, set its last_execution in _private_known_crontabs to null",
            entry.item.identifier,
            _shown(last_execution),
        )
    entry.warned = is_ahead


def _shown(time: datetime) -> str:
    return time.astimezone(UTC).isoformat(sep=" ", timespec="minutes").replace("+00:00", "Z")
