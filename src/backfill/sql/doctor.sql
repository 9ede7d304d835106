-- What `backfill doctor` looks at.

-- name: server_facts
-- The server, its room for connections, and its notification queue. `free` is what is left for ordinary roles; `sees_all`
-- whether this role may see what other roles' sessions do.
-- gives: version text, version_number int4, now timestamptz, autovacuum bool, track_counts bool, max_connections int4
-- gives: free int8, queue_usage float8, sees_all bool
select current_setting('server_version') as version,
       current_setting('server_version_num')::int4 as version_number,
       clock_timestamp() as now,
       current_setting('autovacuum')::bool as autovacuum,
       current_setting('track_counts')::bool as track_counts,
       current_setting('max_connections')::int4 as max_connections,
       (current_setting('max_connections')::int4 - current_setting('superuser_reserved_connections')::int4
        - coalesce(current_setting('reserved_connections', true), '0')::int4
        - (select sum(databases.numbackends) from pg_stat_database as databases where databases.datid <> 0))::int8 as free,
       pg_notification_queue_usage()::float8 as queue_usage,
       pg_has_role('pg_read_all_stats', 'usage') as sees_all

-- name: jobs_table_facts
-- The table of jobs: rows by the statistics, and what its settings (or else the server's) come to. `wait_for` is how many
-- dead rows autovacuum waits for.
-- takes: schema text
-- gives: live int8, dead int8, vacuumed_at timestamptz, bytes int8, autovacuum bool, scale_factor float8, wait_for float8
-- gives: fill_factor int4, has_workers bool
select coalesce(stats.n_live_tup, 0) as live,
       coalesce(stats.n_dead_tup, 0) as dead,
       greatest(stats.last_autovacuum, stats.last_vacuum) as vacuumed_at,
       pg_total_relation_size(jobs.oid) as bytes,
       coalesce(options.given ->> 'autovacuum_enabled', 'true')::bool as autovacuum,
       chosen.scale_factor,
       chosen.threshold + chosen.scale_factor * greatest(jobs.reltuples, 0)::float8 as wait_for,
       coalesce(options.given ->> 'fillfactor', '100')::int4 as fill_factor,
       exists (select 1 from pg_class as workers
                where workers.relnamespace = jobs.relnamespace and workers.relname = 'backfill_workers') as has_workers
  from pg_class as jobs
  join pg_namespace as schemas on schemas.oid = jobs.relnamespace
  left join pg_stat_all_tables as stats on stats.relid = jobs.oid
 cross join lateral (select coalesce(jsonb_object_agg(pairs.option_name, pairs.option_value), '{}') as given
                       from pg_options_to_table(jobs.reloptions) as pairs) as options
 cross join lateral (
   select coalesce(options.given ->> 'autovacuum_vacuum_scale_factor',
                   current_setting('autovacuum_vacuum_scale_factor'))::float8 as scale_factor,
          coalesce(options.given ->> 'autovacuum_vacuum_threshold',
                   current_setting('autovacuum_vacuum_threshold'))::float8 as threshold
 ) as chosen
 where schemas.nspname = $1::text
   and jobs.relname = '_private_jobs'

-- name: held_horizons
-- What keeps rows of this database from being vacuumed for longer than so many seconds: open transactions, prepared ones,
-- and replication slots, whose age is known in transactions alone. The oldest first.
-- takes: seconds float8
-- gives: kind text, name text, seconds float8, transactions int8
with held as (
  select 'transaction' as kind,
         format('pid %s of %s (%s, %s)', sessions.pid, coalesce(sessions.usename, '?'),
                coalesce(nullif(sessions.application_name, ''), 'no application_name'), sessions.state) as name,
         extract(epoch from clock_timestamp() - sessions.xact_start)::float8 as seconds,
         greatest(age(sessions.backend_xmin), age(sessions.backend_xid))::int8 as transactions
    from pg_stat_activity as sessions
   where sessions.datname = current_database()
     and sessions.pid <> pg_backend_pid()
     and (sessions.backend_xmin is not null or sessions.backend_xid is not null)
     and sessions.backend_type <> 'autovacuum worker'
  union all
  select 'prepared transaction', prepared.gid,
         extract(epoch from clock_timestamp() - prepared.prepared)::float8, age(prepared.transaction)::int8
    from pg_prepared_xacts as prepared
   where prepared.database = current_database()
  union all
  select case when slots.active then 'replication slot' else 'unused replication slot' end, slots.slot_name::text,
         null, age(slots.xmin)::int8
    from pg_replication_slots as slots
   where slots.xmin is not null
)
select held.kind, held.name, held.seconds, held.transactions
  from held
 where held.seconds > $1::float8
    or (held.seconds is null and held.transactions > 100000)
 order by held.transactions desc

-- name: due_for
-- For how many seconds the most urgent free job has been due; no row if none is.
-- gives: seconds float8
select extract(epoch from clock_timestamp() - jobs.run_at)::float8 as seconds
  from graphile_worker._private_jobs as jobs
 where jobs.is_available
   and jobs.run_at <= clock_timestamp()
 order by jobs.priority, jobs.run_at
 limit 1
