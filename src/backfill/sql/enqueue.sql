-- fragment: keyed_job
-- The columns of a job that one of Graphile Worker's functions returned as `job`, with `given.task` and `given.queue`
-- for names that the function itself has just created and that this statement cannot see yet.
job.id, coalesce(tasks.identifier, given.task) as task_identifier,
       case when job.job_queue_id is not null then coalesce(queues.queue_name, given.queue) end as queue_name,
       case when job.revision > 0 then job.payload::text end as payload, job.priority, job.run_at, job.attempts,
       job.max_attempts, job.last_error, job.created_at, job.updated_at, job.key, job.locked_at, job.locked_by,
       job.revision, job.flags::text as flags

-- fragment: names_of_job
left join graphile_worker._private_tasks as tasks on tasks.id = job.task_id
  left join graphile_worker._private_job_queues as queues on queues.id = job.job_queue_id

-- fragment: tasks_held
-- True. Holds the rows of the tasks in the CTE `held` until the commit, as insert_job does; looked at before anything else.
(select count(*) from held) is not null

-- fragment: notified
-- Whether the notification $8 was sent; null = none is to be. Commits that notify wait for each other: without $9 none is sent while
-- another transaction of ours is about to commit one.
          case when run_at <= clock_timestamp() and $8::text is not null
                    and ($9::bool or pg_try_advisory_xact_lock(7305808869231650162))
               then pg_notify('jobs:insert', $8::text)::text is not null else false end as notified

-- name: insert_job
-- Adds one job without a key and, when the job is due by now, sends the notification given ($8, $9; see the fragment).
-- No row: the task or the queue has no row; create them and send this again. The task is found by its name each time,
-- since the rows of unused tasks are collected, and its row is held until the commit so that no collection of ours can
-- take it meanwhile. A queue's row is not held: that would hide the queue from every claim until the commit.
-- takes: task text, payload text, queue text, priority int2, run_at timestamptz, max_attempts int2, flags text
-- takes: notification text, waits bool
-- gives: id int8, created_at timestamptz, due bool, notified bool
insert into graphile_worker._private_jobs (task_id, job_queue_id, payload, priority, run_at, max_attempts, flags)
select tasks.id, queues.id, $2::text::json, $4::int2, coalesce($5::timestamptz, now()), $6::int2, $7::text::jsonb
  from graphile_worker._private_tasks as tasks
  left join graphile_worker._private_job_queues as queues on queues.queue_name = $3::text
 where tasks.identifier = $1::text
   and ($3::text is null or queues.id is not null)
   for key share of tasks
returning id, created_at, run_at <= clock_timestamp() as due,
-- include: notified

-- name: add_keyed_job
-- Adds a job with a key in the mode replace or (preserve_run_at) preserve_run_at, and announces it as insert_job does: what
-- add_job does when no job has the key, or one that waits, at a third of its cost. No row: the key's job is busy (locked or
-- out of attempts), or the task or the queue has no row; send add_job. What it gives: as in add_keyed_jobs.
-- takes: task text, payload text, queue text, priority int2, run_at timestamptz, max_attempts int2, flags text
-- takes: notification text, waits bool, key text, preserve_run_at bool
-- gives: key text, id int8, payload text, run_at timestamptz, created_at timestamptz, updated_at timestamptz, revision int4
-- gives: due bool, notified bool
insert into graphile_worker._private_jobs as jobs (
  task_id, job_queue_id, payload, priority, run_at, max_attempts, flags, key
)
select tasks.id, queues.id, $2::text::json, $4::int2, coalesce($5::timestamptz, now()), $6::int2, $7::text::jsonb, $10::text
  from graphile_worker._private_tasks as tasks
  left join graphile_worker._private_job_queues as queues on queues.queue_name = $3::text
 where tasks.identifier = $1::text
   and ($3::text is null or queues.id is not null)
   for key share of tasks
on conflict (key) do update
   set task_id = excluded.task_id, job_queue_id = excluded.job_queue_id, priority = excluded.priority,
       payload = case when json_typeof(jobs.payload) = 'array' and json_typeof(excluded.payload) = 'array'
                      then (jobs.payload::jsonb || excluded.payload::jsonb)::json else excluded.payload end,
       run_at = case when $11::bool and jobs.attempts = 0 then jobs.run_at else excluded.run_at end,
       max_attempts = excluded.max_attempts, flags = excluded.flags, revision = jobs.revision + 1, attempts = 0,
       last_error = null, updated_at = now()
 where jobs.is_available
