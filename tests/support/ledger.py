"""The account that is kept of jobs and their runs, and the invariant, computed from it and the queue's own tables by SQL.

* ``enqueued`` has a row for each job, written in the transaction that adds the job: so it is right whatever becomes of the
  producer. It says where the job is to end: ``done``, ``dead``, or ``either``.
* ``ledger`` has a row for each run, written by the handler through ``ctx.transaction()``: begun, last seen, ended. So a run
  whose claim is gone can't write, and of a run that was killed the row says how far it came.

The invariant, at any moment:

* Each job is in the queue, or in the dead letter queue, or gone; in one of them only. Gone is right if a run of it ended well.
* No two runs of one job overlap, from a run's beginning to the last that it was allowed to write; nor of one serial queue.
* No claim runs twice.
* First runs of a serial queue's jobs begin in the order of priority, run_at and id.
* Attempts never exceed max_attempts.
* No job is in the dead letter queue that is to end well.

And at the end: the queue is empty, nothing is locked, and each job is where it was to end.
"""

from collections.abc import Sequence
from typing import Any

import asyncpg
from tests.support.places import contradictions, locks

from backfill.client import BackfillClient
from backfill.db import quote_ident
from backfill.model import JobSpec

TABLES = """
create table enqueued (
  job bigint primary key,
  ends text not null,
  at timestamptz not null default clock_timestamp()
);
create table ledger (
  run bigserial primary key,
  job bigint not null,
  token text not null,
  pid int not null,
  queue text,
  priority int not null,
  run_at timestamptz not null,
  attempt int not null,
  max_attempts int not null,
  crashes int not null,
  began_at timestamptz not null default clock_timestamp(),
  seen_at timestamptz not null default clock_timestamp(),
  outcome text
);
create index on ledger (job);
create table gates (name text primary key);
"""

BREACHES = """
with
queued as (select id, attempts, max_attempts from {schema}._private_jobs),
dead as (
  select original_job_id as id, failure_count, max_attempts, failure_reason as reason
    from {schema}.backfill_dlq where requeued_job_id is null
),
well as (select distinct job as id from ledger where outcome = 'done'),
spans as (
  select *,
         max(seen_at) over (partition by job order by began_at, run rows between unbounded preceding and 1 preceding) as before,
         max(seen_at) over (partition by coalesce(queue, 'job ' || job) order by began_at, run
                            rows between unbounded preceding and 1 preceding) as before_in_queue
    from ledger
),
firsts as (
  select distinct on (job) job, queue, priority, run_at, began_at
    from ledger
   where queue is not null and attempt = 1
   order by job, run
),
ordered as (
  select *, lag(began_at) over of_queue as earlier, lag(job) over of_queue as first
    from firsts
  window of_queue as (partition by queue, priority order by run_at, job)
)
select format('job %s is lost: not in the queue, no dead letter, and no run of it ended well', job)
  from enqueued
 where not exists (select from queued where id = job)
   and not exists (select from dead where id = job)
   and not exists (select from well where id = job)
union all
select format('job %s is in the queue and in the dead letter queue', id) from queued join dead using (id)
union all
select format('job %s has %s dead letters', id, count(*)) from dead group by id having count(*) > 1
union all
select format('job %s: run %s began at %s, while another was seen at %s', job, run, began_at, before)
  from spans where began_at < before
union all
select format('queue %s: run %s of job %s began at %s, while another was seen at %s', queue, run, job, began_at, before_in_queue)
  from spans where queue is not null and began_at < before_in_queue
union all
select format('job %s ran %s times under the one claim %s', job, count(*), token)
  from ledger group by job, token having count(*) > 1
union all
select format('queue %s: job %s began at %s, before job %s, which comes first, at %s', queue, job, began_at, first, earlier)
  from ordered where began_at < earlier
union all
select format('job %s has had %s of %s attempts', id, attempts, max_attempts) from queued where attempts > max_attempts
union all
select format('job %s ran as attempt %s of %s', job, attempt, max_attempts) from ledger where attempt > max_attempts
union all
select format('job %s is a dead letter after %s of %s attempts', id, failure_count, max_attempts)
  from dead where failure_count > max_attempts
union all
select format('job %s is a dead letter: it should have ended well', job)
  from enqueued join dead on id = job
 where ends = 'done'
   and not (reason like 'Job killed its worker:%'  -- four workers died with it in their hands; not all of its runs came to be noted
            and (select count(distinct pid) from ledger where ledger.job = id and outcome is null) > 1)
"""

UNFINISHED = """
select format('job %s is still in the queue: %s of %s attempts, due %s, last error %s, locked by %s',
              id, attempts, max_attempts, run_at, last_error, locked_by)
  from {schema}._private_jobs
union all
select format('job %s should be a dead letter and is none', job)
  from enqueued
 where ends = 'dead' and not exists (select from {schema}.backfill_dlq where original_job_id = job)
"""

COUNTS = """
select (select count(*) from enqueued) as enqueued,
       (select count(*) from enqueued where not exists (select from {schema}._private_jobs where id = job)
           and not exists (select from {schema}.backfill_dlq where original_job_id = job)) as done,
       (select count(*) from {schema}.backfill_dlq) as dead,
       (select count(*) from {schema}._private_jobs) as queued,
       (select count(*) from ledger) as runs,
       (select count(*) from (select from ledger where outcome = 'done' group by job having count(*) > 1) as again)
           as done_again
"""

Added = tuple[str, Any, JobSpec, str]


async def make_ledger(connection: asyncpg.Connection) -> None:
    """Create the tables."""
    await connection.execute(TABLES)


async def enqueue(client: BackfillClient, jobs: Sequence[Added], connection: asyncpg.Connection) -> list[int]:
    """Add jobs and note them, in one transaction; their ids.

    Args:
        client: Adds them.
        jobs: Task, payload, spec, and where it is to end.
        connection: In whose transaction; a new one is begun there.
    """
    async with connection.transaction():
        added = await client.enqueue_many([job[:3] for job in jobs], connection=connection)
        ids = [outcome.unwrap().id for outcome in added]
        ends = [job[3] for job in jobs]
        await connection.execute("insert into enqueued select * from unnest($1::bigint[], $2::text[])", ids, ends)
    return ids


async def breaches(connection: asyncpg.Connection, schema: str) -> list[str]:
    """What breaks the invariant at this moment, in words; from one snapshot."""
    rows = await connection.fetch(BREACHES.format(schema=quote_ident(schema)))
    return [row[0] for row in rows]


async def breaches_at_the_end(connection: asyncpg.Connection, schema: str) -> list[str]:
    """What breaks the invariant once everything that can run has run, in words."""
    found = await breaches(connection, schema)
    found += [row[0] for row in await connection.fetch(UNFINISHED.format(schema=quote_ident(schema)))]
    found += [f"{token} holds a lock" for token in await locks(connection, schema)]
    counted = await counts(connection, schema)
    if counted["enqueued"] != counted["done"] + counted["dead"] + counted["queued"]:
        found.append(f"the sums differ: {counted}")
    return found + await contradictions(connection, schema)


async def counts(connection: asyncpg.Connection, schema: str) -> dict[str, int]:
    """Where the jobs are: enqueued, done, dead, queued; how many runs there were; and how many jobs were done more than once."""
    (row,) = await connection.fetch(COUNTS.format(schema=quote_ident(schema)))
    return dict(row)
