-- The statements of the demo's own tables, which live in the schema of its queue.

-- name: lock_demo
-- Whether this session is now the only demo in that schema; the lock goes with the session.
-- takes: schema text
-- gives: locked bool
select pg_try_advisory_lock(hashtextextended('backfill demo ' || $1::text, 0)) as locked

-- name: find_schema
-- The schema's comment, which says who made it; no row when there is no such schema.
-- takes: schema text
-- gives: comment text
select coalesce(obj_description(pg_namespace.oid, 'pg_namespace'), '') as comment
  from pg_namespace
 where nspname = $1::text

-- name: make_schema
-- Makes the schema.
-- gives: nothing
create schema graphile_worker

-- name: mark_schema
-- Marks the schema as made by the demo.
-- gives: nothing
comment on schema graphile_worker is 'made by backfill demo'

-- name: drop_schema
-- Drops the schema and all that is in it.
-- gives: nothing
drop schema graphile_worker cascade

-- name: make_files
-- Makes the table of what was counted.
-- gives: nothing
create table graphile_worker.files (
  path text primary key,
  package text not null,
  lines int4 not null,
  functions int4 not null,
  classes int4 not null
)

-- name: make_totals
-- Makes the table of the running totals.
-- gives: nothing
create table graphile_worker.totals (
  package text primary key,
  files int4 not null,
  lines int8 not null
)

-- name: make_notes
-- Makes the table of what the single jobs have to say.
-- gives: nothing
create table graphile_worker.notes (
  about text not null,
  detail int4 not null,
  late_by float8 not null,
  waiting int8 not null
)

-- name: store_file
-- Stores what was counted in a file; again when its job runs again.
-- takes: path text, package text, lines int4, functions int4, classes int4
-- gives: nothing
insert into graphile_worker.files (path, package, lines, functions, classes)
values ($1::text, $2::text, $3::int4, $4::int4, $5::int4)
    on conflict (path) do update
   set package = excluded.package, lines = excluded.lines, functions = excluded.functions, classes = excluded.classes

-- name: read_total
-- A package's running total; no row when there is none yet. Takes no lock: only the serial queue guards it.
-- takes: package text
-- gives: files int4, lines int8
select files, lines from graphile_worker.totals where package = $1::text

-- name: write_total
-- Writes a package's running total.
-- takes: package text, files int4, lines int8
-- gives: nothing
insert into graphile_worker.totals (package, files, lines)
values ($1::text, $2::int4, $3::int8)
    on conflict (package) do update set files = excluded.files, lines = excluded.lines

-- name: take_note
-- Notes that a job ran, how long after it was due, and how many jobs were waiting then.
-- takes: about text, detail int4, due timestamptz
-- gives: nothing
insert into graphile_worker.notes (about, detail, late_by, waiting)
select $1::text, $2::int4, extract(epoch from clock_timestamp() - $3::timestamptz)::float8, count(*)
  from graphile_worker._private_jobs
 where locked_at is null
   and run_at <= now()

-- name: notes
-- The notes.
-- gives: about text, detail int4, late_by float8, waiting int8
select about, detail, late_by, waiting from graphile_worker.notes

-- name: progress
-- How far the demo is: files that are done with, one way or the other, and jobs that are left.
-- gives: finished int8, jobs int8
select (select count(*) from graphile_worker.files)
       + (select count(*) from graphile_worker.backfill_dlq where task_identifier = 'count_source') as finished,
       (select count(*) from graphile_worker._private_jobs) as jobs

-- name: counted
-- What was counted in all, and how many packages' totals are not what their files add up to.
-- gives: files int8, lines int8, functions int8, classes int8, packages int8, wrong_totals int8
with package as (
  select package, count(*) as files, sum(lines) as lines, sum(functions) as functions, sum(classes) as classes
    from graphile_worker.files
   group by package
)
select coalesce(sum(package.files), 0)::int8 as files, coalesce(sum(package.lines), 0)::int8 as lines,
       coalesce(sum(package.functions), 0)::int8 as functions, coalesce(sum(package.classes), 0)::int8 as classes,
       count(*) as packages,
       count(*) filter (where totals.files is distinct from package.files
                           or totals.lines is distinct from package.lines) as wrong_totals
  from package
  left join graphile_worker.totals on totals.package = package.package
