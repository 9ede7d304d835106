-- Administration. All but force_unlock_workers leave a job alone while it is locked, unless the lock is older than four
-- hours: then its worker is taken for dead.

create function graphile_worker.remove_job(job_key text)
returns graphile_worker._private_jobs
language plpgsql
strict
as $body$
declare
    job graphile_worker._private_jobs;
begin
    select * into job
    from graphile_worker._private_jobs as jobs
    where jobs.key = job_key
    for update;

    if not found then
        return null;
    end if;

    if job.locked_at is null or job.locked_at < now() - interval '4 hours' then
        delete from graphile_worker._private_jobs as jobs where jobs.id = job.id;
        perform pg_notify('jobs:insert', json_build_object('r', random(), 'count', -1)::text);
    else
        -- It runs: it may finish, but will not be tried again.
        update graphile_worker._private_jobs as jobs
        set
            key = null,
            attempts = jobs.max_attempts,
            updated_at = now()
        where jobs.id = job.id
        returning * into job;
    end if;
    return job;
end;
$body$;

create function graphile_worker.complete_jobs(job_ids bigint[])
returns setof graphile_worker._private_jobs
language sql
as $body$
    delete from graphile_worker._private_jobs as jobs
    where jobs.id = any(complete_jobs.job_ids)
    and (jobs.locked_at is null or jobs.locked_at < now() - interval '4 hours')
    returning *;
$body$;

create function graphile_worker.permanently_fail_jobs(job_ids bigint[], error_message text default null)
returns setof graphile_worker._private_jobs
language sql
as $body$
    update graphile_worker._private_jobs as jobs
    set
        attempts = jobs.max_attempts,
        last_error = coalesce(permanently_fail_jobs.error_message, 'Manually marked as failed'),
        updated_at = now()
    where jobs.id = any(permanently_fail_jobs.job_ids)
    and (jobs.locked_at is null or jobs.locked_at < now() - interval '4 hours')
    returning *;
$body$;

create function graphile_worker.reschedule_jobs(
    job_ids bigint[],
    run_at timestamptz default null,
    priority integer default null,
    attempts integer default null,
    max_attempts integer default null
)
returns setof graphile_worker._private_jobs
language sql
as $body$
    update graphile_worker._private_jobs as jobs
    set
        run_at = coalesce(reschedule_jobs.run_at, jobs.run_at),
        priority = coalesce(reschedule_jobs.priority::smallint, jobs.priority),
        attempts = coalesce(reschedule_jobs.attempts::smallint, jobs.attempts),
        max_attempts = coalesce(reschedule_jobs.max_attempts::smallint, jobs.max_attempts),
        updated_at = now()
    where jobs.id = any(reschedule_jobs.job_ids)
    and (jobs.locked_at is null or jobs.locked_at < now() - interval '4 hours')
    returning *;
$body$;

create function graphile_worker.force_unlock_workers(worker_ids text[])
returns void
language sql
as $body$
    update graphile_worker._private_jobs as jobs
    set
        locked_at = null,
        locked_by = null
    where jobs.locked_by = any(force_unlock_workers.worker_ids);

    update graphile_worker._private_job_queues as queues
    set
        locked_at = null,
        locked_by = null
    where queues.locked_by = any(force_unlock_workers.worker_ids);
$body$;
