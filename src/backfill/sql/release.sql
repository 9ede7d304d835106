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

-- fragment: free_queues_of_returned
-- As free_queues, for jobs that run again: of one whose row somebody has locked the queue stays held with it, or else its next
-- job would overtake it.
held_queue as materialized (
  select found.id
    from unnest($1::int4[], $2::text[]) as given(id, token)
   cross join lateral (
     select queues.id
       from graphile_worker._private_job_queues as queues
      where queues.id = given.id
        and queues.locked_by = given.token
        and queues.id <> all(array(select jobs.job_queue_id
                                     from graphile_worker._private_jobs as jobs
                                    where jobs.id = any($3::int8[])
                                      and jobs.locked_by = any($4::text[])
                                      and jobs.id <> all(array(select held.id from held))
                                      and jobs.job_queue_id is not null))
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
-- gives: job_id int8, verdict text, is_gone bool, wait_seconds float8, dlq_id int8, attempts int2, max_attempts int2, freed int8
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
       judged.is_removed as is_gone, retried.wait_seconds, moved.dlq_id,
       judged.runs as attempts, judged.max_attempts, (select count(*) from freed) as freed
  from judged
  left join retried on retried.id = judged.id
  left join moved on moved.job_id = judged.id

-- fragment: announce_returned
-- Tells somebody of the jobs `returned` that can run now, in one notification. Its row `note` must be asked for.
ready as (
  select count(*) as jobs from returned where returned.run_at <= now()
),
note as materialized (
  select pg_notify('jobs:insert', json_build_object('r', random(), 'count', ready.jobs)::text)
    from ready
   where ready.jobs > 0
)

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
-- include: free_queues_of_returned
,
-- include: announce_returned
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
-- include: free_queues_of_returned
,
-- include: announce_returned
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