returning key, id, case when revision > 0 then payload::text end as payload, nullif(run_at, created_at) as run_at, created_at,
          nullif(updated_at, created_at) as updated_at, revision, run_at <= clock_timestamp() as due,
-- include: notified

-- name: insert_jobs
-- Adds jobs without keys, all or none, and sends the notification given ($9; null = none) if one of them is due by now.
-- What jobs have in common is sent once: $1–$6 are kinds of jobs, and each job is a payload and the number of its kind,
-- from 1; the number may be given once, for all. ids is in the order of the jobs: ids are given out in the order of the insert. ids is null when a task or
-- a queue has no row; create them and send this again.
-- takes: tasks text[], queues text[], priorities int2[], run_ats timestamptz[], max_attempts int2[], flags text[]
-- takes: kinds int4[], payloads text[], notification text
-- gives: ids int8[], created_at timestamptz, notified bool
with kind as materialized (
  select given.number, tasks.id as task_id, queues.id as queue_id, given.priority,
         coalesce(given.run_at, now()) as run_at, given.max_attempts, given.flags::jsonb as flags
    from unnest($1::text[], $2::text[], $3::int2[], $4::timestamptz[], $5::int2[], $6::text[])
         with ordinality as given(task, queue, priority, run_at, max_attempts, flags, number)
    join graphile_worker._private_tasks as tasks on tasks.identifier = given.task
    left join graphile_worker._private_job_queues as queues on queues.queue_name = given.queue
   where given.queue is null or queues.id is not null
     for key share of tasks
),
made as (
  insert into graphile_worker._private_jobs (task_id, job_queue_id, payload, priority, run_at, max_attempts, flags)
  select kind.task_id, kind.queue_id, given.payload::json, kind.priority, kind.run_at, kind.max_attempts, kind.flags
    from unnest($7::int4[], $8::text[]) with ordinality as given(kind, payload, position)
    join kind on kind.number = coalesce(given.kind, ($7::int4[])[1])
   where (select count(*) from kind) = cardinality($1::text[])
   order by given.position
  returning id, created_at, run_at <= clock_timestamp() as due
)
select array_agg(made.id order by made.id) as ids, min(made.created_at) as created_at,
       case when bool_or(made.due) and $9::text is not null
            then pg_notify('jobs:insert', $9::text)::text is not null else false end as notified
  from made

-- name: add_job
-- Adds a job with a key, by Graphile Worker's rules, notification included, through our wrapper, which saves it most planning. No row: a worker claimed the key's job at
-- this moment; send this again. payload: only where the row was there before, since two arrays are joined.
-- takes: task text, payload text, queue text, priority int4, run_at timestamptz, max_attempts int4, flags text[]
-- takes: job_key text, job_key_mode text
-- gives: id int8, task_identifier text, queue_name text, payload text, priority int2, run_at timestamptz, attempts int2
-- gives: max_attempts int2, last_error text, created_at timestamptz, updated_at timestamptz, key text
-- gives: locked_at timestamptz, locked_by text, revision int4, flags text
with held as materialized (
  select tasks.id from graphile_worker._private_tasks as tasks where tasks.identifier = $1::text for key share
)
select
-- include: keyed_job
  from (select $1::text as task, $3::text as queue) as given
 cross join lateral graphile_worker.backfill_add_job(
         identifier => $1::text, payload => $2::text::json, queue_name => $3::text, run_at => $5::timestamptz,
         max_attempts => $6::int4, job_key => $8::text, priority => $4::int4, flags => $7::text[],
         job_key_mode => $9::text) as job
-- include: names_of_job
 where job.id is not null
   and
-- include: tasks_held

