-- The dead letter queue: what failed for good, with all it takes to run it again. May run when the table is there, whole
-- or as the Rust crate backfill made it.

create table if not exists graphile_worker.backfill_dlq (
    id bigserial primary key,
    original_job_id bigint,
    task_identifier text not null,
    payload jsonb not null,
    queue_name text not null default 'default',
    priority integer not null default 0,
    job_key text,
    max_attempts integer,
    failure_reason text not null,
    failure_count integer not null default 1,
    last_error jsonb,
    original_created_at timestamptz,
    original_run_at timestamptz,
    failed_at timestamptz not null default now(),
    requeued_count integer not null default 0,
    last_requeued_at timestamptz,
    notes text,
    created_by text,
    flags jsonb,
    requeued_job_id bigint,
    history jsonb
);

-- The columns that the Rust crate's table has not, and those that it has too narrow for Graphile's own limits.
alter table graphile_worker.backfill_dlq
    add column if not exists created_by text,
    add column if not exists flags jsonb,
    add column if not exists requeued_job_id bigint,
    add column if not exists history jsonb;

do $body$
begin
    if pg_typeof((null::graphile_worker.backfill_dlq).task_identifier) <> 'text'::regtype then
        alter table graphile_worker.backfill_dlq alter column task_identifier type text;
    end if;
    if pg_typeof((null::graphile_worker.backfill_dlq).queue_name) <> 'text'::regtype then
        alter table graphile_worker.backfill_dlq
            alter column queue_name type text,
            alter column queue_name set default 'default';
    end if;
    if pg_typeof((null::graphile_worker.backfill_dlq).job_key) <> 'text'::regtype then
        alter table graphile_worker.backfill_dlq alter column job_key type text;
    end if;
end;
$body$;

create index if not exists idx_backfill_dlq_task_identifier
    on graphile_worker.backfill_dlq (task_identifier);
create index if not exists idx_backfill_dlq_failed_at
    on graphile_worker.backfill_dlq (failed_at desc);
create index if not exists idx_backfill_dlq_queue_name
    on graphile_worker.backfill_dlq (queue_name);
create index if not exists idx_backfill_dlq_job_key
    on graphile_worker.backfill_dlq (job_key) where job_key is not null;
create unique index if not exists idx_backfill_dlq_job_key_unique
    on graphile_worker.backfill_dlq (job_key) where job_key is not null;
-- Entries that are out: each release of a requeued job looks its entry up.
create index if not exists idx_backfill_dlq_requeued_job_id
    on graphile_worker.backfill_dlq (requeued_job_id) where requeued_job_id is not null;
