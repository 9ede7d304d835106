-- name: register_tasks
-- Makes sure that the tasks have rows, and gives their ids. Read again on a schedule: others may collect a row that no
-- job needs and make it anew under another id.
-- A row that somebody else makes at the same moment is out of sight of this statement; the update, which changes nothing,
-- is what gives its id.
-- takes: identifiers text[]
-- gives: id int4, identifier text
with made as (
  insert into graphile_worker._private_tasks (identifier)
  select wanted.identifier
    from unnest($1::text[]) as wanted(identifier)
   where not exists (select 1 from graphile_worker._private_tasks as tasks where tasks.identifier = wanted.identifier)
   order by wanted.identifier
  on conflict (identifier) do update set identifier = excluded.identifier
  returning id, identifier
)
select made.id, made.identifier from made
union all
select tasks.id, tasks.identifier
  from graphile_worker._private_tasks as tasks
 where tasks.identifier = any($1::text[])

-- fragment: levels
-- Every priority that some available job has, one probe of the index for each.
with recursive level(priority) as (
  (select jobs.priority
     from graphile_worker._private_jobs as jobs
    where jobs.is_available = true
    order by jobs.priority
    limit 1)
  union all
  select (select jobs.priority
            from graphile_worker._private_jobs as jobs
           where jobs.is_available = true
             and jobs.priority > level.priority
           order by jobs.priority
           limit 1)
    from level
   where level.priority is not null
)

-- name: free_queues
-- variant: free_queues_without_flags
-- The queues that the first $4 due jobs of these tasks belong to, of those that nobody holds: after a claim that left them,
-- queues whose first job somebody has locked, or is a suspect and has to wait for another, and behind whose jobs others' jobs wait
-- unseen.
-- takes: task_ids int4[], other_queues text[], passed_queues int4[], jobs int4
--+ -- takes: forbidden_flags text[]
-- gives: queue_id int4
-- include: levels
select distinct first.queue_id
  from (
    select due.queue_id
      from level
     cross join lateral (
       select jobs.job_queue_id as queue_id
         from graphile_worker._private_jobs as jobs
        where jobs.is_available = true
          and jobs.priority = level.priority
          and jobs.run_at <= now()
          and jobs.task_id = any($1::int4[])
          --+ and (jobs.flags is null or not jobs.flags ?| $5::text[])
          and (jobs.job_queue_id is not null or jobs.flags is null or strpos(jobs.flags::text, '"backfill:crashes=') = 0)
          and (jobs.job_queue_id is null
               or (jobs.job_queue_id <> all($3::int4[])
                   and (select queues.is_available and queues.queue_name <> all($2::text[])
                          from graphile_worker._private_job_queues as queues
                         where queues.id = jobs.job_queue_id)))
        order by jobs.priority, jobs.run_at
        limit $4::int4
     ) as due
     limit $4::int4
  ) as first
 where first.queue_id is not null

-- name: find_frontier
-- Where claims may begin to look for queued jobs: for each priority the time before which all due jobs are of queues that others
-- hold, and the lowest id of the queued jobs of just that time. Jobs of queues that $2 holds count as free, since it knows when
-- it frees them. passed: the queues of the jobs before it, and those that others hold, whose running jobs may come back there.
-- Should one be freed meanwhile, its later jobs must not be taken for its first: while the frontier is in use these queues are
-- left alone. Of jobs given an earlier time a frontier knows nothing.
-- takes: task_ids int4[], worker_id text, other_queues text[]
-- gives: priority int2, run_at timestamptz, id int8, passed int4[]
-- include: levels
, held as materialized (
  select queues.id
    from graphile_worker._private_job_queues as queues
   where not queues.is_available
     and not starts_with(coalesce(queues.locked_by, ''), $2::text || '/')
)
select level.priority, start.run_at,
       case when first.queue_id is not null
            then (select min(tie.id + 0)  -- not by the primary key's index, which would read all older jobs
                    from graphile_worker._private_jobs as tie
                   where tie.is_available = true
                     and tie.priority = level.priority
                     and tie.run_at = first.run_at
                     and tie.job_queue_id is not null
                     and tie.task_id = any($1::int4[]))
       end as id,
       array(select held.id from held
              union
             select passed.job_queue_id
               from graphile_worker._private_jobs as passed
              where passed.is_available = true
                and passed.priority = level.priority
                and passed.run_at < start.run_at
                and passed.job_queue_id is not null
                and passed.task_id = any($1::int4[])) as passed
  from level
  left join lateral (
    select jobs.run_at, jobs.job_queue_id as queue_id
      from graphile_worker._private_jobs as jobs
     where jobs.is_available = true
       and jobs.priority = level.priority
       and jobs.run_at <= now()
       and jobs.task_id = any($1::int4[])
       and (jobs.job_queue_id is null
            or (select (queues.is_available or starts_with(queues.locked_by, $2::text || '/'))
                       and queues.queue_name <> all($3::text[])
                  from graphile_worker._private_job_queues as queues
                 where queues.id = jobs.job_queue_id))
     order by jobs.priority, jobs.run_at
     limit 1
  ) as first on true
  left join lateral (  -- all are of held queues: from behind the last
    select jobs.run_at
      from graphile_worker._private_jobs as jobs
     where jobs.is_available = true
       and jobs.priority = level.priority
       and jobs.run_at <= now()
       and first.run_at is null
     order by jobs.priority desc, jobs.run_at desc
     limit 1
  ) as last on true
 cross join lateral (
   select coalesce(first.run_at, last.run_at + interval '1 microsecond') as run_at
 ) as start
 where start.run_at > timestamptz '0001-01-02 00:00+00'  -- Python's dates begin there

