-- fragment: entry_columns
-- The columns of an entry, of `entries`; never all columns, since users may have added some.
entries.id, entries.task_identifier, entries.payload::text as payload, entries.queue_name, entries.priority,
       entries.failure_reason, entries.failure_count, entries.failed_at, entries.original_job_id, entries.job_key,
       entries.max_attempts, entries.last_error::text as last_error, entries.original_created_at, entries.original_run_at,
       entries.requeued_count, entries.last_requeued_at, entries.notes, entries.created_by, entries.flags::text as flags,
       entries.requeued_job_id, entries.history::text as history

-- fragment: chosen_entries
-- Whether an entry is one of those asked for; null = any. $6: whether it is out.
($1::text is null or entries.task_identifier = $1::text)
   and ($2::text is null or entries.queue_name = $2::text)
   and ($3::text is null or entries.job_key = $3::text)
   and ($4::timestamptz is null or entries.failed_at >= $4::timestamptz)
   and ($5::timestamptz is null or entries.failed_at < $5::timestamptz)
   and ($6::bool is null or (entries.requeued_job_id is not null) = $6::bool)

-- name: get_dlq_job
-- One entry of the dead letter queue; no row when there is none.
-- takes: dlq_id int8
-- gives: id int8, task_identifier text, payload text, queue_name text, priority int4, failure_reason text
-- gives: failure_count int4, failed_at timestamptz, original_job_id int8, job_key text, max_attempts int4
-- gives: last_error text, original_created_at timestamptz, original_run_at timestamptz, requeued_count int4
-- gives: last_requeued_at timestamptz, notes text, created_by text, flags text, requeued_job_id int8, history text
select
-- include: entry_columns
  from graphile_worker.backfill_dlq as entries
 where entries.id = $1::int8

-- name: list_dlq_jobs
-- Entries of the dead letter queue, newest first.
-- takes: task text, queue text, job_key text, failed_after timestamptz, failed_before timestamptz, requeued bool
-- takes: page int8, skip int8
-- gives: id int8, task_identifier text, payload text, queue_name text, priority int4, failure_reason text
-- gives: failure_count int4, failed_at timestamptz, original_job_id int8, job_key text, max_attempts int4
-- gives: last_error text, original_created_at timestamptz, original_run_at timestamptz, requeued_count int4
-- gives: last_requeued_at timestamptz, notes text, created_by text, flags text, requeued_job_id int8, history text
select
-- include: entry_columns
  from graphile_worker.backfill_dlq as entries
 where
-- include: chosen_entries
 order by entries.failed_at desc, entries.id desc
 limit $7::int8 offset $8::int8

-- name: count_dlq_jobs
-- How many entries there are, counted no further than $7 (null = all).
-- takes: task text, queue text, job_key text, failed_after timestamptz, failed_before timestamptz, requeued bool, most int8
-- gives: count int8
select count(*) as count
  from (
    select 1
      from graphile_worker.backfill_dlq as entries
     where
-- include: chosen_entries
     limit $7::int8
  ) as counted

-- name: dlq_ids
-- The ids of entries after $7, in their order.
-- takes: task text, queue text, job_key text, failed_after timestamptz, failed_before timestamptz, requeued bool
-- takes: after_id int8, page int8
-- gives: ids int8[]
select array(
  select entries.id
    from graphile_worker.backfill_dlq as entries
   where
-- include: chosen_entries
     and entries.id > $7::int8
   order by entries.id
   limit $8::int8) as ids

-- name: dlq_stats
-- The dead letter queue in numbers.
-- gives: total_jobs int8, out_jobs int8, unique_tasks int8, unique_queues int8, avg_failure_count float8
-- gives: total_requeued int8, oldest_failure timestamptz, newest_failure timestamptz, tasks text[], task_counts int8[]
with largest as (
  select entries.task_identifier, count(*) as count
    from graphile_worker.backfill_dlq as entries
   group by entries.task_identifier
   order by count(*) desc, entries.task_identifier
   limit 10
)
select count(*) as total_jobs, count(entries.requeued_job_id) as out_jobs,
       count(distinct entries.task_identifier) as unique_tasks, count(distinct entries.queue_name) as unique_queues,
       coalesce(avg(entries.failure_count), 0)::float8 as avg_failure_count,
       coalesce(sum(entries.requeued_count), 0)::int8 as total_requeued,
       min(entries.failed_at) as oldest_failure, max(entries.failed_at) as newest_failure,
       array(select largest.task_identifier from largest order by largest.count desc, largest.task_identifier) as tasks,
       array(select largest.count from largest order by largest.count desc, largest.task_identifier) as task_counts
  from graphile_worker.backfill_dlq as entries

