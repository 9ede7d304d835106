"""The sweep: taking over what dead workers hold. Any worker does it; there is no leader.

Who is dead is for the database to say: a worker whose last beat is longer ago than its lease. But all beats stop when the
database is away, and its clock may be set. So a worker judges others only by what it has seen itself, while its own beats went
well: for half of its lease without a gap, and the other's beat unmoved for a quarter of that one's lease, in which a live worker
beats more than once. So a fleet that comes back together after an outage does not sweep itself.

A sweep is one transaction. The first statement declares workers dead; it locks their rows against the lock that each claim takes on
its own worker's row, so a claim is either seen by the second statement or claims nothing. The second gives back what they held;
it waits for nobody, so what somebody else has locked is left for the next sweep, and the dead worker's row with it. When nothing
is left, the row goes.

A lock of ours whose worker has no row is a dead worker's: a row is there before the first claim, and goes when nothing is held.
"""

import asyncio
import logging
import random
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

import asyncpg

from backfill.db import DRIVER_ERRORS, Connection, Session, is_connection_error
from backfill.errors import BackfillError
from backfill.hooks import HookRegistry, Observation
from backfill.sql import text
from backfill.worker.lease import boot_time
from backfill.worker.recovery import Recovery
from backfill.worker.vitals import Late

logger = logging.getLogger(__name__)

MOST_CRASHES: Final = 3  # workers that a suspect may kill, being the only suspect, before it is quarantined
_SPREAD: Final = 0.3  # seconds over which a fleet's sweeps of the same worker are spread
_SHARE: Final = 20  # while something is left that can't be taken, sweeps take a twentieth of the time
_END: Final = 2_000  # milliseconds for the end of dead workers' sessions
_FREEZE: Final = "10s"  # that a sweep whose process freezes in the middle may hold its locks

Upkeep = Callable[[], AbstractAsyncContextManager[Session]]
_Pair = tuple[str, Any]


@dataclass(slots=True)
class Swept:
    """What a sweep did.

    Attributes:
        workers: The workers that were dead and whose rows are gone.
        released: Jobs that can run again.
        quarantined: Jobs that killed too many workers.
        left: Jobs whose rows somebody else has locked.
        by_worker: How many jobs each dead worker held.
        jobs: A row for each job that was found: worker_id, job_id, verdict, crashes, delay_seconds, dlq_id.
        events: What hooks are to be told.
    """

    workers: list[str] = field(default_factory=list)
    released: int = 0
    quarantined: int = 0
    left: int = 0
    by_worker: Counter[str] = field(default_factory=Counter)
    jobs: Sequence[asyncpg.Record] = ()
    events: Sequence[Observation] = ()


async def sweep(
    connection: Connection,
    schema: str,
    seen: Sequence[_Pair],
    *,
    bury: bool,
    moved_by: str,
    recovery: Recovery | None = None,
    orphans: bool = False,
) -> Swept:
    """Take over what workers hold whose lease has ended, and what is held in the name of workers that have no row.

    Args:
        connection: A connection that is used for nothing else meanwhile.
        schema: The schema.
        seen: Workers and the beats that were seen last; one that has moved since is left alone.
        bury: Whether jobs that killed too many workers go to the dead letter queue.
        moved_by: For the dead letters' ``created_by``.
        recovery: The hooks, if there may be any.
        orphans: Look for locks without a row even if none of the workers is dead, or another sweep is at them.

    Raises:
        one of DRIVER_ERRORS: The database failed; nothing was changed.
    """
    recovery = recovery or Recovery(HookRegistry(), moved_by)
    ids, heartbeats = [worker for worker, _ in seen], [beat for _, beat in seen]
    try:
        await connection.fetchval(text("end_connections_of_dead", schema), ids, heartbeats, _END)
    except asyncpg.InsufficientPrivilegeError as error:  # a superuser's: then they end by the server's own limits
        logger.warning("cannot end the connections of dead workers: %s", error)
    once = partial(_sweep, connection, schema, ids, heartbeats, recovery, moved_by=moved_by, orphans=orphans)
    try:
        return await once(bury=bury)
    except _RefusedError:
        reason = "a trigger kept it from being stored"
    except asyncpg.PostgresError as error:
        if not bury or is_connection_error(error):
            raise
        reason = str(error)
    logger.error(
        "the dead letter queue refuses a job that killed its workers, which stays in the queue, used up: %s", reason
    )
    return await once(bury=False)


class _RefusedError(Exception):
    """A dead letter was not stored, though there was no error."""


