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
-- What is given: a row for each job that was found. No verdict: somebody has its row locked, and it is left for the next time, and
-- its queue with it.
-- takes: worker_ids text[], started int8[], bury bool, moved_by text, most_crashes int4, left_alone int8[]
-- gives: worker_id text, job_id int8, verdict text, crashes int4, delay_seconds float8, dlq_id int8
with found as materialized (
  select locked.id, locked.token, locked.queue_id, locked.worker_id, locked.crashes,
         locked.crashes > 0
           and count(*) filter (where locked.crashes > 0) over (partition by locked.worker_id) = 1 as alone
    from (
      select jobs.id, jobs.locked_by as token, jobs.job_queue_id as queue_id, split_part(jobs.locked_by, '/', 1) as worker_id,
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
     and queues.id <> all(array(select found.queue_id  -- or else the queue's next job would overtake this one
                                  from found
                                 where found.queue_id is not null
                                   and found.id <> all(array(select held.id from held))))
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
