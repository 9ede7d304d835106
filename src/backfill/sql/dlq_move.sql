-- fragment: fail_again
-- What a failure does to an entry `q` that is there already: it is here, with the newest of everything; what that replaces
-- goes into its history. Items of a batch that join others of the same key replace nothing. `excluded` is the entry as it would be if it were new.
requeued_job_id = null,
         original_job_id = excluded.original_job_id,
         task_identifier = excluded.task_identifier,
         payload = case when q.requeued_job_id is null
                         and jsonb_typeof(q.payload) = 'array' and jsonb_typeof(excluded.payload) = 'array'
                        then q.payload || excluded.payload  -- as in the queue: arrays under one key add up
                        else excluded.payload end,
         queue_name = excluded.queue_name,
         priority = excluded.priority,
         max_attempts = excluded.max_attempts,
         flags = excluded.flags,
         failure_reason = excluded.failure_reason,
         failure_count = q.failure_count + 1,
         last_error = excluded.last_error,
         original_run_at = excluded.original_run_at,
         failed_at = now(),
         created_by = excluded.created_by,
         history = coalesce(q.history, '[]'::jsonb) || jsonb_build_array(
           jsonb_build_object('failed_at', q.failed_at, 'failure_reason', q.failure_reason, 'last_error', q.last_error)
           || case when q.task_identifier is distinct from excluded.task_identifier
                   then jsonb_build_object('task_identifier', q.task_identifier) else '{}'::jsonb end
           || case when q.payload is distinct from excluded.payload
                    and (q.requeued_job_id is not null
                         or jsonb_typeof(q.payload) <> 'array' or jsonb_typeof(excluded.payload) <> 'array')
                   then jsonb_build_object('payload', q.payload) else '{}'::jsonb end)

-- fragment: dead_letter_move
-- Moves the rows of a CTE `dead` (jobs already locked by this statement) to the dead letter queue.
-- `dead` has: id, task_identifier, queue_name (null = parallel), key, payload, priority, max_attempts,
-- created_at, run_at, flags, reason, error, moved_by.
-- A job that was requeued brings its own entry back; a keyed one updates the entry of its key; else a new entry.
-- Two rows of one statement never meet in one entry: an entry whose key another dead job carries is left to that job.
entry as materialized (
  select dead.id as original_job_id, dead.task_identifier, graphile_worker.backfill_to_jsonb(dead.payload) as payload,
         coalesce(dead.queue_name, '') as queue_name, dead.priority, dead.key as job_key, dead.max_attempts,
         nullif(dead.flags - 'backfill:dlq', '{}'::jsonb) as flags, dead.reason as failure_reason, dead.error as last_error,
         dead.created_at as original_created_at, dead.run_at as original_run_at, dead.moved_by as created_by
    from dead
),
-- Looked up job by job: whatever the planner thinks, the cost must not grow with what is out.
own as materialized (
  select entry.*, found.id as dlq_id
    from entry
   cross join lateral (
     select q.id
       from graphile_worker.backfill_dlq as q
      where q.requeued_job_id = entry.original_job_id  -- the job's flag is a hint only: an add under its key drops it
        and (q.job_key is null
             or q.job_key = entry.job_key
             or q.job_key <> all(array(select other.job_key from entry as other where other.job_key is not null)))
      limit 1
   ) as found
),
back as (
  update graphile_worker.backfill_dlq as q
     set
-- include: fail_again
    from own as excluded
   where q.id = any(array(select own.dlq_id from own))
     and q.id = excluded.dlq_id
     and q.requeued_job_id is not distinct from excluded.original_job_id  -- not =, which would lead over all that is out
  returning excluded.original_job_id as job_id, q.id as dlq_id
),
buried as (
  insert into graphile_worker.backfill_dlq as q
         (original_job_id, task_identifier, payload, queue_name, priority, job_key, max_attempts, flags,
          failure_reason, last_error, original_created_at, original_run_at, created_by)
  select entry.original_job_id, entry.task_identifier, entry.payload, entry.queue_name, entry.priority, entry.job_key,
         entry.max_attempts, entry.flags, entry.failure_reason, entry.last_error, entry.original_created_at,
         entry.original_run_at, entry.created_by
    from entry
   where not exists (select 1 from back where back.job_id = entry.original_job_id)
  on conflict (job_key) where job_key is not null do update
     set original_created_at = excluded.original_created_at,
-- include: fail_again
  returning q.original_job_id as job_id, q.id as dlq_id
),
moved as (
  select job_id, dlq_id from back
  union all
  select job_id, dlq_id from buried
),
gone as (
  delete from graphile_worker._private_jobs as jobs
   where jobs.id = any(array(select moved.job_id from moved))
  returning jobs.id
)

-- fragment: is_overdue
-- Whether the deadline of the row `jobs` has passed. Deadlines are written in UTC, so that their texts sort as they do.
case when jsonb_typeof(jobs.flags) = 'object'
          then exists (select 1
                         from jsonb_object_keys(jobs.flags) as flags(name)
                        where flags.name collate "C" between 'backfill:deadline=' and
                              'backfill:deadline=' || to_char(now() at time zone 'utc', 'YYYY-MM-DD"T"HH24:MI:SS')
                          and flags.name ~ '^backfill:deadline=\d{4}-\d\d-\d\dT')
          else false end

-- fragment: dead_columns
-- What a CTE `dead` takes over from a row `held` of the queue.
         held.id, coalesce(tasks.identifier, format('unknown task %s', held.task_id)) as task_identifier,
         queues.queue_name, held.key, held.payload, held.priority, held.max_attempts, held.created_at, held.run_at, held.flags,

-- fragment: from_held
    from held
    left join graphile_worker._private_tasks as tasks on tasks.id = held.task_id
    left join graphile_worker._private_job_queues as queues on queues.id = held.job_queue_id