async def _sweep(
    connection: Connection,
    schema: str,
    ids: Sequence[str],
    heartbeats: Sequence[Any],
    recovery: Recovery,
    *,
    bury: bool,
    moved_by: str,
    orphans: bool,
) -> Swept:
    async with connection.transaction(isolation="read_committed"):
        await connection.fetchval(text("bound_transaction", schema), _FREEZE)
        dead = await connection.fetch(text("mark_dead", schema), ids, heartbeats)
        names = [row["id"] for row in dead]
        if not names and not orphans:  # another sweep has them: no index leads to locks, so one scan is enough
            return Swept()
        started = [job for row in dead for job in row["running"]]
        left = await recovery.ask(connection, schema, names)
        args = names, started, bury, moved_by, MOST_CRASHES, left
        jobs = await connection.fetch(text("release_dead", schema), *args)
        await recovery.heed(connection, schema, jobs)
        await connection.fetchval(text("settle_cancellations", schema), moved_by, bury)
        verdicts = Counter(row["verdict"] for row in jobs)
        if verdicts["refused"]:
            raise _RefusedError
        at_once = sum(row["verdict"] in ("started", "refunded") and not row["delay_seconds"] for row in jobs)
        if at_once:
            await connection.fetchval(text("announce_jobs", schema), at_once)
        gone = await connection.fetch(text("remove_dead", schema), names)
    swept = Swept(
        workers=[row["id"] for row in gone],
        released=verdicts["started"] + verdicts["refunded"] + verdicts["superseded"],
        quarantined=verdicts["quarantined"],
        left=verdicts[None],
        by_worker=Counter(row["worker_id"] for row in jobs),
        jobs=jobs,
    )
    swept.events = recovery.events(dict.fromkeys([*swept.workers, *swept.by_worker]), jobs)
    _report(swept)
    return swept


def _report(swept: Swept) -> None:
    for worker in dict.fromkeys([*swept.workers, *swept.by_worker]):
        logger.warning("worker %s is dead: it held %d jobs", worker, swept.by_worker[worker])
    if swept.released or swept.left:
        logger.info("released %d jobs of dead workers; %d are locked by others for now", swept.released, swept.left)
    for row in swept.jobs:
        if row["verdict"] == "quarantined":
            where = "stays in the queue, used up" if row["dlq_id"] is None else f"is now dead letter {row['dlq_id']}"
            logger.error(
                "job %d killed %d workers and %s", row["job_id"], row["crashes"], where, extra={"job_id": row["job_id"]}
            )


class Sweeper:
    """Watches workers that are late, and sweeps those that are dead.

    Attributes:
        sweeps: Sweeps made.
    """

    def __init__(
        self,
        upkeep: Upkeep,
        schema: str,
        *,
        moved_by: str,
        bury: bool,
        recovery: Recovery | None = None,
        on_swept: Callable[[Swept], None] | None = None,
    ) -> None:
        """Prepare it; ``run`` is its life.

        Args:
            upkeep: Gives a connection for a while.
            schema: The schema.
            moved_by: For the dead letters' ``created_by``.
            bury: Whether jobs that killed too many workers go to the dead letter queue.
            recovery: The hooks, if there may be any.
            on_swept: Called after each sweep that found something.
        """
        self.sweeps = 0
        self._upkeep = upkeep
        self._schema = schema
        self._moved_by = moved_by
        self._bury = bury
        self._recovery = recovery
        self._on_swept = on_swept
        self._since: dict[_Pair, float] = {}
        self._at: dict[_Pair, float] = {}
        self._orphans = False
        self._rest_until = 0.0
        self._changed = asyncio.Event()

    def observe(self, late: Sequence[Late], now: float, steady: bool) -> None:
        """Take note of which workers are late.

        Args:
            late: All that are.
            now: When that was read, by ``boot_time``.
            steady: Whether our own beats have gone well for half a lease.
        """
        pairs = {(worker.id, worker.heartbeat_at): worker for worker in late}
        self._since = {pair: self._since.get(pair, now) for pair in pairs}
        self._at = {}
        if steady:
            for pair, worker in pairs.items():
                watched = self._since[pair] + worker.lease / 4
                self._at[pair] = max(self._rest_until, now if worker.dead else max(now + worker.left, watched))
        if self._at:
            self._changed.set()

    def sweep_orphans(self) -> None:
        """Sweep soon, though no worker is late: there are locks of ours whose worker has no row."""
        self._orphans = True
        self._changed.set()

    async def run(self) -> None:
        """Sweep when it is time; until cancelled."""
        while True:
            spread = random.uniform(0.01, _SPREAD)  # noqa: S311 - no secret
            wait = max(0.0, min(self._at.values()) - boot_time()) + spread if self._at else None
            wait = spread if self._orphans else wait
            try:
                async with asyncio.timeout(wait):
                    await self._changed.wait()
                self._changed.clear()
            except TimeoutError:
                await self.run_once()

    async def run_once(self) -> Swept | None:
        """Sweep the workers whose time has come; None when there are none, or the database failed."""
        now = boot_time()
        ripe = [pair for pair, at in self._at.items() if at <= now]
        if not ripe and not self._orphans:
            return None
        orphans, self._orphans = self._orphans, False
        for pair in ripe:  # what is left shows itself again with the next beat
            del self._at[pair]
        try:
            async with self._upkeep() as connection:
                swept = await sweep(
                    connection,
                    self._schema,
                    ripe,
                    bury=self._bury,
                    moved_by=self._moved_by,
                    recovery=self._recovery,
                    orphans=orphans,
                )
        except (*DRIVER_ERRORS, BackfillError) as error:
            logger.warning("cannot sweep dead workers now: %s", str(error) or type(error).__name__)
            return None
        self.sweeps += 1
        if len(swept.workers) < len(ripe):  # something is left, or another sweep is at it
            self._rest_until = boot_time() + _SHARE * (boot_time() - now)
        if self._on_swept is not None and (swept.workers or swept.jobs):
            self._on_swept(swept)
        return swept
