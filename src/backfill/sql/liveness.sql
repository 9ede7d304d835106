-- name: register_worker
-- Makes a worker's row, or brings it back to life: its old claims may be gone, and are known by tokens that no new claim has.
-- takes: id text, host text, pid int4, version text, lanes text, tasks text[], state text, lease_seconds float8
-- gives: nothing
insert into graphile_worker.backfill_workers
       (id, host, pid, version, lanes, tasks, state, lease, heartbeat_at)
values ($1::text, $2::text, $3::int4, $4::text, $5::text::jsonb, $6::text[], $7::text, $8::float8 * interval '1 second',
        clock_timestamp())
on conflict (id) do update
   set state = excluded.state,
       lease = excluded.lease,
       heartbeat_at = clock_timestamp(),
       dead_at = null

-- name: beat
-- Says that a worker lives, and what it runs ($3 ids, $4 for how many seconds). No row: it counts as dead, or its row is gone.
-- cancelled: those of its jobs that somebody wants cancelled; unsettled: whether there are such jobs that nobody holds.
-- takes: id text, state text, running int8[], ages float8[], loop_lag float8
-- gives: alive bool, cancelled int8[], unsettled bool
update graphile_worker.backfill_workers as workers
   set heartbeat_at = clock_timestamp(),
       state = $2::text,
       running = $3::int8[],
       running_since = array(
         select clock_timestamp() - given.age * interval '1 second'
           from unnest($4::float8[]) with ordinality as given(age, number)
          order by given.number),
       loop_lag = $5::float8
 where workers.id = $1::text
   and workers.dead_at is null
returning true as alive,
          array(select jobs.id
                  from graphile_worker.backfill_cancellations as cancellations
                  join graphile_worker._private_jobs as jobs on jobs.id = cancellations.job_id
                 where starts_with(jobs.locked_by, $1::text || '/')) as cancelled,
          exists (select 1
                    from graphile_worker.backfill_cancellations as cancellations
                    left join graphile_worker._private_jobs as jobs on jobs.id = cancellations.job_id
                   where jobs.locked_at is null) as unsettled

-- name: remove_worker
-- Takes a worker out that has ended in order and holds nothing.
-- takes: id text
-- gives: nothing
delete from graphile_worker.backfill_workers as workers
 where workers.id = $1::text

-- name: refresh_locks
-- Sets the locks of long jobs and their queues to now, so that no rule about the age of locks takes them for forgotten ones.
-- Never waits for a row that somebody has locked. A job that was superseded while it runs is known by having been changed
-- after its claim, and stays known.
-- takes: queue_ids int4[], queue_tokens text[], job_ids int8[], tokens text[]
-- gives: jobs int8, queues int8
with held as materialized (
  select found.id
    from unnest($3::int8[], $4::text[]) as given(id, token)
   cross join lateral (
     select jobs.id
       from graphile_worker._private_jobs as jobs
      where jobs.id = given.id
        and jobs.locked_by = given.token
        for update skip locked
   ) as found
),
held_queue as materialized (
  select found.id
    from unnest($1::int4[], $2::text[]) as given(id, token)
   cross join lateral (
     select queues.id
       from graphile_worker._private_job_queues as queues
      where queues.id = given.id
        and queues.locked_by = given.token
        for update skip locked
   ) as found
),
job as (
  update graphile_worker._private_jobs as jobs
     set updated_at = case when jobs.key is null and jobs.attempts >= jobs.max_attempts and jobs.updated_at > jobs.locked_at
                           then clock_timestamp()
                           else jobs.updated_at end,
         locked_at = now()
   where jobs.id = any(array(select held.id from held))
  returning 1
),
queue as (
  update graphile_worker._private_job_queues as queues
     set locked_at = now()
   where queues.id = any(array(select held_queue.id from held_queue))
  returning 1
)
select (select count(*) from job) as jobs,
       (select count(*) from queue) as queues

-- name: late_workers
-- The workers, but for $1, whose last beat is longer ago than half their lease, and those that count as dead: for how many
-- seconds they still have a lease.
-- takes: id text
-- gives: id text, heartbeat_at timestamptz, lease_seconds float8, left_seconds float8, dead bool
select workers.id, workers.heartbeat_at,
       extract(epoch from workers.lease)::float8 as lease_seconds,
       extract(epoch from workers.heartbeat_at + workers.lease - clock_timestamp())::float8 as left_seconds,
       workers.dead_at is not null as dead
  from graphile_worker.backfill_workers as workers
 where workers.id <> $1::text
   and (workers.dead_at is not null or workers.heartbeat_at + workers.lease / 2 < clock_timestamp())