-- name: bury_exhausted_jobs
-- Moves jobs that nobody holds and that will not run any more to the dead letter queue: used-up ones, which other workers and
-- crashes left behind, and those whose deadline has passed while no worker came to them.
-- Walks the primary key from $1 in pages of $2, so that its cost does not depend on what the queue holds behind it.
-- takes: after_id int8, page int4, moved_by text
-- gives: moved int8, last_id int8, looked_at int8
with page as materialized (
  select jobs.id, jobs.attempts >= jobs.max_attempts and jobs.locked_at is null as used_up,
         jobs.flags is not null and jobs.locked_at is null and
-- include: is_overdue
         as overdue
    from graphile_worker._private_jobs as jobs
   where jobs.id > $1::int8
   order by jobs.id
   limit $2::int4
),
held as materialized (
  select found.*
    from page
   cross join lateral (
     select jobs.*
       from graphile_worker._private_jobs as jobs
      where jobs.id = page.id
        and (page.used_up or page.overdue)
        and (jobs.attempts >= jobs.max_attempts or
-- include: is_overdue
            )
        and jobs.locked_at is null
        for update skip locked
   ) as found
),
dead as materialized (
  select
-- include: dead_columns
         case when held.attempts >= held.max_attempts
              then format('Job exceeded maximum retry attempts (%s/%s)', held.attempts, held.max_attempts)
              else 'Job''s deadline passed before it could run' end as reason,
         case when held.last_error is not null then jsonb_build_object('message', held.last_error) end as error,
         $3::text as moved_by
-- include: from_held
),
-- include: dead_letter_move
select (select count(*) from moved) as moved,
       (select max(page.id) from page) as last_id,
       (select count(*) from page) as looked_at

-- name: bury_jobs
-- Moves the given jobs to the dead letter queue, those that run now left out: an operator's decision, with a reason.
-- takes: job_ids int8[], reason text, moved_by text
-- gives: job_id int8, dlq_id int8
with held as materialized (
  select jobs.*
    from graphile_worker._private_jobs as jobs
   where jobs.id = any($1::int8[])
     and (jobs.locked_at is null or jobs.locked_at < now() - interval '4 hours')
     for update skip locked
),
dead as materialized (
  select
-- include: dead_columns
         $2::text as reason,
         case when held.last_error is not null then jsonb_build_object('message', held.last_error) end as error,
         $3::text as moved_by
-- include: from_held
),
-- include: dead_letter_move
select moved.job_id, moved.dlq_id from moved

-- name: settle_cancellations
-- Cancels jobs that are to be cancelled and that nobody holds (any more): their worker died, or handed them back. Forgets the
-- wishes about jobs that are gone. With $2 false (the dead letter queue is off) a job that was to become a dead letter stays
-- in the queue, used up.
-- takes: moved_by text, bury bool
-- gives: settled int8
with wanted as materialized (
  select cancellations.job_id, cancellations.dead_letter, cancellations.reason
    from graphile_worker.backfill_cancellations as cancellations
     for update skip locked
),
held as materialized (
  select found.*, wanted.dead_letter, wanted.reason
    from wanted
   cross join lateral (
     select jobs.*
       from graphile_worker._private_jobs as jobs
      where jobs.id = wanted.job_id
        and jobs.locked_at is null
        for update skip locked
   ) as found
),
dead as materialized (
  select
-- include: dead_columns
         'Job was cancelled' || coalesce(': ' || held.reason, '') as reason,
         case when held.last_error is not null then jsonb_build_object('message', held.last_error) end as error,
         $1::text as moved_by
-- include: from_held
   where held.dead_letter
     and $2::bool
),
-- include: dead_letter_move
,
removed as (
  delete from graphile_worker._private_jobs as jobs
   where jobs.id = any(array(select held.id from held where not held.dead_letter))
  returning jobs.id
),
returned as (
  update graphile_worker.backfill_dlq as dlq
     set requeued_job_id = null
   where dlq.requeued_job_id = any(array(select removed.id from removed))
),
kept as (
  update graphile_worker._private_jobs as jobs
     set attempts = greatest(jobs.attempts, jobs.max_attempts)
   where jobs.id = any(array(select held.id from held where held.dead_letter and not $2::bool))
  returning jobs.id
),
forgotten as (
  delete from graphile_worker.backfill_cancellations as cancellations
   where cancellations.job_id = any(array(
           select wanted.job_id
             from wanted
            where not exists (select 1 from graphile_worker._private_jobs as jobs where jobs.id = wanted.job_id)
            union all
           select moved.job_id from moved
            union all
           select removed.id from removed
            union all
           select kept.id from kept))
  returning 1
)
select count(*) as settled from forgotten

-- name: add_to_dlq
-- Moves a job as given to the dead letter queue, and out of the queue if it is there. No row: it is running.
-- takes: job_id int8, task text, queue text, key text, payload text, priority int2, max_attempts int2
-- takes: created_at timestamptz, run_at timestamptz, flags text, reason text, error text, moved_by text
-- gives: job_id int8, dlq_id int8
with held as materialized (
  select jobs.locked_at
    from graphile_worker._private_jobs as jobs
   where jobs.id = $1::int8
     for update
),
dead as materialized (
  select $1::int8 as id, $2::text as task_identifier, $3::text as queue_name, $4::text as key, $5::text::json as payload,
         $6::int2 as priority, $7::int2 as max_attempts, $8::timestamptz as created_at, $9::timestamptz as run_at,
         $10::text::jsonb as flags, $11::text as reason, $12::text::jsonb as error, $13::text as moved_by
   where not exists (select 1 from held where held.locked_at is not null)
),
-- include: dead_letter_move
select moved.job_id, moved.dlq_id from moved
