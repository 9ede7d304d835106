-- fragment: job_columns
-- The columns of a job, of `jobs`, `tasks` and `queues`.
jobs.id, coalesce(tasks.identifier, format('unknown task %s', jobs.task_id)) as task_identifier, queues.queue_name,
       jobs.payload::text as payload, jobs.priority, jobs.run_at, jobs.attempts, jobs.max_attempts, jobs.last_error,
       jobs.created_at, jobs.updated_at, jobs.key, jobs.locked_at, jobs.locked_by, jobs.revision,
       jobs.flags::text as flags

-- fragment: state_of_job
-- What a job is doing; of `jobs`.
case when jobs.locked_at is not null then 'running'
            when jobs.attempts >= jobs.max_attempts then 'dead'
            when jobs.attempts > 0 then 'failed'
            when jobs.run_at > now() then 'scheduled'
            else 'ready' end

-- fragment: names_of_jobs
left join graphile_worker._private_tasks as tasks on tasks.id = jobs.task_id
  left join graphile_worker._private_job_queues as queues on queues.id = jobs.job_queue_id

-- fragment: chosen_jobs
-- Whether a job is one of those asked for: $1 task, $2 queue (empty = the parallel one), $3 key, $4 state; null = any.
($1::text is null or tasks.identifier = $1::text)
   and ($2::text is null or coalesce(queues.queue_name, '') = $2::text)
   and ($3::text is null or jobs.key = $3::text)
   and ($4::text is null
        or $4::text = case when jobs.locked_at is not null then 'running'
                           when jobs.attempts >= jobs.max_attempts then 'dead'
                           when jobs.attempts > 0 then 'failed'
                           when jobs.run_at > now() then 'scheduled'
                           else 'ready' end)

-- fragment: wake
-- Tells workers how many of the jobs in the CTE `jobs` can run now.
woken as (
  select pg_notify('jobs:insert', format('{"r":%s,"count":%s}', random(), count(*)))
    from jobs
   where jobs.run_at <= clock_timestamp()
     and jobs.is_available
  having count(*) > 0
)

-- name: get_job
-- One job; no row when there is none.
-- takes: job_id int8
-- gives: id int8, task_identifier text, queue_name text, payload text, priority int2, run_at timestamptz, attempts int2
-- gives: max_attempts int2, last_error text, created_at timestamptz, updated_at timestamptz, key text
-- gives: locked_at timestamptz, locked_by text, revision int4, flags text, state text
select
-- include: job_columns
       ,
-- include: state_of_job
       as state
  from graphile_worker._private_jobs as jobs
-- include: names_of_jobs
 where jobs.id = $1::int8

-- name: list_jobs
-- Jobs by id, those after $5 first to be looked at.
-- takes: task text, queue text, job_key text, state text, after_id int8, page int8
-- gives: id int8, task_identifier text, queue_name text, payload text, priority int2, run_at timestamptz, attempts int2
-- gives: max_attempts int2, last_error text, created_at timestamptz, updated_at timestamptz, key text
-- gives: locked_at timestamptz, locked_by text, revision int4, flags text, state text
select
-- include: job_columns
       ,
-- include: state_of_job
       as state
  from graphile_worker._private_jobs as jobs
-- include: names_of_jobs
 where
-- include: chosen_jobs
   and jobs.id > $5::int8
 order by jobs.id
 limit $6::int8

-- name: count_jobs
-- How many jobs there are, counted no further than $5.
-- takes: task text, queue text, job_key text, state text, most int8
-- gives: count int8
select count(*) as count
  from (
    select 1
      from graphile_worker._private_jobs as jobs
-- include: names_of_jobs
     where
-- include: chosen_jobs
     limit $5::int8
  ) as counted

-- name: remove_job
-- Removes the job of a key; one that is running loses its key instead, and is not retried. No row: no such key.
-- takes: job_key text
-- gives: id int8, task_identifier text, queue_name text, payload text, priority int2, run_at timestamptz, attempts int2
-- gives: max_attempts int2, last_error text, created_at timestamptz, updated_at timestamptz, key text
-- gives: locked_at timestamptz, locked_by text, revision int4, flags text
select
-- include: job_columns
  from graphile_worker.remove_job(job_key => $1::text) as jobs
-- include: names_of_jobs
 where jobs.id is not null

-- name: complete_jobs
-- Deletes jobs that nobody runs, as if they were done.
-- takes: job_ids int8[]
-- gives: id int8, task_identifier text, queue_name text, payload text, priority int2, run_at timestamptz, attempts int2
-- gives: max_attempts int2, last_error text, created_at timestamptz, updated_at timestamptz, key text
-- gives: locked_at timestamptz, locked_by text, revision int4, flags text
select
-- include: job_columns
  from graphile_worker.complete_jobs(job_ids => $1::int8[]) as jobs
-- include: names_of_jobs
 order by jobs.id

