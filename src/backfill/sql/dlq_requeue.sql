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
-- What the requeueing of entries needs of them, each locked. $3: force. A deadline that has passed is left behind: with it
-- the job would be back at once. Deadlines are written in UTC, so that their texts sort as they do.
  select entries.id, nullif(entries.job_key, '') as job_key, entries.priority::int2 as priority,
         case when jsonb_typeof(entries.flags) = 'object'
              then entries.flags - array(
                select flags.name
                  from jsonb_object_keys(entries.flags) as flags(name)
                 where flags.name collate "C" between 'backfill:deadline=' and
                       'backfill:deadline=' || to_char(now() at time zone 'utc', 'YYYY-MM-DD"T"HH24:MI:SS'))
              else '{}'::jsonb end
           || jsonb_build_object('backfill:dlq', true) as flags,
         coalesce(entries.max_attempts, 8)::int2 as max_attempts, tasks.id as task_id, queues.id as queue_id,
         entries.task_identifier, nullif(entries.queue_name, '') as queue_name,
         case when jsonb_typeof(entries.payload) = 'object'
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
          or ($3::bool and not exists (select 1 from graphile_worker._private_jobs as jobs
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
         notes = coalesce($2::text, entries.notes)
    from pair
   where entries.id = pair.dlq_id

-- name: requeue_dlq_jobs
-- Has entries run again as new jobs, in the order of their ids, and marks them as out. Left out, and not given back: those
-- that are out already (with $3, force: only while their job is there), those whose key a job has, and those whose task
-- or queue has no row.
-- Which job is whose: by key; without keys both are numbered in one order, since ids are given out in the order of
-- the insert and nothing can be in its way.
-- takes: dlq_ids int8[], notes text, force bool
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
-- takes: dlq_ids int8[], notes text, force bool
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

-- name: requeueable_dlq_jobs
-- Those of the entries that are here, and whose key no job has; locked until the end of the transaction.
-- takes: dlq_ids int8[]
-- gives: ids int8[]
select array(
  select entries.id
    from graphile_worker.backfill_dlq as entries
   where entries.id = any($1::int8[])
     and entries.requeued_job_id is null
     and not exists (select 1 from graphile_worker._private_jobs as jobs where jobs.key = nullif(entries.job_key, ''))
   order by entries.id
     for update of entries) as ids

-- name: edit_dlq_jobs
-- Changes entries; null leaves a column as it is. What is replaced goes into the history, with what replaces it. Of entries
-- that are out only the notes can be changed, unless $9 (force) is set.
-- takes: dlq_ids int8[], payload text, task text, queue text, priority int4, max_attempts int4
-- takes: notes text, append bool, force bool
-- gives: id int8
with given as materialized (
  select graphile_worker.backfill_to_jsonb($2::text::json) as payload, $3::text as task_identifier, $4::text as queue_name,
         $5::int4 as priority, $6::int4 as max_attempts
),
change as materialized (
  select entries.id,
         case when given.payload <> entries.payload
              then jsonb_build_object('payload', entries.payload) else '{}'::jsonb end
         || case when given.task_identifier <> entries.task_identifier
                 then jsonb_build_object('task_identifier', entries.task_identifier) else '{}'::jsonb end
         || case when given.queue_name <> entries.queue_name
                 then jsonb_build_object('queue_name', entries.queue_name) else '{}'::jsonb end
         || case when given.priority <> entries.priority
                 then jsonb_build_object('priority', entries.priority) else '{}'::jsonb end
         || case when given.max_attempts is not null and given.max_attempts is distinct from entries.max_attempts
                 then jsonb_build_object('max_attempts', entries.max_attempts) else '{}'::jsonb end as old
    from graphile_worker.backfill_dlq as entries
   cross join given
   where entries.id = any($1::int8[])
     and (entries.requeued_job_id is null
          or $9::bool
          or num_nonnulls($2::text, $3::text, $4::text, $5::int4, $6::int4) = 0)
   order by entries.id
     for update of entries
)
update graphile_worker.backfill_dlq as entries
   set payload = coalesce(given.payload, entries.payload),
       task_identifier = coalesce(given.task_identifier, entries.task_identifier),
       queue_name = coalesce(given.queue_name, entries.queue_name),
       priority = coalesce(given.priority, entries.priority),
       max_attempts = coalesce(given.max_attempts, entries.max_attempts),
       notes = case when $7::text is null then entries.notes
                    when $8::bool then concat_ws(E'\n', nullif(entries.notes, ''), $7::text)
                    else nullif($7::text, '') end,
       history = case when change.old = '{}'::jsonb then entries.history
                      else coalesce(entries.history, '[]'::jsonb) || jsonb_build_array(
                        jsonb_build_object('edited_at', now()) || change.old || jsonb_build_object('new', (
                          select jsonb_object_agg(part.key, part.value)
                            from jsonb_each(to_jsonb(given)) as part
                           where change.old ? part.key))) end
  from change
 cross join given
 where entries.id = change.id
returning entries.id
