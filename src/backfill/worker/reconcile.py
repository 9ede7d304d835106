"""Comparing our locks in the database with what we hold: after a lost connection, and now and then.

A claim or a release whose reply was lost may have been carried out. A lost release needs nothing: it is sent again, and its
token decides. A lost claim has left jobs under a token of ours that no job in memory carries; nobody else would touch them
for hours, so they are handed back. The other way round, a job in memory whose token is gone from the database was taken
away from us (an operator unlocked it), and its handler is cancelled.

No claim may be under way meanwhile: its jobs would look like nobody's. So the claimer itself calls this between two claims.
And a claim that the lost connection sent may still be at work on the server, or not even have arrived there: so first
its backend is ended, and with it all that it has not committed. Through a pooler a claim commits only by a message that the
client sends after the claim's reply (see ``Session.fetch_as_set``), so there as well nothing can come later.
"""

import logging
from collections.abc import Callable
from typing import Final

from backfill.db import Connection
from backfill.sql import text
from backfill.worker.claimed import Claimed

logger = logging.getLogger(__name__)

_PATIENCE: Final = 5_000  # milliseconds for the end of a backend


async def reconcile(
    connection: Connection,
    schema: str,
    *,
    worker_id: str,
    lost_connection: str | None,
    held: dict[int, Claimed],
    on_lost: Callable[[Claimed], None],
    has_pooler: bool = False,
) -> bool:
    """Hand back what is locked by this worker and unknown to it, and report what it holds and has lost.

    Args:
        connection: Not the one that claims.
        schema: The schema.
        worker_id: This worker.
        lost_connection: The application_name of the connection that claimed and was lost; None if it was not lost.
        held: What the worker holds, by id.
        on_lost: Called for each job that it held before and whose row no longer carries its token.
        has_pooler: Whether a pooler is between the worker and the database.

    Returns:
        Whether all of it could be handed back; not what somebody else's transaction has locked for now.

    Raises:
        asyncpg.PostgresError, OSError: The database did not answer; nothing was changed.
    """
    before = dict(held)
    if lost_connection is not None:
        await connection.fetchval(text("end_backends", schema), lost_connection, _PATIENCE, has_pooler)
    rows = await connection.fetch(text("locks_of_worker", schema), worker_id)
    ours = {(job.id, job.token) for job in held.values()} | {(job.id, job.token) for job in before.values()}
    tokens = {token for _, token in ours}
    strangers = [row for row in rows if row["job_id"] is not None and (row["job_id"], row["token"]) not in ours]
    queues = [row for row in rows if row["job_id"] is None and row["token"] not in tokens]
    complete = True
    if strangers or queues:
        done = await connection.fetchrow(
            text("hand_back_unknown", schema),
            [row["queue_id"] for row in queues],
            [row["token"] for row in queues],
            [row["job_id"] for row in strangers],
            [row["token"] for row in strangers],
        )
        complete = done is not None and (done["released"], done["freed"]) == (len(strangers), len(queues))
        logger.info("handed back jobs whose claim was carried out although its reply was lost: %d", len(strangers))
    locked = {(row["job_id"], row["token"]) for row in rows}
    for job in before.values():
        if held.get(job.id) is job and (job.id, job.token) not in locked:
            on_lost(job)
    return complete