-- name: cancel_jobs
-- Deletes jobs that nobody has locked.
-- takes: job_ids int8[]
-- gives: id int8, task_identifier text, queue_name text, payload text, priority int2, run_at timestamptz, attempts int2
-- gives: max_attempts int2, last_error text, created_at timestamptz, updated_at timestamptz, key text
-- gives: locked_at timestamptz, locked_by text, revision int4, flags text
with jobs as (
  delete from graphile_worker._private_jobs as jobs
   where jobs.id = any($1::int8[])
     and jobs.locked_at is null
  returning jobs.id, jobs.job_queue_id, jobs.task_id, jobs.payload, jobs.priority, jobs.run_at, jobs.attempts,
            jobs.max_attempts, jobs.last_error, jobs.created_at, jobs.updated_at, jobs.key, jobs.locked_at, jobs.locked_by,
            jobs.revision, jobs.flags
)
select
-- include: job_columns
  from jobs
-- include: names_of_jobs
 order by jobs.id

-- name: lock_waiting
-- The jobs that nobody has locked, which now nobody else can change until the transaction's end.
-- takes: job_ids int8[]
-- gives: id int8, task_identifier text, queue_name text, payload text, priority int2, run_at timestamptz, attempts int2
-- gives: max_attempts int2, last_error text, created_at timestamptz, updated_at timestamptz, key text
-- gives: locked_at timestamptz, locked_by text, revision int4, flags text
with jobs as materialized (
  select jobs.*
    from graphile_worker._private_jobs as jobs
   where jobs.id = any($1::int8[])
     and jobs.locked_at is null
     for update skip locked
)
select
-- include: job_columns
  from jobs
-- include: names_of_jobs
 order by jobs.id

-- name: request_cancellations
-- Notes that the jobs that run are to be cancelled: $2 says whether they become dead letters or go, $3 why.
-- takes: job_ids int8[], dead_letter bool, reason text
-- gives: id int8, task_identifier text, queue_name text, payload text, priority int2, run_at timestamptz, attempts int2
-- gives: max_attempts int2, last_error text, created_at timestamptz, updated_at timestamptz, key text
-- gives: locked_at timestamptz, locked_by text, revision int4, flags text
with wanted as materialized (
  insert into graphile_worker.backfill_cancellations as cancellations (job_id, dead_letter, reason)
  select jobs.id, $2::bool, $3::text
    from graphile_worker._private_jobs as jobs
   where jobs.id = any($1::int8[])
     and jobs.locked_at is not null
   order by jobs.id
  on conflict (job_id) do update set dead_letter = excluded.dead_letter, reason = excluded.reason
  returning cancellations.job_id
)
select
-- include: job_columns
  from wanted
  join graphile_worker._private_jobs as jobs on jobs.id = wanted.job_id
-- include: names_of_jobs
 order by jobs.id

-- name: tell_of_cancellations
-- Has workers look at once whether a job of theirs is to be cancelled.
-- gives: told int8
select count(pg_notify('backfill:cancel', '')) as told

-- name: jobs_of_dead
-- The jobs that release_dead would release, for hooks that are asked about them; they stay as they are until the transaction's end.
-- takes: worker_ids text[]
-- gives: id int8, task_identifier text, queue_name text, payload text, priority int2, run_at timestamptz, attempts int2
-- gives: max_attempts int2, last_error text, created_at timestamptz, updated_at timestamptz, key text
-- gives: locked_at timestamptz, locked_by text, revision int4, flags text
with jobs as materialized (
  select jobs.*
    from graphile_worker._private_jobs as jobs
   where starts_with(jobs.locked_by, 'backfill-')
     and (split_part(jobs.locked_by, '/', 1) = any($1::text[])
          or not exists (select 1 from graphile_worker.backfill_workers as workers
                          where workers.id = split_part(jobs.locked_by, '/', 1)))
     for update skip locked
)
select
-- include: job_columns
  from jobs
-- include: names_of_jobs
 order by jobs.id

-- name: reschedule_jobs
-- Changes when, how urgently and how often jobs that nobody runs are to run; what is null stays. Those that are due by
-- now start now.
-- takes: job_ids int8[], run_at timestamptz, priority int4, attempts int4, max_attempts int4
-- gives: id int8, task_identifier text, queue_name text, payload text, priority int2, run_at timestamptz, attempts int2
-- gives: max_attempts int2, last_error text, created_at timestamptz, updated_at timestamptz, key text
-- gives: locked_at timestamptz, locked_by text, revision int4, flags text
with jobs as materialized (
  select *
    from graphile_worker.reschedule_jobs(job_ids => $1::int8[], run_at => $2::timestamptz, priority => $3::int4,
                                         attempts => $4::int4, max_attempts => $5::int4)
),
-- include: wake
select
-- include: job_columns
  from jobs
-- include: names_of_jobs
 where (select count(*) from woken) is not null
 order by jobs.id

