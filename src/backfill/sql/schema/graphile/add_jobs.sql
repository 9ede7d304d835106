-- Adding jobs. "Busy" below is a job that is locked or out of attempts: a keyed job that is busy cannot take a new
-- payload, so it gives up its key, and the new job is inserted beside it.
--
-- The insert goes through the keys in their order and stops at each: it makes a row, or updates the one that is there,
-- or finds that one busy, perhaps by a claim that it had to wait for; then it adds nothing, but keeps the row locked.
-- So after it all the rows are ours, and two calls with the same keys cannot wait for each other. Only then do the busy
-- rows give up their keys, and their specs go round again: nobody can have come between, and no payload is lost.
--
-- Rows come back in the order of their specs, since callers take them for that (Graphile Worker's own client does). Sorted by
-- key and id, they are in the order of the specs sorted by key and place: rows without a key were numbered in that order.
-- They are kept in memory for it, unless no spec has a key: then they come as they are made, however many they are. No
-- statement that is always sent reads the table of jobs: with a plan from when it was empty, that would be all of it.

create or replace function graphile_worker.add_jobs(
    specs graphile_worker.job_spec[],
    job_key_preserve_run_at boolean default false
)
returns setof graphile_worker._private_jobs
language plpgsql
as $body$
declare
    missing graphile_worker.job_spec[] := specs;
    wanted integer := coalesce(cardinality(specs), 0);
    placed graphile_worker._private_jobs[];
    added graphile_worker._private_jobs[];
    plain integer;
begin
    -- No specs: still a notification, an empty one.
    perform pg_notify(
        'jobs:insert',
        case when wanted > 0 then json_build_object('r', random(), 'count', wanted)::text else '' end
    );

    -- Only what is missing is inserted: each try takes a number from the sequence, and these hold integers only.
    insert into graphile_worker._private_tasks (identifier)
    select distinct spec.identifier
    from unnest(specs) as spec
    where not exists (select from graphile_worker._private_tasks as tasks where tasks.identifier = spec.identifier)
    order by spec.identifier
    on conflict do nothing;

    insert into graphile_worker._private_job_queues (queue_name)
    select distinct spec.queue_name
    from unnest(specs) as spec
    where spec.queue_name is not null
    and not exists (
        select from graphile_worker._private_job_queues as queues where queues.queue_name = spec.queue_name
    )
    order by spec.queue_name
    on conflict do nothing;

    if not exists (select from unnest(specs) as spec where spec.job_key is not null) then
        return query
        insert into graphile_worker._private_jobs (
            job_queue_id, task_id, payload, run_at, max_attempts, priority, flags
        )
        select
            queues.id,
            tasks.id,
            coalesce(spec.payload, '{}'::json),
            coalesce(spec.run_at, now()),
            coalesce(spec.max_attempts, 25::smallint),
            coalesce(spec.priority, 0::smallint),
            (select jsonb_object_agg(flag, true) from unnest(spec.flags) as flags (flag))
        from unnest(specs) with ordinality as spec
        join graphile_worker._private_tasks as tasks on tasks.identifier = spec.identifier
        left join graphile_worker._private_job_queues as queues on queues.queue_name = spec.queue_name
        where spec.queue_name is null or queues.id is not null
        order by spec.ordinality
        returning *;

        get diagnostics plain = row_count;
        if plain <> wanted then
            raise exception 'Rows of tasks or queues were removed while jobs were added for them; please try again'
                using errcode = 'serialization_failure';
        end if;
        return;
    end if;

    while wanted > 0 loop
        with made as (
            insert into graphile_worker._private_jobs as jobs (
                job_queue_id, task_id, payload, run_at, max_attempts, key, priority, flags
            )
            select
                queues.id,
                tasks.id,
                coalesce(spec.payload, '{}'::json),
                coalesce(spec.run_at, now()),
                coalesce(spec.max_attempts, 25::smallint),
                spec.job_key,
                coalesce(spec.priority, 0::smallint),
                (select jsonb_object_agg(flag, true) from unnest(spec.flags) as flags (flag))
            from unnest(missing) with ordinality as spec
            join graphile_worker._private_tasks as tasks on tasks.identifier = spec.identifier
            left join graphile_worker._private_job_queues as queues on queues.queue_name = spec.queue_name
            where spec.queue_name is null or queues.id is not null
            order by spec.job_key, spec.ordinality
            on conflict (key) do update set
                job_queue_id = excluded.job_queue_id,
                task_id = excluded.task_id,
                payload = case
                    when json_typeof(jobs.payload) = 'array' and json_typeof(excluded.payload) = 'array'
                    then (jobs.payload::jsonb || excluded.payload::jsonb)::json
                    else excluded.payload
                end,
                run_at = case
                    when job_key_preserve_run_at and jobs.attempts = 0 then jobs.run_at
                    else excluded.run_at
                end,
                max_attempts = excluded.max_attempts,
                priority = excluded.priority,
                flags = excluded.flags,
                revision = jobs.revision + 1,
                attempts = 0,
                last_error = null,
                updated_at = now()
            where jobs.is_available
            returning jobs as job
        )
        select coalesce(array_agg(made.job), '{}') into placed from made;

        added := added || placed;
        exit when cardinality(placed) = wanted;

        missing := array(
            select row(
                spec.identifier, spec.payload, spec.queue_name, spec.run_at,
                spec.max_attempts, spec.job_key, spec.priority, spec.flags
            )::graphile_worker.job_spec
            from unnest(missing) as spec
            join graphile_worker._private_jobs as jobs on jobs.key = spec.job_key
            where not jobs.is_available
        );
        if cardinality(missing) <> wanted - cardinality(placed) then
            raise exception 'Rows of tasks or queues were removed while jobs were added for them; please try again'
                using errcode = 'serialization_failure';
        end if;
        wanted := cardinality(missing);

        update graphile_worker._private_jobs as jobs
        set
            key = null,
            attempts = jobs.max_attempts,
            updated_at = now()
        where jobs.key in (select spec.job_key from unnest(missing) as spec)
        and not jobs.is_available;
    end loop;

    if cardinality(added) = 1 then
        return next added[1];
        return;
    end if;

    return query
    select
        job.id, job.job_queue_id, job.task_id, job.payload, job.priority, job.run_at, job.attempts, job.max_attempts,
        job.last_error, job.created_at, job.updated_at, job.key, job.locked_at, job.locked_by, job.revision, job.flags,
        job.is_available
    from unnest(
        array(select made from unnest(added) as made order by made.key collate "C", made.id),
        array(
            select spec.ordinality
            from unnest(specs) with ordinality as spec
            order by spec.job_key collate "C", spec.ordinality
        )
    ) as job (
        id, job_queue_id, task_id, payload, priority, run_at, attempts, max_attempts, last_error, created_at, updated_at,
        key, locked_at, locked_by, revision, flags, is_available, place
    )
    order by job.place;
end;
$body$;

create or replace function graphile_worker.add_job(
    identifier text,
    payload json default null,
    queue_name text default null,
    run_at timestamptz default null,
    max_attempts integer default null,
    job_key text default null,
    priority integer default null,
    flags text[] default null,
    job_key_mode text default 'replace'
)
returns graphile_worker._private_jobs
language plpgsql
as $body$
declare
    job graphile_worker._private_jobs;
begin
    if job_key is null or coalesce(job_key_mode, 'replace') in ('replace', 'preserve_run_at') then
        select added.* into strict job
        from graphile_worker.add_jobs(
            array[
                row(
                    identifier, payload, queue_name, run_at, max_attempts::smallint, job_key, priority::smallint, flags
                )::graphile_worker.job_spec
            ],
            coalesce(job_key_mode = 'preserve_run_at', false)
        ) as added;
        return job;
    end if;

    if job_key_mode <> 'unsafe_dedupe' then
        raise exception
            'Invalid job_key_mode value, expected ''replace'', ''preserve_run_at'' or ''unsafe_dedupe''.'
            using errcode = 'GWBKM';
    end if;

    insert into graphile_worker._private_tasks (identifier)
    select add_job.identifier
    where not exists (
        select from graphile_worker._private_tasks as tasks where tasks.identifier = add_job.identifier
    )
    on conflict do nothing;

    insert into graphile_worker._private_job_queues (queue_name)
    select add_job.queue_name
    where add_job.queue_name is not null
    and not exists (
        select from graphile_worker._private_job_queues as queues where queues.queue_name = add_job.queue_name
    )
    on conflict do nothing;

    insert into graphile_worker._private_jobs as jobs (
        job_queue_id, task_id, payload, run_at, max_attempts, key, priority, flags
    )
    select
        queues.id,
        tasks.id,
        coalesce(add_job.payload, '{}'::json),
        coalesce(add_job.run_at, now()),
        coalesce(add_job.max_attempts::smallint, 25::smallint),
        add_job.job_key,
        coalesce(add_job.priority::smallint, 0::smallint),
        (select jsonb_object_agg(flag, true) from unnest(add_job.flags) as given (flag))
    from graphile_worker._private_tasks as tasks
    left join graphile_worker._private_job_queues as queues on queues.queue_name = add_job.queue_name
    where tasks.identifier = add_job.identifier
    and (add_job.queue_name is null or queues.id is not null)
    on conflict (key) do update set
        revision = jobs.revision + 1,
        updated_at = now()
    returning * into job;

    if job.id is null then
        raise exception 'Rows of tasks or queues were removed while a job was added for them; please try again'
            using errcode = 'serialization_failure';
    end if;
    if job.revision = 0 then
        perform pg_notify('jobs:insert', json_build_object('r', random(), 'count', 1)::text);
    end if;
    return job;
end;
$body$;
