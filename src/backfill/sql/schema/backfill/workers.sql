-- The workers of backfill that live, each a row that its process keeps renewing; see docs/reliability.md. The fill factor
-- leaves room on each page for the next version of a row, so that beats touch no index.

create table if not exists graphile_worker.backfill_workers (
    id text primary key,
    host text not null,
    pid integer not null,
    version text not null,
    lanes jsonb not null,
    tasks text[] not null,
    state text not null default 'alive',
    started_at timestamptz not null default now(),
    heartbeat_at timestamptz not null default now(),
    lease interval not null,
    running bigint[] not null default '{}',
    running_since timestamptz[] not null default '{}',
    loop_lag double precision not null default 0,
    dead_at timestamptz
)
with (fillfactor = 25);