-- name: tell_others
-- Wakes every worker: a queue became free, and its next job is not one for the worker that freed it.
-- gives: told int8
select count(pg_notify('jobs:insert', json_build_object('r', random(), 'count', 1)::text)) as told

-- name: next_due
-- In how many seconds the next job of these tasks becomes due; null when none waits. One probe for each priority.
-- takes: task_ids int4[]
-- gives: seconds float8
-- include: levels
select extract(epoch from min(soon.run_at) - clock_timestamp())::float8 as seconds
  from level
 cross join lateral (
   select jobs.run_at
     from graphile_worker._private_jobs as jobs
    where jobs.is_available = true
      and jobs.priority = level.priority
      and jobs.run_at > now()
      and jobs.task_id = any($1::int4[])
    order by jobs.priority, jobs.run_at
    limit 1
 ) as soon

-- name: locks_of_worker
-- Every job and queue that a worker's claims hold, by their tokens. No index leads to locks: asked only after a reconnect
-- and seldom else.
-- takes: worker_id text
-- gives: job_id int8, queue_id int4, token text
select jobs.id as job_id, jobs.job_queue_id as queue_id, jobs.locked_by as token
  from graphile_worker._private_jobs as jobs
 where starts_with(jobs.locked_by, $1::text || '/')
union all
select null, queues.id, queues.locked_by
  from graphile_worker._private_job_queues as queues
 where starts_with(queues.locked_by, $1::text || '/')

-- name: end_backends
-- Ends the backends of that application name, and waits for their end up to $2 milliseconds each: how many there were.
-- Behind a pooler a backend that is idle is nobody's, and may be somebody else's in a moment: then only those that are in a
-- transaction.
-- takes: application_name text, patience int8, only_busy bool
-- gives: backends int8
select count(pg_terminate_backend(pid, $2::int8)) as backends
  from pg_stat_activity
 where application_name = $1::text
   and pid <> pg_backend_pid()
   and (state is distinct from 'idle' or not $3::bool)

-- name: end_predecessors
-- Ends the other backends of this session's application name, and waits for their end up to $1 milliseconds each. One that
-- has lost its client may hold locks until the network tells it so. Behind a pooler as in end_backends.
-- takes: patience int8, only_busy bool
-- gives: backends int8
select count(pg_terminate_backend(pid, $1::int8)) as backends
  from pg_stat_activity
 where application_name = current_setting('application_name')
   and pid <> pg_backend_pid()
   and (state is distinct from 'idle' or not $2::bool)

-- name: database_time
-- The database's clock: the time that decides what is due.
-- gives: now timestamptz
select now() as now

-- name: begin_scan
-- Whether this transaction is now the one that scans for used-up jobs of the schema.
-- takes: schema_name text
-- gives: ours bool
select pg_try_advisory_xact_lock(hashtextextended('backfill dead letter scan of ' || $1::text, 0)) as ours

-- name: backend
-- The id of the server's process behind this transaction. Through a pooler it is not the one that was announced to the client.
-- gives: process int4
select pg_backend_pid() as process

-- name: is_read_only
-- Whether the server, or this session of it, takes no writes.
-- gives: read_only bool
select current_setting('transaction_read_only')::bool as read_only

-- name: set_for_transaction
-- Sets settings up to the end of the transaction; how many.
-- takes: names text[], values text[]
-- gives: settings int8
select count(set_config(wanted.name, wanted.value, true)) as settings
  from unnest($1::text[], $2::text[]) as wanted(name, value)
