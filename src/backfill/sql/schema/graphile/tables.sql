-- The tables, in the shape of revision 20. The odd names (jobs_pkey1, jobs_id_seq1 …) are upstream's, and later
-- migrations of upstream may refer to them.

create table graphile_worker.migrations (
    id integer not null,
    ts timestamptz not null default now(),
    breaking boolean not null default false,
    constraint migrations_pkey primary key (id)
);

create table graphile_worker._private_tasks (
    id integer not null generated always as identity (sequence name graphile_worker.tasks_id_seq),
    identifier text not null,
    constraint tasks_pkey primary key (id),
    constraint tasks_identifier_key unique (identifier),
    constraint tasks_identifier_check check (length(identifier) <= 128)
);
alter table graphile_worker._private_tasks enable row level security;

create table graphile_worker._private_job_queues (
    id integer not null generated always as identity (sequence name graphile_worker.job_queues_id_seq),
    queue_name text not null,
    locked_at timestamptz,
    locked_by text,
    is_available boolean not null generated always as (locked_at is null) stored,
    constraint job_queues_pkey1 primary key (id),
    constraint job_queues_queue_name_key unique (queue_name),
    constraint job_queues_queue_name_check check (length(queue_name) <= 128)
);
alter table graphile_worker._private_job_queues enable row level security;

create table graphile_worker._private_jobs (
    id bigint not null generated always as identity (sequence name graphile_worker.jobs_id_seq1),
    job_queue_id integer,
    task_id integer not null,
    payload json not null default '{}'::json,
    priority smallint not null default 0,
    run_at timestamptz not null default now(),
    attempts smallint not null default 0,
    max_attempts smallint not null default 25,
    last_error text,
    created_at timestamptz not null default now(),
    updated_at timestamptz not null default now(),
    key text,
    locked_at timestamptz,
    locked_by text,
    revision integer not null default 0,
    flags jsonb,
    is_available boolean not null generated always as (locked_at is null and attempts < max_attempts) stored,
    constraint jobs_pkey1 primary key (id),
    constraint jobs_key_key1 unique (key),
    constraint jobs_key_check check (length(key) > 0 and length(key) <= 512),
    constraint jobs_max_attempts_check check (max_attempts >= 1)
);
alter table graphile_worker._private_jobs enable row level security;

create index jobs_main_index on graphile_worker._private_jobs
    using btree (priority, run_at) include (id, task_id, job_queue_id)
    where (is_available = true);

create index jobs_no_queue_index on graphile_worker._private_jobs
    using btree (priority, run_at) include (id, task_id)
    where (is_available = true and job_queue_id is null);

create table graphile_worker._private_known_crontabs (
    identifier text not null,
    known_since timestamptz not null,
    last_execution timestamptz,
    constraint known_crontabs_pkey primary key (identifier)
);
alter table graphile_worker._private_known_crontabs enable row level security;

create view graphile_worker.jobs as
    select
        jobs.id,
        queues.queue_name,
        tasks.identifier as task_identifier,
        jobs.priority,
        jobs.run_at,
        jobs.attempts,
        jobs.max_attempts,
        jobs.last_error,
        jobs.created_at,
        jobs.updated_at,
        jobs.key,
        jobs.locked_at,
        jobs.locked_by,
        jobs.revision,
        jobs.flags
    from graphile_worker._private_jobs as jobs
    join graphile_worker._private_tasks as tasks on tasks.id = jobs.task_id
    left join graphile_worker._private_job_queues as queues on queues.id = jobs.job_queue_id;

create type graphile_worker.job_spec as (
    identifier text,
    payload json,
    queue_name text,
    run_at timestamptz,
    max_attempts smallint,
    job_key text,
    priority smallint,
    flags text[]
);

insert into graphile_worker.migrations (id, breaking)
select id, id in (1, 3, 11, 13, 14, 16, 19)
from generate_series(1, 20) as ids (id);