-- name: create_dlq_names
-- Makes rows for the tasks and queues of entries that have none.
-- takes: dlq_ids int8[]
-- gives: created int8
with wanted as materialized (
  select entries.task_identifier, entries.queue_name
    from graphile_worker.backfill_dlq as entries
   where entries.id = any($1::int8[])
),
new_task as (
  insert into graphile_worker._private_tasks (identifier)
  select distinct wanted.task_identifier
    from wanted
   where not exists (select 1 from graphile_worker._private_tasks as tasks
                      where tasks.identifier = wanted.task_identifier)
   order by wanted.task_identifier
  on conflict (identifier) do nothing
  returning 1
),
new_queue as (
  insert into graphile_worker._private_job_queues (queue_name)
  select distinct wanted.queue_name
    from wanted
   where wanted.queue_name <> ''
     and not exists (select 1 from graphile_worker._private_job_queues as queues
                      where queues.queue_name = wanted.queue_name)
   order by wanted.queue_name
  on conflict (queue_name) do nothing
  returning 1
)
select (select count(*) from new_task) + (select count(*) from new_queue) as created

-- fragment: entry_to_requeue
-- What the requeueing of entries needs of them, each locked. $2: a payload instead of their own, $4: force.
  select entries.id, nullif(entries.job_key, '') as job_key, entries.priority::int2 as priority,
         case when jsonb_typeof(entries.flags) = 'object' then entries.flags else '{}'::jsonb end
           || jsonb_build_object('backfill:dlq', true) as flags,
         coalesce(entries.max_attempts, 8)::int2 as max_attempts, tasks.id as task_id, queues.id as queue_id,
         entries.task_identifier, nullif(entries.queue_name, '') as queue_name,
         case when $2::text is not null then $2::text::json
              when jsonb_typeof(entries.payload) = 'object'
                   and jsonb_typeof(entries.payload -> 'backfill:json') = 'string'
                   and entries.payload - 'backfill:json' = '{}'::jsonb
              then (entries.payload ->> 'backfill:json')::json
              else entries.payload::text::json end as payload
    from graphile_worker.backfill_dlq as entries
    join graphile_worker._private_tasks as tasks on tasks.identifier = entries.task_identifier
    left join graphile_worker._private_job_queues as queues
           on queues.queue_name = entries.queue_name and entries.queue_name <> ''
   where entries.id = any($1::int8[])
     and (entries.queue_name = '' or queues.id is not null)
     and (entries.requeued_job_id is null
          or ($4::bool and not exists (select 1 from graphile_worker._private_jobs as jobs
                                        where jobs.id = entries.requeued_job_id)))
   order by entries.id
     for update of entries
     for key share of tasks

-- fragment: mark_as_out
-- Notes the jobs that entries are out as, which the CTE `pair` has.
  update graphile_worker.backfill_dlq as entries
     set requeued_job_id = pair.job_id,
         requeued_count = entries.requeued_count + 1,
         last_requeued_at = now(),
         notes = coalesce($3::text, entries.notes),
         payload = case when $2::text is null then entries.payload
                        else graphile_worker.backfill_to_jsonb($2::text::json) end,
         history = case when $2::text is null then entries.history
                        else coalesce(entries.history, '[]'::jsonb)
                             || jsonb_build_array(jsonb_build_object('edited_at', now(), 'payload', entries.payload)) end
    from pair
   where entries.id = pair.dlq_id

-- name: requeue_dlq_jobs
-- Has entries run again as new jobs, in the order of their ids, and marks them as out. Left out, and not given back: those
-- that are out already (with $4, force: only while their job is there), those whose key a job has, and those whose task
-- or queue has no row. A payload given ($2) replaces the entry's, which goes into its history.
-- Which job is whose: by key; without keys both are numbered in one order, since ids are given out in the order of
-- the insert and nothing can be in its way.
-- takes: dlq_ids int8[], payload text, notes text, force bool
-- gives: dlq_id int8, job_id int8
with entry as materialized (
-- include: entry_to_requeue
),
made as (
  insert into graphile_worker._private_jobs (task_id, job_queue_id, payload, priority, max_attempts, key, flags)
  select entry.task_id, entry.queue_id, entry.payload, entry.priority, entry.max_attempts, entry.job_key, entry.flags
    from entry
   order by entry.id
  on conflict (key) do nothing
  returning id, key
),
pair as (
  select entry.id as dlq_id, made.id as job_id
    from made
    join entry on entry.job_key = made.key
  union all
  select first.id, second.id
    from (select entry.id, row_number() over (order by entry.id) as place from entry where entry.job_key is null) as first
    join (select made.id, row_number() over (order by made.id) as place from made where made.key is null) as second
      on second.place = first.place
),
marked as (
-- include: mark_as_out
),
woken as (
  select pg_notify('jobs:insert', format('{"r":%s,"count":%s}', random(), count(*)))
    from pair
  having count(*) > 0
)
select pair.dlq_id, pair.job_id
  from pair
 where (select count(*) from woken) is not null
 order by pair.dlq_id

