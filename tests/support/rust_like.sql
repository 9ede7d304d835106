-- Makes a schema at revision 20 that of the Rust port: what its own revisions 19 and 20 are, from what is known of them.
-- {schema} is the quoted name.

update {schema}.migrations set breaking = false where id >= 19;

-- 19: a keyed add takes an advisory lock for its key, and says GWNOR when no row results.
create or replace function {schema}.add_job(
    identifier text, payload json default null, queue_name text default null, run_at timestamptz default null,
    max_attempts integer default null, job_key text default null, priority integer default null, flags text[] default null,
    job_key_mode text default 'replace'
) returns {schema}._private_jobs language plpgsql as $$
declare
    made {schema}._private_jobs;
begin
    select * into made
    from {schema}.add_jobs(
        array[row(identifier, payload, queue_name, run_at, max_attempts, job_key, priority, flags)::{schema}.job_spec],
        job_key_mode = 'preserve_run_at'
    );
    if made.id is null then
        raise exception 'no row' using errcode = 'GWNOR';
    end if;
    return made;
end
$$;

-- 20: what finds dead workers.
create table {schema}._private_workers (
    id text primary key,
    last_heartbeat_at timestamptz not null,
    started_at timestamptz not null default now(),
    metadata jsonb
);
create index on {schema}._private_workers (last_heartbeat_at);
create function {schema}.worker_heartbeat(worker_id text, metadata json default null) returns void language sql as
    $$ select $$;
create function {schema}.worker_deregister(worker_id text) returns void language sql as $$ select $$;
create function {schema}.list_stale_workers(stale_threshold interval) returns table (worker_id text) language sql as
    $$ select id from {schema}._private_workers $$;
create function {schema}.list_orphan_locked_workers(stale_threshold interval) returns table (worker_id text) language sql as
    $$ select id from {schema}._private_workers $$;
create function {schema}.recover_dead_worker_jobs(worker_ids text[], recovery_delay interval default '0') returns integer
    language sql as $$ select 0 $$;
create function {schema}.delete_stale_workers(worker_ids text[]) returns void language sql as $$ select $$;
