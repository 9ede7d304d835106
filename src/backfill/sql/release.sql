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

-- name: bury_exhausted_jobs
-- Moves used-up jobs that nobody holds to the dead letter queue: what other workers and crashes left behind.
-- Walks the primary key from $1 in pages of $2, so that its cost does not depend on what the queue holds behind it.
-- takes: after_id int8, page int4, moved_by text
-- gives: moved int8, last_id int8, looked_at int8
with page as materialized (
  select jobs.id, jobs.attempts >= jobs.max_attempts and jobs.locked_at is null as used_up
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
        and page.used_up
        and jobs.attempts >= jobs.max_attempts
        and jobs.locked_at is null
        for update skip locked
   ) as found
),
dead as materialized (
  select held.id, coalesce(tasks.identifier, format('unknown task %s', held.task_id)) as task_identifier,
         queues.queue_name, held.key, held.payload, held.priority, held.max_attempts, held.created_at, held.run_at, held.flags,
         format('Job exceeded maximum retry attempts (%s/%s)', held.attempts, held.max_attempts) as reason,
         case when held.last_error is not null then jsonb_build_object('message', held.last_error) end as error,
         $3::text as moved_by
    from held
    left join graphile_worker._private_tasks as tasks on tasks.id = held.task_id
    left join graphile_worker._private_job_queues as queues on queues.id = held.job_queue_id
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
  select held.id, coalesce(tasks.identifier, format('unknown task %s', held.task_id)) as task_identifier,
         queues.queue_name, held.key, held.payload, held.priority, held.max_attempts, held.created_at, held.run_at, held.flags,
         $2::text as reason,
         case when held.last_error is not null then jsonb_build_object('message', held.last_error) end as error,
         $3::text as moved_by
    from held
    left join graphile_worker._private_tasks as tasks on tasks.id = held.task_id
    left join graphile_worker._private_job_queues as queues on queues.id = held.job_queue_id
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
  select held.id, coalesce(tasks.identifier, format('unknown task %s', held.task_id)) as task_identifier,
         queues.queue_name, held.key, held.payload, held.priority, held.max_attempts, held.created_at, held.run_at, held.flags,
         'Job was cancelled' || coalesce(': ' || held.reason, '') as reason,
         case when held.last_error is not null then jsonb_build_object('message', held.last_error) end as error,
         $1::text as moved_by
    from held
    left join graphile_worker._private_tasks as tasks on tasks.id = held.task_id
    left join graphile_worker._private_job_queues as queues on queues.id = held.job_queue_id
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

-- fragment: free_queues
-- Frees the queues of a batch by their claims' tokens ($1 ids, $2 tokens), whether or not the jobs' rows still matched:
-- others delete rows without asking. Never waits for a row that somebody else has locked.
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
freed as (
  update graphile_worker._private_job_queues as queues
     set locked_at = null, locked_by = null
   where queues.id = any(array(select held_queue.id from held_queue))
  returning 1
)

-- fragment: delete_held
-- Deletes the finished jobs of a batch ($3 ids, $4 tokens) whose claim still stands. Never waits for a locked row.
held as materialized (
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
gone as (
  delete from graphile_worker._private_jobs as jobs
   where jobs.id = any(array(select held.id from held))
  returning jobs.id
)

-- name: release_completed
-- Deletes finished jobs whose claim still stands, and frees their queues; says which they were if somebody wants to know.
-- The tokens are those of the batch, each once: a job's row may carry any of them, so the caller must have made no later claim
-- of these jobs than the ones it sends. The rows are deleted where they were found: one that is moved in between by somebody's
-- change is not found there, counts as held, and is sent again.
-- takes: queue_ids int4[], queue_tokens text[], job_ids int8[], tokens text[], say_which bool
-- gives: released int8, freed int8, ids int8[]
with held as materialized (
  select jobs.ctid as place
    from graphile_worker._private_jobs as jobs
   where jobs.id = any($3::int8[])
     and jobs.locked_by = any($4::text[])
     for update skip locked
),
gone as (
  delete from graphile_worker._private_jobs as jobs
   where jobs.ctid = any(array(select held.place from held))
  returning jobs.id
),
-- include: free_queues
select (select count(*) from gone) as released,
       (select count(*) from freed) as freed,
       (select array_agg(gone.id) from gone where $5::bool) as ids

-- name: release_completed_requeued
-- As release_completed, for jobs that came out of the dead letter queue: their entries go with them.
-- takes: queue_ids int4[], queue_tokens text[], job_ids int8[], tokens text[], say_which bool
-- gives: released int8, freed int8, ids int8[]
with
-- include: delete_held
,
resolved as (
  delete from graphile_worker.backfill_dlq as dlq
   using gone
   where dlq.requeued_job_id = gone.id
  returning 1
),
-- include: free_queues
select (select count(*) from gone) as released,
       (select count(*) from freed) as freed,
       (select array_agg(gone.id) from gone where $5::bool) as ids

-- name: release_failed
-- Ends failed runs whose claim still stands: another try at its time, or the dead letter queue, in this one statement.
-- The row decides, as it is now: `superseded` (the claim had a key, the row has none: re-added or removed meanwhile),
-- `permanent` (the error can't be retried), `exhausted`, else `retry` after the delay; but `cancelled` if somebody wants it to
-- be, and then it becomes a dead letter or goes, as that one said. With $11 false (the dead letter
-- queue is off, or refused the row) a job that failed for good stays in the queue, used up and unlocked. `refused`: a trigger
-- of the user's kept the entry from being stored; the job is as it was.
-- $12 are payloads that take the place of the rows' (what is left of a batch), null where there is none.
-- What is added under the key of an array while it runs comes on top of it and replaces nothing: such a job, whose key
-- ($13) another array has now, is retried without the key, its attempts counted from the claim's ($14).
-- takes: queue_ids int4[], queue_tokens text[]
-- takes: job_ids int8[], tokens text[], keyed bool[], messages text[], errors text[], retryable bool[], delays float8[]
-- takes: moved_by text, bury bool, payloads text[], keys text[], runs int2[]
-- gives: job_id int8, verdict text, wait_seconds float8, dlq_id int8, attempts int2, max_attempts int2, freed int8
with held as materialized (
  select found.*, given.keyed, given.message, given.error, given.retryable, given.payload::json as left_over,
         case when given.key is not null and found.key is null and exists (
                select 1
                  from graphile_worker._private_jobs as successor
                 where successor.key = given.key
                   and json_typeof(successor.payload) = 'array')
              then least(found.attempts, given.run)
         end as added_to_in,
         cancellations.job_id is not null as is_cancelled,
         coalesce(not cancellations.dead_letter, false) as is_removed,
         cancellations.reason as cancelled_because
    from unnest($3::int8[], $4::text[], $5::bool[], $6::text[], $7::text[], $8::bool[], $12::text[], $13::text[], $14::int2[])
         as given(job, token, keyed, message, error, retryable, payload, key, run)
   cross join lateral (
     select jobs.*
       from graphile_worker._private_jobs as jobs
      where jobs.id = given.job
        and jobs.locked_by = given.token
        for update skip locked
   ) as found
    left join graphile_worker.backfill_cancellations as cancellations on cancellations.job_id = found.id
),
judged as materialized (
  select held.*, coalesce(held.added_to_in, held.attempts) as runs,
         case when held.is_cancelled then 'cancelled'
              when held.keyed and held.key is null and held.added_to_in is null then 'superseded'
              when not held.retryable then 'permanent'
              when coalesce(held.added_to_in, held.attempts) >= held.max_attempts then 'exhausted'
              else 'retry'
         end as verdict
    from held
),
retried as (
  update graphile_worker._private_jobs as jobs
     set locked_at = null,
         locked_by = null,
         last_error = ($6::text[])[array_position($3::int8[], jobs.id)],
         payload = coalesce(($12::text[])[array_position($3::int8[], jobs.id)]::json, jobs.payload),
         attempts = least(jobs.attempts, ($14::int2[])[array_position($3::int8[], jobs.id)]),
         run_at = greatest(now(), jobs.run_at) + ($9::float8[])[array_position($3::int8[], jobs.id)] * interval '1 second'
   where jobs.id = any(array(select judged.id from judged where judged.verdict = 'retry'))
  returning jobs.id, extract(epoch from jobs.run_at - clock_timestamp())::float8 as wait_seconds
),
kept as (
  update graphile_worker._private_jobs as jobs
     set locked_at = null,
         locked_by = null,
         last_error = ($6::text[])[array_position($3::int8[], jobs.id)],
         payload = coalesce(($12::text[])[array_position($3::int8[], jobs.id)]::json, jobs.payload),
         attempts = greatest(jobs.attempts, jobs.max_attempts)
   where jobs.id = any(array(select judged.id from judged where judged.verdict <> 'retry' and not judged.is_removed and not $11::bool))
  returning jobs.id
),
removed as (
  delete from graphile_worker._private_jobs as jobs
   where jobs.id = any(array(select judged.id from judged where judged.is_removed))
  returning jobs.id
),
returned as (
  update graphile_worker.backfill_dlq as dlq
     set requeued_job_id = null
   where dlq.requeued_job_id = any(array(select removed.id from removed))
),
forgotten as (
  delete from graphile_worker.backfill_cancellations as cancellations
   where cancellations.job_id = any(array(select judged.id from judged where judged.is_cancelled))
),
dead as materialized (
  select judged.id, coalesce(tasks.identifier, format('unknown task %s', judged.task_id)) as task_identifier,
         queues.queue_name, judged.key, coalesce(judged.left_over, judged.payload) as payload, judged.priority,
         judged.max_attempts,
         judged.created_at, judged.run_at, judged.flags,
         case judged.verdict
           when 'cancelled' then 'Job was cancelled while running' || coalesce(': ' || judged.cancelled_because, '')
           when 'superseded' then 'Job was superseded while running: its key was added again or removed'
           when 'permanent' then 'Job failed with an error that is not retried: ' || judged.message
           else format('Job exceeded maximum retry attempts (%s/%s)', judged.runs, judged.max_attempts)
         end as reason,
         judged.error::jsonb as error,
         $10::text as moved_by
    from judged
    left join graphile_worker._private_tasks as tasks on tasks.id = judged.task_id
    left join graphile_worker._private_job_queues as queues on queues.id = judged.job_queue_id
   where judged.verdict <> 'retry'
     and not judged.is_removed
     and $11::bool
),
-- include: dead_letter_move
,
-- include: free_queues
select judged.id as job_id,
       case when judged.verdict <> 'retry' and not judged.is_removed and $11::bool and moved.dlq_id is null then 'refused'
            else judged.verdict end as verdict,
       retried.wait_seconds, moved.dlq_id,
       judged.runs as attempts, judged.max_attempts, (select count(*) from freed) as freed
  from judged
  left join retried on retried.id = judged.id
  left join moved on moved.job_id = judged.id

-- name: hand_back
-- Gives back jobs that were claimed but not run to their end by a worker that goes on or leaves: the attempt is refunded
-- and somebody is told. A job that was superseded meanwhile has nothing left to do and goes; one that had come out of the
-- dead letter queue was not done, so its entry is back. A hook may have set the time and the attempts
-- (null: it has not).
-- An array to which others were added under its key ($7; $8 are the claims' attempts) has not been replaced: while another
-- array has the key, it goes back without it; when none has any more, the key's next job has run or was removed, nobody knows
-- which, and it stays as used up.
-- takes: queue_ids int4[], queue_tokens text[], job_ids int8[], tokens text[], keyed bool[], delays float8[]
-- takes: keys text[], runs int2[]
-- takes: run_ats timestamptz[], attempts int2[], say_which bool
-- gives: released int8, freed int8, ids int8[]
with held as materialized (
  select found.id,
         case when not given.keyed or found.key is not null then 'back'
              when given.key is null then 'gone'
              else coalesce((select case when json_typeof(successor.payload) = 'array' then 'back' else 'gone' end
                               from graphile_worker._private_jobs as successor
                              where successor.key = given.key), 'used up')
         end as fate
    from unnest($3::int8[], $4::text[], $5::bool[], $7::text[]) as given(id, token, keyed, key)
   cross join lateral (
     select jobs.id, jobs.key
       from graphile_worker._private_jobs as jobs
      where jobs.id = given.id
        and jobs.locked_by = given.token
        for update skip locked
   ) as found
),
gone as (
  delete from graphile_worker._private_jobs as jobs
   where jobs.id = any(array(select held.id from held where held.fate = 'gone'))
  returning jobs.id
),
back as (
  update graphile_worker.backfill_dlq as dlq
     set requeued_job_id = null
   where dlq.requeued_job_id = any(array(select gone.id from gone))
),
returned as (
  update graphile_worker._private_jobs as jobs
     set attempts = case when jobs.id = any(array(select held.id from held where held.fate = 'used up')) then jobs.attempts
                         else coalesce(
                           ($10::int2[])[array_position($3::int8[], jobs.id)],
                           greatest(0, least(jobs.attempts, ($8::int2[])[array_position($3::int8[], jobs.id)]) - 1)) end,
         locked_at = null,
         locked_by = null,
         run_at = coalesce(
           ($9::timestamptz[])[array_position($3::int8[], jobs.id)],
           greatest(jobs.run_at, now() + nullif(($6::float8[])[array_position($3::int8[], jobs.id)], 0) * interval '1 second'))
   where jobs.id = any(array(select held.id from held where held.fate <> 'gone'))
  returning jobs.id, jobs.run_at
),
-- include: free_queues
,
ready as (
  select count(*) as jobs from returned where returned.run_at <= now()
),
note as materialized (
  select pg_notify('jobs:insert', json_build_object('r', random(), 'count', ready.jobs)::text)
    from ready
   where ready.jobs > 0
)
select (select count(*) from gone) + (select count(*) from returned) as released,
       (select count(*) from freed) + 0 * (select count(*) from note) as freed,
       (select array_agg(done.id) from (select id from gone union all select id from returned) as done where $11::bool) as ids

-- name: hand_back_unknown
-- Gives back jobs that were claimed without our hearing of it, so that nothing is known of them but their rows. One that
-- was superseded meanwhile has no key, no attempts left, and was changed after its claim; a row that only looks so is never
-- deleted for it, it keeps its attempts and goes to the dead letter queue as used up.
-- takes: queue_ids int4[], queue_tokens text[], job_ids int8[], tokens text[]
-- gives: released int8, freed int8
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
returned as (
  update graphile_worker._private_jobs as jobs
     set attempts = case when jobs.key is null and jobs.attempts >= jobs.max_attempts and jobs.updated_at > jobs.locked_at
                         then jobs.attempts
                         else greatest(0, jobs.attempts - 1) end,
         locked_at = null,
         locked_by = null
   where jobs.id = any(array(select held.id from held))
  returning jobs.run_at
),
-- include: free_queues
,
ready as (
  select count(*) as jobs from returned where returned.run_at <= now()
),
note as materialized (
  select pg_notify('jobs:insert', json_build_object('r', random(), 'count', ready.jobs)::text)
    from ready
   where ready.jobs > 0
)
select (select count(*) from returned) as released,
       (select count(*) from freed) + 0 * (select count(*) from note) as freed

-- name: still_held
-- Which of the given jobs and queues still carry their claim's token: a release that left them met somebody's row lock
-- and is sent again; what is not listed was taken away or is done.
-- takes: queue_ids int4[], queue_tokens text[], job_ids int8[], tokens text[]
-- gives: job_id int8, queue_id int4
select jobs.id as job_id, null::int4 as queue_id
  from unnest($3::int8[], $4::text[]) as given(id, token)
  join graphile_worker._private_jobs as jobs on jobs.id = given.id
 where jobs.locked_by = given.token
union all
select null, queues.id
  from unnest($1::int4[], $2::text[]) as given(id, token)
  join graphile_worker._private_job_queues as queues on queues.id = given.id
 where queues.locked_by = given.token

-- name: release_dead
-- Releases what dead workers hold: those of $1, which this transaction has declared dead, and any of ours that have no row at
-- all. $2 are the jobs that they are known to have been running; of the others it is not known whether they had begun.
--
-- A job that was begun keeps its attempt, but the death of a worker never uses up the last one; the others have it refunded. All
-- of them are suspects from now on: the flag backfill:crashes counts the workers that died with the job in their hands. The
-- first time they run again at once, later after a while. A worker runs no more than one suspect at a time, so one that was
-- the only one in a dead worker's hands, that time and $5 times in all since its first, is `quarantined`: with $3 it goes to
-- the dead letter queue, else it stays, used up. Superseded jobs (no key, no attempts left, changed since the claim) keep their
-- attempts, and so are used up. Those of $6 are left as they are, with their queues: hooks have said so.
--
-- What is given: a row for each job that was found. No verdict: somebody has its row locked, and it is left for the next time.
-- takes: worker_ids text[], started int8[], bury bool, moved_by text, most_crashes int4, left_alone int8[]
-- gives: worker_id text, job_id int8, verdict text, crashes int4, delay_seconds float8, dlq_id int8
with found as materialized (
  select locked.id, locked.token, locked.worker_id, locked.crashes,
         locked.crashes > 0
           and count(*) filter (where locked.crashes > 0) over (partition by locked.worker_id) = 1 as alone
    from (
      select jobs.id, jobs.locked_by as token, split_part(jobs.locked_by, '/', 1) as worker_id,
             case when jobs.flags is null or jsonb_typeof(jobs.flags) <> 'object' then 0
                  else coalesce((select max(substring(flag from '^backfill:crashes=([1-9][0-9]{0,8})$')::int4)
                                   from jsonb_object_keys(jobs.flags) as flag), 0) end as crashes
        from graphile_worker._private_jobs as jobs
       where starts_with(jobs.locked_by, 'backfill-')
    ) as locked
   where locked.worker_id = any($1::text[])
      or not exists (select 1 from graphile_worker.backfill_workers as workers where workers.id = locked.worker_id)
),
held as materialized (
  select job.*, found.worker_id, found.alone, job.id = any($2::int8[]) as started,
         job.key is null and job.attempts >= job.max_attempts and job.updated_at > job.locked_at as superseded,
         found.crashes + case when found.crashes = 0 or found.alone then 1 else 0 end as now_crashes
    from found
   cross join lateral (
     select jobs.*
       from graphile_worker._private_jobs as jobs
      where jobs.id = found.id
        and jobs.locked_by = found.token
        and jobs.id <> all($6::int8[])
        for update skip locked
   ) as job
),
judged as materialized (
  select held.*,
         case when held.superseded then 'superseded'
              when held.alone and held.now_crashes > $5::int4 then 'quarantined'
              when held.started then 'started'
              else 'refunded' end as verdict,
         case when held.now_crashes > 1 and not held.superseded
              then least(600, 5 * 2 ^ least(held.now_crashes - 2, 10)) * (0.5 + random()) else 0 end as delay,
         format('WorkerCrashed: worker %s died while it had this job (%s so far)', held.worker_id,
                case held.now_crashes when 1 then '1 worker' else held.now_crashes || ' workers' end) as message,
         case when held.superseded then held.flags
              else coalesce((select jsonb_object_agg(flag.key, flag.value)
                               from jsonb_each(case jsonb_typeof(held.flags) when 'object' then held.flags else '{}' end) as flag
                              where not starts_with(flag.key, 'backfill:crashes=')), '{}'::jsonb)
                   || jsonb_build_object('backfill:crashes=' || held.now_crashes, true) end as new_flags
    from held
),
returned as (
  update graphile_worker._private_jobs as jobs
     set locked_at = null,
         locked_by = null,
         flags = judged.new_flags,
         last_error = case judged.verdict when 'superseded' then jobs.last_error else judged.message end,
         attempts = case judged.verdict
                      when 'superseded' then jobs.attempts
                      when 'quarantined' then greatest(jobs.attempts, jobs.max_attempts)
                      when 'started' then least(jobs.attempts, jobs.max_attempts - 1)
                      else greatest(0, jobs.attempts - 1) end,
         run_at = case when judged.delay > 0
                       then greatest(jobs.run_at, now() + judged.delay * interval '1 second')
                       else jobs.run_at end
    from judged
   where jobs.id = judged.id
     and (judged.verdict <> 'quarantined' or not $3::bool)
  returning jobs.id
),
dead as materialized (
  select judged.id, coalesce(tasks.identifier, format('unknown task %s', judged.task_id)) as task_identifier,
         queues.queue_name, judged.key, judged.payload, judged.priority, judged.max_attempts,
         judged.created_at, judged.run_at, judged.new_flags as flags,
         format('Job killed its worker: %s workers died while they ran it', judged.now_crashes) as reason,
         jsonb_build_object('type', 'WorkerCrashed', 'message', judged.message, 'crashes', judged.now_crashes,
                            'worker_id', judged.worker_id, 'attempt', judged.attempts,
                            'max_attempts', judged.max_attempts) as error,
         $4::text as moved_by
    from judged
    left join graphile_worker._private_tasks as tasks on tasks.id = judged.task_id
    left join graphile_worker._private_job_queues as queues on queues.id = judged.job_queue_id
   where judged.verdict = 'quarantined'
     and $3::bool
),
-- include: dead_letter_move
,
found_queue as materialized (
  select queues.id, queues.locked_by as token
    from graphile_worker._private_job_queues as queues
   where starts_with(queues.locked_by, 'backfill-')
     and queues.id <> all(array(select jobs.job_queue_id
                                  from graphile_worker._private_jobs as jobs
                                 where jobs.id = any($6::int8[])
                                   and jobs.job_queue_id is not null))
     and (split_part(queues.locked_by, '/', 1) = any($1::text[])
          or not exists (select 1 from graphile_worker.backfill_workers as workers
                          where workers.id = split_part(queues.locked_by, '/', 1)))
),
held_queue as materialized (
  select queue.id
    from found_queue
   cross join lateral (
     select queues.id
       from graphile_worker._private_job_queues as queues
      where queues.id = found_queue.id
        and queues.locked_by = found_queue.token
        for update skip locked
   ) as queue
),
freed as (
  update graphile_worker._private_job_queues as queues
     set locked_at = null, locked_by = null
   where queues.id = any(array(select held_queue.id from held_queue))
  returning 1
)
select found.worker_id, found.id as job_id,
       case when judged.verdict = 'quarantined' and $3::bool and moved.dlq_id is null then 'refused'
            else judged.verdict end as verdict,
       judged.now_crashes as crashes, judged.delay::float8 as delay_seconds, moved.dlq_id
  from found
  left join judged on judged.id = found.id
  left join moved on moved.job_id = found.id

-- name: recover_otherwise
-- Has jobs that this transaction has released run at the times ($2), or so many seconds later ($3), and with the attempts ($4)
-- that hooks have said.
-- takes: job_ids int8[], run_ats timestamptz[], delays float8[], attempts int2[]
-- gives: changed int8
with changed as (
  update graphile_worker._private_jobs as jobs
     set run_at = coalesce(given.run_at, greatest(now(), jobs.run_at) + given.delay * interval '1 second'),
         attempts = given.attempts
    from unnest($1::int8[], $2::timestamptz[], $3::float8[], $4::int2[]) as given(id, run_at, delay, attempts)
   where jobs.id = given.id
  returning 1
)
select count(*) as changed from changed
