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

-- name: walk_in_order
-- Has the rest of the transaction read pages by the index of their order. Without statistics, or with a plan for any values, the
-- planner may rather sort all that is left, for each page anew: 4 times as long at 200,000 entries, and worse with more.
-- gives: setting text
select set_config('enable_sort', 'off', true) as setting

-- name: page_dlq_jobs
-- Entries after $7, in the order of their ids.
-- takes: task text, queue text, job_key text, failed_after timestamptz, failed_before timestamptz, requeued bool
-- takes: after_id int8, page int8
-- gives: id int8, task_identifier text, payload text, queue_name text, priority int4, failure_reason text
-- gives: failure_count int4, failed_at timestamptz, original_job_id int8, job_key text, max_attempts int4
-- gives: last_error text, original_created_at timestamptz, original_run_at timestamptz, requeued_count int4
-- gives: last_requeued_at timestamptz, notes text, created_by text, flags text, requeued_job_id int8, history text
select
-- include: entry_columns
  from graphile_worker.backfill_dlq as entries
 where
-- include: chosen_entries
   and entries.id > $7::int8
 order by entries.id
 limit $8::int8

-- name: dlq_span
-- The first $8 (null = all) of the entries after $7, in the order of their ids: how many, the id of the last of them, and
-- how many have a key that a job has ($9; else 0).
-- takes: task text, queue text, job_key text, failed_after timestamptz, failed_before timestamptz, requeued bool
-- takes: after_id int8, most int8, with_keys bool
-- gives: entries int8, last_id int8, keys_in_use int8
select count(*) as entries, max(chosen.id) as last_id,
       count(*) filter (where $9::bool
                          and chosen.job_key <> ''
                          and exists (select 1 from graphile_worker._private_jobs as jobs where jobs.key = chosen.job_key)
       ) as keys_in_use
  from (
    select entries.id, entries.job_key
      from graphile_worker.backfill_dlq as entries
     where
-- include: chosen_entries
       and entries.id > $7::int8
     order by entries.id
     limit $8::int8
  ) as chosen

-- name: dlq_ids
-- The ids of entries after $7 up to $8, in their order.
-- takes: task text, queue text, job_key text, failed_after timestamptz, failed_before timestamptz, requeued bool
-- takes: after_id int8, last_id int8, page int8
-- gives: id int8
select entries.id
  from graphile_worker.backfill_dlq as entries
 where
-- include: chosen_entries
   and entries.id > $7::int8
   and entries.id <= $8::int8
 order by entries.id
 limit $9::int8

-- name: export_dlq_jobs
-- Entries after $7 up to $8 in the order of their ids, each as one line of JSON with all its columns, users' own included.
-- takes: task text, queue text, job_key text, failed_after timestamptz, failed_before timestamptz, requeued bool
-- takes: after_id int8, last_id int8, page int8
-- gives: id int8, line text
select entries.id, translate(row_to_json(entries)::text, E'\n\r', '  ') as line
  from graphile_worker.backfill_dlq as entries
 where
-- include: chosen_entries
   and entries.id > $7::int8
   and entries.id <= $8::int8
 order by entries.id
 limit $9::int8

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
-- Deletes those of the entries ($7) that are still chosen: one that was requeued or has failed anew since may not be.
-- takes: task text, queue text, job_key text, failed_after timestamptz, failed_before timestamptz, requeued bool
-- takes: dlq_ids int8[]
-- gives: ids int8[]
with gone as (
  delete from graphile_worker.backfill_dlq as entries
   where entries.id = any($7::int8[])
     and
-- include: chosen_entries
  returning entries.id
)
select array(select gone.id from gone) as ids

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

-- name: settle_done_elsewhere
-- Deletes entries that are out as jobs which are not there any more: a page of them in the order of the jobs' ids, from above
-- $1 on. An entry that somebody else has locked, or has just tied to another job, is passed by.
-- takes: after_job_id int8, page int8
-- gives: settled int8[], tasks text[], job_ids int8[], last_job_id int8
with page as materialized (
  select entries.id, entries.requeued_job_id as job_id
    from graphile_worker.backfill_dlq as entries
   where entries.requeued_job_id is not null
     and entries.requeued_job_id > $1::int8
   order by entries.requeued_job_id
   limit $2::int8
),
vanished as materialized (
  select page.id, page.job_id
    from page
   where not exists (select 1 from graphile_worker._private_jobs as jobs where jobs.id = page.job_id)
),
mine as materialized (
  select entries.id
    from graphile_worker.backfill_dlq as entries
    join vanished on vanished.id = entries.id and vanished.job_id = entries.requeued_job_id
     for update of entries skip locked
),
gone as (
  delete from graphile_worker.backfill_dlq as entries
   using mine
   where entries.id = mine.id
  returning entries.id, entries.task_identifier, entries.requeued_job_id
)
select array(select gone.id from gone order by gone.id) as settled,
       array(select gone.task_identifier from gone order by gone.id) as tasks,
       array(select gone.requeued_job_id from gone order by gone.id) as job_ids,
       (select max(page.job_id) from page) as last_job_id

-- name: bring_back
-- Has the entries that are out as the given jobs be here again: the jobs were taken out of the queue without being done.
-- takes: job_ids int8[]
-- gives: nothing
update graphile_worker.backfill_dlq as entries
   set requeued_job_id = null
 where entries.requeued_job_id = any($1::int8[])
