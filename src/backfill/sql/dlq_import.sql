-- name: dlq_columns
-- The columns of the dead letter queue's table, users' own included, and whether values can be put into them.
-- takes: schema_name text
-- gives: name text, insertable bool
select columns.attname::text as name, columns.attgenerated = '' and columns.attidentity <> 'a' as insertable
  from pg_catalog.pg_attribute as columns
  join pg_catalog.pg_class as tables on tables.oid = columns.attrelid
  join pg_catalog.pg_namespace as schemas on schemas.oid = tables.relnamespace
 where schemas.nspname = $1::text
   and tables.relname = 'backfill_dlq'
   and columns.attnum > 0
   and not columns.attisdropped

-- name: new_dlq_ids
-- Numbers for so many new entries.
-- takes: schema_name text, count int8
-- gives: ids int8[]
select array(
  select nextval(pg_get_serial_sequence(format('%I.backfill_dlq', $1::text), 'id')::regclass)
    from generate_series(1, $2::int8)) as ids

-- name: pass_over_dlq_ids
-- Has new entries get ids above $2, if they do not yet; no row if they do. Stays done when the transaction is undone.
-- takes: schema_name text, highest int8
-- gives: last_id int8
select setval(numbers.sequence, $2::int8) as last_id
  from (select pg_get_serial_sequence(format('%I.backfill_dlq', $1::text), 'id')::regclass as sequence) as numbers
 where $2::int8 > coalesce(pg_sequence_last_value(numbers.sequence), 0)

-- name: import_dlq_jobs
-- Puts entries in, each from its line of JSON and with the id given beside it; those that an entry of the same id or key is in
-- the way of are left out. The two lists of columns are extended by those that the lines have: what a line does not name
-- gets its default. A payload of null is one, and no SQL null. An entry stays tied to the job that it was out as only if that very job is here: made in the moment
-- of the entry's last requeue. With new ids ($3) never: its own entry may be there.
-- takes: lines text[], ids int8[], new_ids bool
-- gives: id int8
with given as materialized (
  select entry.*
    from unnest($1::text[], $2::int8[]) as line(text, id)
   cross join lateral json_populate_record(null::graphile_worker.backfill_dlq, line.text::json) as stored
   cross join lateral jsonb_populate_record(stored, jsonb_build_object('id', line.id, 'requeued_job_id', (
     select jobs.id
       from graphile_worker._private_jobs as jobs
      where not $3::bool
        and jobs.id = stored.requeued_job_id
        and jobs.created_at = stored.last_requeued_at))) as entry
)
insert into graphile_worker.backfill_dlq (payload, id, requeued_job_id)
select coalesce(payload, 'null'::jsonb), id, requeued_job_id
  from given
on conflict do nothing
returning id

-- name: dlq_import_obstacles
-- What is in the way of lines that were left out. `there`: the entry is here already (the same id, and the same key or, without
-- one, the same moment of the job's making). `key`: another entry has the key. `id`: the id is another entry's.
-- takes: lines text[], ids int8[]
-- gives: id int8, obstacle text
select line.id,
       case when here.job_key is not distinct from line.text::json ->> 'job_key'
                 and (here.job_key is not null
                      or here.original_created_at
                         is not distinct from (line.text::json ->> 'original_created_at')::timestamptz)
                 and here.id is not null then 'there'
            when keyed.id is not null then 'key'
            when here.id is not null then 'id' end as obstacle
  from unnest($1::text[], $2::int8[]) as line(text, id)
  left join graphile_worker.backfill_dlq as here on here.id = line.id
  left join graphile_worker.backfill_dlq as keyed on keyed.job_key = line.text::json ->> 'job_key'