-- name: retry_jobs
-- Has jobs that nobody runs start from the beginning, now: no attempts used, due at once.
-- takes: job_ids int8[]
-- gives: id int8, task_identifier text, queue_name text, payload text, priority int2, run_at timestamptz, attempts int2
-- gives: max_attempts int2, last_error text, created_at timestamptz, updated_at timestamptz, key text
-- gives: locked_at timestamptz, locked_by text, revision int4, flags text
with jobs as materialized (
  select * from graphile_worker.reschedule_jobs(job_ids => $1::int8[], run_at => now(), attempts => 0)
),
-- include: wake
select
-- include: job_columns
  from jobs
-- include: names_of_jobs
 where (select count(*) from woken) is not null
 order by jobs.id

-- name: force_unlock_workers
-- Takes all locks of the given workers away, of jobs and of queues: the lock's owner is one of the names, or one of them
-- with a claim's number behind a slash. Freed jobs that are due start now.
-- takes: worker_ids text[]
-- gives: jobs int8, queues int8
with jobs as (
  update graphile_worker._private_jobs as jobs
     set locked_at = null, locked_by = null
   where jobs.locked_by = any($1::text[])
      or split_part(jobs.locked_by, '/', 1) = any($1::text[])
  returning jobs.id, jobs.run_at, jobs.is_available
),
freed_queue as (
  update graphile_worker._private_job_queues as queues
     set locked_at = null, locked_by = null
   where queues.locked_by = any($1::text[])
      or split_part(queues.locked_by, '/', 1) = any($1::text[])
  returning queues.id
),
-- include: wake
select (select count(*) from jobs) as jobs,
       (select count(*) from freed_queue) as queues
 where (select count(*) from woken) is not null

-- name: delete_dead_jobs
-- Deletes jobs that have used up their attempts and that nobody holds, at most $2 with an id above $1; rows that somebody
-- has locked are left alone. requeued: those that came out of the dead letter queue.
-- takes: after_id int8, page int4
-- gives: last_id int8, deleted int8, requeued int8[]
with dead as materialized (
  select jobs.id, jobs.flags ? 'backfill:dlq' as requeued
    from graphile_worker._private_jobs as jobs
   where jobs.id > $1::int8
     and jobs.attempts >= jobs.max_attempts
     and jobs.locked_at is null
   order by jobs.id
   limit $2::int4
     for update skip locked
),
gone as (
  delete from graphile_worker._private_jobs as jobs
   using dead
   where jobs.id = dead.id
  returning jobs.id
)
select (select max(dead.id) from dead) as last_id,
       (select count(*) from gone) as deleted,
       array(select dead.id from dead where dead.requeued) as requeued

-- name: unused_tasks
-- The ids of tasks that no job belongs to, without those of the names to keep.
-- takes: keep text[]
-- gives: ids int4[]
select array(
  select tasks.id
    from graphile_worker._private_tasks as tasks
   where tasks.identifier <> all($1::text[])
     and not exists (select 1 from graphile_worker._private_jobs as jobs where jobs.task_id = tasks.id)
   order by tasks.id) as ids

-- name: lock_tasks
-- Locks those of the given tasks that nobody else holds: an open transaction that adds a job holds its task.
-- takes: ids int4[]
-- gives: ids int4[]
select array(
  select tasks.id
    from graphile_worker._private_tasks as tasks
   where tasks.id = any($1::int4[])
   order by tasks.id
     for update skip locked) as ids

-- name: delete_tasks
-- Deletes those of the given tasks that no job belongs to. To be sent after lock_tasks, in its transaction: a statement of
-- its own sees the jobs that were committed until the lock was there, and none can come while it is.
-- takes: ids int4[]
-- gives: deleted int8
with gone as (
  delete from graphile_worker._private_tasks as tasks
   where tasks.id = any($1::int4[])
     and not exists (select 1 from graphile_worker._private_jobs as jobs where jobs.task_id = tasks.id)
  returning 1
)
select count(*) as deleted from gone

-- name: unused_queues
-- The ids of queues that nobody holds and no job belongs to.
-- gives: ids int4[]
select array(
  select queues.id
    from graphile_worker._private_job_queues as queues
   where queues.locked_at is null
     and not exists (select 1 from graphile_worker._private_jobs as jobs where jobs.job_queue_id = queues.id)
   order by queues.id) as ids

-- name: lock_queues
-- Locks those of the given queues that nobody holds.
-- takes: ids int4[]
-- gives: ids int4[]
select array(
  select queues.id
    from graphile_worker._private_job_queues as queues
   where queues.id = any($1::int4[])
     and queues.locked_at is null
   order by queues.id
     for update skip locked) as ids

-- name: delete_queues
-- Deletes those of the given queues that no job belongs to. To be sent after lock_queues, in its transaction.
-- takes: ids int4[]
-- gives: deleted int8
with gone as (
  delete from graphile_worker._private_job_queues as queues
   where queues.id = any($1::int4[])
     and queues.locked_at is null
     and not exists (select 1 from graphile_worker._private_jobs as jobs where jobs.job_queue_id = queues.id)
  returning 1
)
select count(*) as deleted from gone