-- name: requeue_dlq_jobs_by_add_job
-- As requeue_dlq_jobs, for tables that are not known: Graphile Worker's add_job makes each job. Left out, too: an entry whose
-- key somebody else adds at this very moment, whose job then is one revision on.
-- takes: dlq_ids int8[], payload text, notes text, force bool
-- gives: dlq_id int8, job_id int8
with entry as materialized (
-- include: entry_to_requeue
),
pair as materialized (
  select entry.id as dlq_id, made.id as job_id
    from entry
   cross join lateral graphile_worker.add_job(
           identifier => entry.task_identifier, payload => entry.payload, queue_name => entry.queue_name,
           max_attempts => entry.max_attempts::int4, job_key => entry.job_key, priority => entry.priority::int4,
           flags => array(select jsonb_object_keys(entry.flags)), job_key_mode => 'unsafe_dedupe') as made
   where not exists (select 1 from graphile_worker._private_jobs as jobs where jobs.key = entry.job_key)
     and made.revision = 0
),
marked as (
-- include: mark_as_out
)
select pair.dlq_id, pair.job_id
  from pair
 order by pair.dlq_id

-- name: hold_dlq_job
-- An entry's key and the job that it is out as, with whether that job is there; locked until the end of the transaction.
-- takes: dlq_id int8
-- gives: job_key text, requeued_job_id int8, job_is_there bool
select entries.job_key, entries.requeued_job_id,
       exists (select 1 from graphile_worker._private_jobs as jobs where jobs.id = entries.requeued_job_id) as job_is_there
  from graphile_worker.backfill_dlq as entries
 where entries.id = $1::int8
   for update

-- name: job_of_key
-- The job that has a key; no row when none has.
-- takes: job_key text
-- gives: id int8
select jobs.id
  from graphile_worker._private_jobs as jobs
 where jobs.key = $1::text

-- name: next_job_id
-- The lowest id of a job above the given one; null when there is none.
-- takes: after_id int8
-- gives: id int8
select min(jobs.id) as id
  from graphile_worker._private_jobs as jobs
 where jobs.id > $1::int8

-- name: delete_dlq_jobs
-- Deletes entries.
-- takes: dlq_ids int8[]
-- gives: deleted int8
with gone as (
  delete from graphile_worker.backfill_dlq as entries
   where entries.id = any($1::int8[])
  returning 1
)
select count(*) as deleted from gone

-- name: delete_chosen_dlq_jobs
-- Deletes those of the entries that still are as asked: here ($2 false), out (true).
-- takes: dlq_ids int8[], requeued bool
-- gives: deleted int8
with gone as (
  delete from graphile_worker.backfill_dlq as entries
   where entries.id = any($1::int8[])
     and (entries.requeued_job_id is not null) = $2::bool
  returning 1
)
select count(*) as deleted from gone

-- name: delete_dlq_by_job_key
-- Deletes the entry of a key.
-- takes: job_key text
-- gives: deleted int8
with gone as (
  delete from graphile_worker.backfill_dlq as entries
   where entries.job_key = $1::text
  returning 1
)
select count(*) as deleted from gone

-- name: forget_requeued
-- Deletes the entries that are out as the given jobs, which are done.
-- takes: job_ids int8[]
-- gives: nothing
delete from graphile_worker.backfill_dlq as entries
 where entries.requeued_job_id = any($1::int8[])

-- name: bring_back
-- Has the entries that are out as the given jobs be here again: the jobs were taken out of the queue without being done.
-- takes: job_ids int8[]
-- gives: nothing
update graphile_worker.backfill_dlq as entries
   set requeued_job_id = null
 where entries.requeued_job_id = any($1::int8[])