-- name: add_keyed_jobs
-- Adds jobs with keys, all different, in the mode replace or (preserve_run_at) preserve_run_at. A key without a row: a
-- worker claimed its job at this moment; send that one again. flags: JSON objects. Rows say only what is not known of a job
-- that has just been given all its settings: payload only where the row was there before, since two arrays are joined;
-- run_at and updated_at where they are not created_at. Tasks, priorities and limits may be given once, for all; of queues,
-- run_ats and flags, what is left out is null.
-- takes: tasks text[], payloads text[], queues text[], priorities int2[], run_ats timestamptz[], max_attempts int2[]
-- takes: flags text[], keys text[], preserve_run_at bool
-- gives: key text, id int8, payload text, run_at timestamptz, created_at timestamptz, updated_at timestamptz, revision int4
with held as materialized (
  select tasks.id
    from graphile_worker._private_tasks as tasks
   where tasks.identifier = any($1::text[])
   order by tasks.id
     for key share
)
select job.key, job.id, case when job.revision > 0 then job.payload::text end as payload,
       nullif(job.run_at, job.created_at) as run_at, job.created_at, nullif(job.updated_at, job.created_at) as updated_at,
       job.revision
  from graphile_worker.add_jobs(
         array(select row(coalesce(given.task, ($1::text[])[1]), given.payload::json, given.queue, given.run_at,
                          coalesce(given.max_attempts, ($6::int2[])[1]), given.key,
                          coalesce(given.priority, ($4::int2[])[1]),
                          case when given.flags is not null then array(select jsonb_object_keys(given.flags::jsonb)) end
                      )::graphile_worker.job_spec
                 from unnest($1::text[], $2::text[], $3::text[], $4::int2[], $5::timestamptz[], $6::int2[], $7::text[],
                             $8::text[])
                      with ordinality
                      as given(task, payload, queue, priority, run_at, max_attempts, flags, key, position)
                order by given.position),
         $9::bool) as job
 where job.id is not null
   and
-- include: tasks_held

-- name: add_jobs_by_mode
-- Adds jobs with keys, all different, each in its own mode, one after another in the order of the keys, as add_jobs goes
-- through them, so that two batches do not wait for each other. A key without a row, what may be given once or left out:
-- as in add_keyed_jobs. flags: JSON objects.
-- takes: tasks text[], payloads text[], queues text[], priorities int2[], run_ats timestamptz[], max_attempts int2[]
-- takes: flags text[], keys text[], modes text[]
-- gives: id int8, task_identifier text, queue_name text, payload text, priority int2, run_at timestamptz, attempts int2
-- gives: max_attempts int2, last_error text, created_at timestamptz, updated_at timestamptz, key text
-- gives: locked_at timestamptz, locked_by text, revision int4, flags text
with held as materialized (
  select tasks.id
    from graphile_worker._private_tasks as tasks
   where tasks.identifier = any($1::text[])
   order by tasks.id
     for key share
)
select
-- include: keyed_job
  from (
    select coalesce(in_order.task, ($1::text[])[1]) as task, in_order.payload, in_order.queue,
           coalesce(in_order.priority, ($4::int2[])[1]) as priority, in_order.run_at,
           coalesce(in_order.max_attempts, ($6::int2[])[1]) as max_attempts, in_order.flags, in_order.key, in_order.mode
      from unnest($1::text[], $2::text[], $3::text[], $4::int2[], $5::timestamptz[], $6::int2[], $7::text[], $8::text[],
                  $9::text[])
           as in_order(task, payload, queue, priority, run_at, max_attempts, flags, key, mode)
     order by in_order.key
  ) as given
 cross join lateral graphile_worker.backfill_add_job(
         identifier => given.task, payload => given.payload::json, queue_name => given.queue, run_at => given.run_at,
         max_attempts => given.max_attempts::int4, job_key => given.key, priority => given.priority::int4,
         flags => array(select jsonb_object_keys(given.flags::jsonb)), job_key_mode => given.mode) as job
-- include: names_of_job
 where job.id is not null
   and
-- include: tasks_held

-- name: create_names
-- Makes rows for the tasks and queues that have none, in the order of their names.
-- takes: tasks text[], queues text[]
-- gives: created int8
with new_task as (
  insert into graphile_worker._private_tasks (identifier)
  select wanted.identifier
    from unnest($1::text[]) as wanted(identifier)
   where not exists (select 1 from graphile_worker._private_tasks as tasks where tasks.identifier = wanted.identifier)
   order by wanted.identifier
  on conflict (identifier) do nothing
  returning 1
),
new_queue as (
  insert into graphile_worker._private_job_queues (queue_name)
  select wanted.queue_name
    from unnest($2::text[]) as wanted(queue_name)
   where not exists (select 1 from graphile_worker._private_job_queues as queues
                      where queues.queue_name = wanted.queue_name)
   order by wanted.queue_name
  on conflict (queue_name) do nothing
  returning 1
)
select (select count(*) from new_task) + (select count(*) from new_queue) as created

-- name: notify_jobs
-- Tells all workers of the database that there are new jobs.
-- takes: notification text
-- gives: sent bool
select pg_notify('jobs:insert', $1::text)::text is not null as sent