-- fragment: expired_workers
-- Those of the workers $1 that have not moved since their beat of $2 and whose lease has ended, or that count as dead.
select workers.id
  from unnest($1::text[], $2::timestamptz[]) as seen(id, heartbeat_at)
 cross join lateral (
   select known.id
     from graphile_worker.backfill_workers as known
    where known.id = seen.id
      and known.heartbeat_at = seen.heartbeat_at
      and (known.dead_at is not null or known.heartbeat_at + known.lease < clock_timestamp())

-- name: end_connections_of_dead
-- Ends the sessions of workers whose lease has ended that are in a statement or a transaction, which may hold locks; those of
-- their handlers, too. Waits for the end of the last one, up to $3 milliseconds: what they held is free then. Those of other
-- roles are left to the server's own limits. An idle one holds nothing: a worker that comes back goes on with it, and behind a
-- pooler it may be somebody else's in a moment.
-- takes: ids text[], heartbeats timestamptz[], patience int8
-- gives: ended int8
select count(*) filter (where pg_terminate_backend(busy.pid, case when busy.place = busy.number then $3::int8 else 0 end)) as ended
  from (
    select activity.pid, row_number() over (order by activity.pid) as place, count(*) over () as number
      from (
-- include: expired_workers
       ) as workers
      ) as expired
      join pg_stat_activity as activity on starts_with(activity.application_name, expired.id || ':')
     where activity.datname = current_database()
       and activity.state is distinct from 'idle'
       and pg_has_role(activity.usesysid, 'member')
  ) as busy

-- name: mark_dead
-- Declares workers dead whose lease has ended. It waits for no claim of theirs that is under way, but leaves them for the next
-- time; a claim that comes later finds the worker dead. running: what they were known to run.
-- takes: ids text[], heartbeats timestamptz[]
-- gives: id text, running int8[]
with expired as materialized (
-- include: expired_workers
       for update skip locked
   ) as workers
)
update graphile_worker.backfill_workers as workers
   set dead_at = coalesce(workers.dead_at, clock_timestamp())
 where workers.id = any(array(select expired.id from expired))
returning workers.id, workers.running

-- name: remove_dead
-- Takes dead workers out that hold nothing any more.
-- takes: ids text[]
-- gives: id text
delete from graphile_worker.backfill_workers as workers
 where workers.id = any($1::text[])
   and workers.dead_at is not null
   and not exists (select 1 from graphile_worker._private_jobs as jobs
                    where starts_with(jobs.locked_by, 'backfill-') and split_part(jobs.locked_by, '/', 1) = workers.id)
   and not exists (select 1 from graphile_worker._private_job_queues as queues
                    where starts_with(queues.locked_by, 'backfill-') and split_part(queues.locked_by, '/', 1) = workers.id)
returning workers.id

-- name: announce_jobs
-- Tells workers that so many jobs can run.
-- takes: jobs int8
-- gives: told int8
select count(pg_notify('jobs:insert', json_build_object('r', random(), 'count', $1::int8)::text)) as told

-- name: bound_transaction
-- Has the server end this transaction if its client freezes in the middle of it.
-- takes: patience text
-- gives: patience text
select set_config('idle_in_transaction_session_timeout', $1::text, true) as patience

-- name: hold_claim
-- Whether a job still carries its claim's token; if so nobody can take it away until this transaction has ended.
-- takes: job_id int8, token text
-- gives: held bool
select true as held
  from graphile_worker._private_jobs as jobs
 where jobs.id = $1::int8
   and jobs.locked_by = $2::text
   for key share

-- name: list_workers
-- All workers, and what each ran at its last beat, the longest first.
-- gives: id text, state text, host text, pid int4, version text, lanes text, tasks text[], started_at timestamptz
-- gives: heartbeat_at timestamptz, silent_seconds float8, lease interval, loop_lag float8
-- gives: running int8[], running_tasks text[], running_seconds float8[]
select workers.id,
       case when workers.dead_at is not null or workers.heartbeat_at + workers.lease < clock_timestamp() then 'lost'
            when workers.state = 'draining' then 'draining'
            else 'alive' end as state,
       workers.host, workers.pid, workers.version, workers.lanes::text as lanes, workers.tasks, workers.started_at,
       workers.heartbeat_at,
       greatest(0, extract(epoch from clock_timestamp() - workers.heartbeat_at))::float8 as silent_seconds,
       workers.lease, workers.loop_lag,
       runs.ids as running, runs.tasks as running_tasks, runs.seconds as running_seconds
  from graphile_worker.backfill_workers as workers
 cross join lateral (
   select coalesce(array_agg(run.id order by run.since, run.id), '{}') as ids,
          coalesce(array_agg(tasks.identifier order by run.since, run.id), '{}') as tasks,
          coalesce(array_agg(greatest(0, extract(epoch from clock_timestamp() - run.since))::float8
                             order by run.since, run.id), '{}') as seconds
     from unnest(workers.running, workers.running_since) as run(id, since)
     left join graphile_worker._private_jobs as jobs on jobs.id = run.id
     left join graphile_worker._private_tasks as tasks on tasks.id = jobs.task_id
 ) as runs
 order by workers.started_at, workers.id

