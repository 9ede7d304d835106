-- What backfill itself has installed; the rows of graphile_worker.migrations are upstream's alone.

create table if not exists graphile_worker.backfill_migrations (
    id integer primary key,
    name text not null unique,
    applied_at timestamptz not null default now()
);
