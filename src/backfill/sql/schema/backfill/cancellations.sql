-- Running jobs that somebody wants cancelled: the wish is here first, and whoever releases the job finds it. The row goes
-- with the job.

create table if not exists graphile_worker.backfill_cancellations (
    job_id bigint primary key,
    dead_letter boolean not null default false,
    reason text,
    requested_at timestamptz not null default now()
);