-- name: begin_upkeep
-- Whether nobody else does this kind of upkeep of the schema now; nobody else does until this transaction ends.
-- takes: what text, schema_name text
-- gives: ours bool
select pg_try_advisory_xact_lock(hashtextextended('backfill ' || $1::text || ' of ' || $2::text, 0)) as ours

-- name: release_stale_jobs
-- Frees jobs that others than workers of ours have locked for longer than $3 seconds; looks at $2 jobs with an id above $1. Age is
-- the only evidence there is for these. Attempts stay. orphans: locks of ours that no worker's row stands for.
-- takes: after_id int8, page int4, seconds float8
-- gives: last_id int8, released int8, orphans int8
with page as materialized (
  select jobs.id, jobs.locked_at, jobs.locked_by
    from graphile_worker._private_jobs as jobs
   where jobs.id > $1::int8
   order by jobs.id
   limit $2::int4
),
held as materialized (
  select found.id
    from page
   cross join lateral (
     select jobs.id
       from graphile_worker._private_jobs as jobs
      where jobs.id = page.id
        and jobs.locked_at = page.locked_at
        and jobs.locked_by is not distinct from page.locked_by
        for update skip locked
   ) as found
   where page.locked_at < now() - $3::float8 * interval '1 second'
     and (page.locked_by is null or not starts_with(page.locked_by, 'backfill-'))
),
returned as (
  update graphile_worker._private_jobs as jobs
     set locked_at = null,
         locked_by = null,
         run_at = greatest(jobs.run_at, now())
   where jobs.id = any(array(select held.id from held))
  returning jobs.is_available and jobs.run_at <= now() as ready
),
note as materialized (
  select pg_notify('jobs:insert', json_build_object('r', random(), 'count', count(*))::text)
    from returned
   where returned.ready
  having count(*) > 0
)
select (select max(page.id) from page) as last_id,
       (select count(*) from returned) + 0 * (select count(*) from note) as released,
       (select count(*)
          from page
         where starts_with(page.locked_by, 'backfill-')
           and not exists (select 1 from graphile_worker.backfill_workers as workers
                            where workers.id = split_part(page.locked_by, '/', 1))) as orphans

-- name: release_stale_queues
-- Frees queues that others than workers of ours have locked for longer than $1 seconds, and of which no job is locked by the same.
-- takes: seconds float8
-- gives: released int8
with stale as materialized (
  select queues.id, queues.locked_at, queues.locked_by
    from graphile_worker._private_job_queues as queues
   where queues.locked_at < now() - $1::float8 * interval '1 second'
     and (queues.locked_by is null or not starts_with(queues.locked_by, 'backfill-'))
),
busy as materialized (
  select jobs.job_queue_id, jobs.locked_by
    from graphile_worker._private_jobs as jobs
   where exists (select 1 from stale)
     and jobs.locked_at is not null
     and jobs.job_queue_id = any(array(select stale.id from stale))
),
held as materialized (
  select found.id
    from stale
   cross join lateral (
     select queues.id
       from graphile_worker._private_job_queues as queues
      where queues.id = stale.id
        and queues.locked_at = stale.locked_at
        and queues.locked_by is not distinct from stale.locked_by
        for update skip locked
   ) as found
   where not exists (select 1 from busy
                      where busy.job_queue_id = stale.id and busy.locked_by is not distinct from stale.locked_by)
),
freed as (
  update graphile_worker._private_job_queues as queues
     set locked_at = null, locked_by = null
   where queues.id = any(array(select held.id from held))
  returning 1
),
note as materialized (
  select pg_notify('jobs:insert', json_build_object('r', random(), 'count', count(*))::text)
    from freed
  having count(*) > 0
)
select (select count(*) from freed) + 0 * (select count(*) from note) as released

-- name: heal_queues
-- Makes rows anew for queues that jobs belong to and that are gone: somebody's clean-up deleted them while the jobs were being
-- added. What they were called is gone too. Looks at the jobs with ids above $1 and up to $2.
-- takes: after_id int8, last_id int8
-- gives: healed int8
with lost as materialized (
  select distinct jobs.job_queue_id as id
    from graphile_worker._private_jobs as jobs
   where jobs.id > $1::int8
     and jobs.id <= $2::int8
     and jobs.job_queue_id is not null
     and not exists (select 1 from graphile_worker._private_job_queues as queues where queues.id = jobs.job_queue_id)
),
made as (
  insert into graphile_worker._private_job_queues (id, queue_name)
  overriding system value
  select lost.id, 'backfill:lost:' || lost.id
    from lost
  on conflict do nothing
  returning 1
),
note as materialized (
  select pg_notify('jobs:insert', json_build_object('r', random(), 'count', count(*))::text)
    from made
  having count(*) > 0
)
select (select count(*) from made) + 0 * (select count(*) from note) as healed
