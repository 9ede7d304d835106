-- name: known_crontabs
-- What the database knows of cron items, by any worker's hand, in the order of their identifiers.
-- gives: identifier text, known_since timestamptz, last_execution timestamptz
select known.identifier, known.known_since, known.last_execution
  from graphile_worker._private_known_crontabs as known
 order by known.identifier

-- name: register_crontabs
-- Makes the items known, as of a worker's start; no row for those that are known already.
-- takes: identifiers text[], since timestamptz
-- gives: identifier text
insert into graphile_worker._private_known_crontabs as known (identifier, known_since)
select distinct wanted.identifier, $2::timestamptz
  from unnest($1::text[]) as wanted(identifier)
on conflict (identifier) do nothing
returning known.identifier

-- name: schedule_crontabs
-- Adds the jobs of one minute. Of the workers that send this for an item's minute, one adds its job: the one that moves
-- last_execution on to it. That row is the whole agreement, with Node workers too. `adds` false: the minute counts as
-- done, and no job is added. job_id is null then, when another was first, and when a worker claimed the key's job at this
-- moment (won is true: send add_cron_job in the same transaction). last_execution is what it was before.
-- takes: tick timestamptz, identifiers text[], adds bool[], tasks text[], payloads text[], queues text[]
-- takes: max_attempts int4[], job_keys text[], priorities int4[], modes text[]
-- gives: position int8, won bool, job_id int8, last_execution timestamptz
with given as materialized (
  select *
    from unnest($2::text[], $3::bool[], $4::text[], $5::text[], $6::text[], $7::int4[], $8::text[], $9::int4[],
                $10::text[])
         with ordinality as item(identifier, adds, task, payload, queue, max_attempts, job_key, priority, mode, position)
),
held as materialized (  -- so that no collection of unused tasks takes one before the commit
  select tasks.id
    from graphile_worker._private_tasks as tasks
   where tasks.identifier = any($4::text[])
     for key share
),
won as (
  insert into graphile_worker._private_known_crontabs as known (identifier, known_since, last_execution)
  select given.identifier, $1::timestamptz, $1::timestamptz
    from given
   where (select count(*) from held) is not null
   order by given.position
  on conflict (identifier) do update set last_execution = excluded.last_execution
   where known.last_execution is null or known.last_execution < excluded.last_execution
  returning known.identifier
),
due as materialized (
  select given.*
    from given
    join won on won.identifier = given.identifier
   order by given.position
),
added as (
  select due.position, job.id
    from (select * from due where due.adds order by due.position) as due
   cross join lateral graphile_worker.add_job(
           identifier => due.task, payload => due.payload::json, queue_name => due.queue, run_at => $1::timestamptz,
           max_attempts => due.max_attempts, job_key => due.job_key, priority => due.priority,
           job_key_mode => due.mode) as job
)
select given.position, due.position is not null as won, added.id as job_id, known.last_execution
  from given
  left join due on due.position = given.position
  left join added on added.position = given.position
  left join graphile_worker._private_known_crontabs as known on known.identifier = given.identifier
 order by given.position

-- name: add_cron_job
-- Adds the job of an item that was won, again: a worker claimed the key's job at the first attempt. job_id is null when
-- that has happened anew.
-- takes: tick timestamptz, task text, payload text, queue text, max_attempts int4, job_key text, priority int4, mode text
-- gives: job_id int8
select job.id as job_id
  from graphile_worker.add_job(
         identifier => $2::text, payload => $3::text::json, queue_name => $4::text, run_at => $1::timestamptz,
         max_attempts => $5::int4, job_key => $6::text, priority => $7::int4, job_key_mode => $8::text) as job
