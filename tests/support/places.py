"""Where jobs are, counted from the database: in the queue, in the dead letter queue, in both, or in neither.

A test's jobs carry a number of its own in their payload, `{"job": 17, …}`, since a job that comes back out of the dead
letter queue has a new id. Where a job with that number can be:

* `queue`: a row of the queue.
* `dead`: an entry of the dead letter queue that is not out as a job.
* `history`: overwritten in an entry by a later dead job with the same key.

An entry that is out as a job is no place of its own: it must be tied to a row of the queue.
"""

from collections import defaultdict
from collections.abc import Collection, Mapping

import asyncpg

from backfill.db import quote_ident


async def places(connection: asyncpg.Connection, schema: str) -> dict[int, list[str]]:
    """Every place where a job is found, by the job's number."""
    rows = await connection.fetch(
        f"""
        select (payload ->> 'job')::int as number, 'queue' as place from {quote_ident(schema)}._private_jobs
        union all
        select (payload ->> 'job')::int, 'dead' from {quote_ident(schema)}.backfill_dlq where requeued_job_id is null
        union all
        select (earlier -> 'payload' ->> 'job')::int, 'history'
          from {quote_ident(schema)}.backfill_dlq, jsonb_array_elements(history) as earlier
         where earlier -> 'payload' is not null
        """
    )
    found: dict[int, list[str]] = defaultdict(list)
    for row in rows:
        found[row["number"]].append(row["place"])
    return found


async def contradictions(connection: asyncpg.Connection, schema: str) -> list[str]:
    """What cannot be true of tables that nobody is writing to, in words; empty if all is well.

    Args:
        connection: Reads the tables.
        schema: The schema.
    """
    rows = await connection.fetch(
        f"""
        select format('entry %s is out as job %s, which is not there', entries.id, entries.requeued_job_id) as wrong
          from {quote_ident(schema)}.backfill_dlq as entries
         where requeued_job_id is not null
           and not exists (select from {quote_ident(schema)}._private_jobs as jobs where jobs.id = requeued_job_id)
        union all
        select format('entry %s is out as job %s, whose payload is another', entries.id, jobs.id)
          from {quote_ident(schema)}.backfill_dlq as entries
          join {quote_ident(schema)}._private_jobs as jobs on jobs.id = requeued_job_id
         where jobs.payload ->> 'job' <> entries.payload ->> 'job'
           and jobs.revision = 0  -- not added again under its key
        union all
        select format('job %s came out of the dead letter queue, but no entry is out as it', jobs.id)
          from {quote_ident(schema)}._private_jobs as jobs
         where jobs.flags ? 'backfill:dlq'
           and not exists (select from {quote_ident(schema)}.backfill_dlq where requeued_job_id = jobs.id)
        union all
        select format('queue %s is locked by %s, and none of its jobs is', queues.queue_name, queues.locked_by)
          from {quote_ident(schema)}._private_job_queues as queues
         where queues.locked_by is not null
           and not exists (select from {quote_ident(schema)}._private_jobs as jobs
                            where jobs.job_queue_id = queues.id and jobs.locked_by = queues.locked_by)
        union all
        select format('job %s is locked by %s, and its queue is not', jobs.id, jobs.locked_by)
          from {quote_ident(schema)}._private_jobs as jobs
          join {quote_ident(schema)}._private_job_queues as queues on queues.id = jobs.job_queue_id
         where jobs.locked_by is not null
           and jobs.locked_by is distinct from queues.locked_by
        """
    )
    return [row["wrong"] for row in rows]


async def locks(connection: asyncpg.Connection, schema: str) -> list[str]:
    """Who holds locks, of jobs and of queues: one token for each."""
    rows = await connection.fetch(
        f"""
        select locked_by from {quote_ident(schema)}._private_jobs where locked_at is not null
        union all
        select locked_by from {quote_ident(schema)}._private_job_queues where locked_at is not null
        """
    )
    return [row["locked_by"] for row in rows]


def misplaced(found: Mapping[int, list[str]], allowed: Mapping[int, Collection[str]]) -> list[str]:
    """Jobs that are in two places, or not where they may be, in words.

    Args:
        found: What `places` gave.
        allowed: For each job's number where it may be; the empty text stands for being nowhere: done.
    """
    wrong = [f"job {number} should not exist: {found[number]}" for number in found.keys() - allowed.keys()]
    for number, may in allowed.items():
        where = found.get(number, [])
        if len(where) > 1 or (where[0] if where else "") not in may:
            wrong.append(f"job {number} is in {where or 'no place'}, and may be in {sorted(may)}")
    return wrong
