-- name: register_tasks
-- Makes sure that the tasks have rows, and gives their ids. Read again on a schedule: others may collect a row that no
-- job needs and make it anew under another id.
-- A row that somebody else makes at the same moment is out of sight of this statement; the update, which changes nothing,
-- is what gives its id.
-- takes: identifiers text[]
-- gives: id int4, identifier text
with made as (
  insert into graphile_worker._private_tasks (identifier)
  select wanted.identifier
    from unnest($1::text[]) as wanted(identifier)
   where not exists (select 1 from graphile_worker._private_tasks as tasks where tasks.identifier = wanted.identifier)
   order by wanted.identifier
  on conflict (identifier) do update set identifier = excluded.identifier
  returning id, identifier
)
select made.id, made.identifier from made
union all
select tasks.id, tasks.identifier
  from graphile_worker._private_tasks as tasks
 where tasks.identifier = any($1::text[])

-- fragment: levels
-- Every priority that some available job has, one probe of the index for each.
with recursive level(priority) as (
  (select jobs.priority
     from graphile_worker._private_jobs as jobs
    where jobs.is_available = true
    order by jobs.priority
    limit 1)
  union all
  select (select jobs.priority
            from graphile_worker._private_jobs as jobs
           where jobs.is_available = true
             and jobs.priority > level.priority
           order by jobs.priority
           limit 1)
    from level
   where level.priority is not null
)

-- fragment: take_jobs
-- Takes the jobs of a CTE `picked` (id, queue_id), whose rows this statement has locked. By arrays of ids, not by a join:
-- a plan made for an empty table must not be one that later reads all of it.
held_queue as (
  update graphile_worker._private_job_queues as queues
     set locked_by = $1::text, locked_at = now()
   where queues.id = any(array(select picked.queue_id from picked where picked.queue_id is not null))
)
update graphile_worker._private_jobs as jobs
   set attempts = jobs.attempts + 1, locked_by = $1::text, locked_at = now()
 where jobs.id = any(array(select picked.id from picked))
returning jobs.id, jobs.task_id, jobs.job_queue_id as queue_id, jobs.key, jobs.flags::text as flags, jobs.attempts,
          jobs.priority,
          greatest(jobs.run_at, timestamptz '0001-01-02 00:00+00') as run_at,  -- Python's dates begin there
          jobs.payload::text as payload,
          case when jobs.job_queue_id is not null
               then (select queues.queue_name
                       from graphile_worker._private_job_queues as queues
                      where queues.id = jobs.job_queue_id)
          end as queue_name,
          jobs.max_attempts, jobs.last_error, jobs.created_at, jobs.updated_at, jobs.locked_at, jobs.revision

-- fragment: own_row
-- The row of the worker whose token $1 is, locked against being declared dead until this has committed; none if it is dead.
select 1
    from graphile_worker.backfill_workers as workers
   where workers.id = split_part($1::text, '/', 1)
     and workers.dead_at is null
     for key share skip locked

-- name: claim_jobs
-- variant: claim_jobs_without_flags
-- Claims due jobs for the lanes that take priorities: $3–$7 describe pieces of lanes (lane number, lowest and highest
-- priority, idle slots, jobs wanted); the pieces of one call don't overlap.
--
-- Order is priority, then run_at; within a serial queue also id. Jobs without a queue come from their own index; what lies behind held queues costs them
-- nothing. Priorities are walked one by one, so that a million jobs of an urgent priority that are not due cost one probe.
-- For queued jobs the candidates are looked for first and only their queues are locked; a queue gives its first job.
-- A piece may want more jobs than it has idle slots: these run a little later, and must be neither keyed nor queued, nor
-- come after such a job that had to be left.
-- $8 are queues with a lane of their own, $10 queues to look behind; $9, where it is not null, is when the caller began: only what was due then, or
-- was made since to run at once, is taken.
-- $12–$14 are the frontier, as find_frontier gives it: of these priorities queued jobs are looked for from there on.
-- A suspect (a worker died with it in its hands) is never claimed ahead, and one at most is claimed, none without $11.
-- Nothing is claimed for a worker that counts as dead.
-- takes: token text, task_ids int4[], lanes int4[], lows int2[], highs int2[], idle int4[], wanted int4[]
-- takes: other_queues text[], began_at timestamptz, passed_queues int4[], suspects bool
-- takes: frontier_priorities int2[], frontier_times timestamptz[], frontier_ids int8[]
--+ -- takes: forbidden_flags text[]
-- gives: id int8, task_id int4, queue_id int4, key text, flags text, attempts int2
-- gives: priority int2, run_at timestamptz, payload text, queue_name text, max_attempts int2
-- gives: last_error text, created_at timestamptz, updated_at timestamptz, locked_at timestamptz, revision int4
with alive as materialized (
-- include: own_row
),
piece as materialized (
  select *
    from unnest($3::int4[], $4::int2[], $5::int2[], $6::int4[], $7::int4[]) as p(lane, low, high, idle, wanted)
   where exists (select 1 from alive)
),
free as materialized (
  select piece.lane, piece.idle, piece.wanted, found.id, found.priority, found.run_at, found.keyed,
         found.suspect, null::int4 as queue_id
    from piece
   cross join lateral (
     with recursive level(priority) as (
       (select jobs.priority
          from graphile_worker._private_jobs as jobs
         where jobs.is_available = true
           and jobs.job_queue_id is null
           and jobs.priority between piece.low and piece.high
         order by jobs.priority
         limit 1)
       union all
       select (select jobs.priority
                 from graphile_worker._private_jobs as jobs
                where jobs.is_available = true
                  and jobs.job_queue_id is null
                  and jobs.priority > level.priority
                  and jobs.priority <= piece.high
                order by jobs.priority
                limit 1)
         from level
        where level.priority is not null
     )
     select due.id, due.priority, due.run_at, due.keyed, due.suspect
       from level
      cross join lateral (
        select jobs.id, jobs.priority, jobs.run_at, jobs.key is not null as keyed,
               jobs.flags is not null and strpos(jobs.flags::text, '"backfill:crashes=') > 0 as suspect
          from graphile_worker._private_jobs as jobs
         where jobs.is_available = true
           and jobs.job_queue_id is null
           and jobs.priority = level.priority
           and jobs.run_at <= now()
           and jobs.task_id = any($2::int4[])
           and (jobs.flags is null or $11::bool or strpos(jobs.flags::text, '"backfill:crashes=') = 0)
           --+ and (jobs.flags is null or not jobs.flags ?| $15::text[])
           and ($9::timestamptz is null
                or jobs.run_at <= $9::timestamptz
                or (jobs.attempts = 0 and jobs.run_at <= jobs.created_at))
         order by jobs.priority, jobs.run_at
         limit piece.wanted
           for update skip locked
      ) as due
      limit piece.wanted
   ) as found
),
frontier as materialized (
  select * from unnest($12::int2[], $13::timestamptz[], $14::int8[]) as f(priority, run_at, id)
),
candidate as materialized (
  select piece.lane, piece.idle, piece.wanted, found.id, found.priority, found.run_at, found.queue_id
    from piece
   cross join lateral (
     with recursive level(priority) as (
       (select jobs.priority
          from graphile_worker._private_jobs as jobs
         where jobs.is_available = true
           and jobs.priority between piece.low and piece.high
         order by jobs.priority
         limit 1)
       union all
       select (select jobs.priority
                 from graphile_worker._private_jobs as jobs
                where jobs.is_available = true
                  and jobs.priority > level.priority
                  and jobs.priority <= piece.high
                order by jobs.priority
                limit 1)
         from level
        where level.priority is not null
     )
     select due.id, due.priority, due.run_at, due.queue_id
       from level
      cross join lateral (
        select coalesce(max(frontier.run_at), '-infinity') as run_at
          from frontier
         where frontier.priority = level.priority
      ) as start
      cross join lateral (
        select jobs.id, jobs.priority, jobs.run_at, jobs.job_queue_id as queue_id
          from graphile_worker._private_jobs as jobs
         where jobs.is_available = true
           and jobs.priority = level.priority
           and jobs.run_at >= start.run_at
           and jobs.run_at <= now()
           and jobs.task_id = any($2::int4[])
           and (jobs.job_queue_id is not null or jobs.flags is null or $11::bool
                or strpos(jobs.flags::text, '"backfill:crashes=') = 0)
           --+ and (jobs.flags is null or not jobs.flags ?| $15::text[])
           and (jobs.job_queue_id is null
                or (jobs.job_queue_id <> all($10::int4[])
                    and (select queues.is_available and queues.queue_name <> all($8::text[])
                           from graphile_worker._private_job_queues as queues
                          where queues.id = jobs.job_queue_id)))
           and ($9::timestamptz is null
                or jobs.run_at <= $9::timestamptz
                or (jobs.attempts = 0 and jobs.run_at <= jobs.created_at))
         order by jobs.priority, jobs.run_at
         limit piece.idle
      ) as due
      limit piece.idle
   ) as found
   where piece.idle > 0
     and exists (select 1 from graphile_worker._private_job_queues)
),
candidate_queue as materialized (
  select distinct on (candidate.queue_id) candidate.*
    from candidate
   where candidate.queue_id is not null
   order by candidate.queue_id, candidate.priority, candidate.run_at
),
queue as materialized (
  select candidate_queue.*
    from candidate_queue
   cross join lateral (
     select queues.id
       from graphile_worker._private_job_queues as queues
      where queues.id = candidate_queue.queue_id
        and queues.is_available
        for update skip locked
   ) as free_queue
),
tied as materialized (  -- jobs of the same priority and time, which may be many: looked through once for all queues
  select ties.priority, ties.run_at, ties.queue_ids, ties.last_id,
         case when ties.last_id - frontier.id < 20000 then frontier.id end as first_id
    from (
      select queue.priority, queue.run_at, array_agg(queue.queue_id) as queue_ids, max(queue.id) as last_id
        from queue
       group by queue.priority, queue.run_at
    ) as ties
    left join frontier on frontier.priority = ties.priority and frontier.run_at = ties.run_at
),
lowest as materialized (
  select tie.queue_id, tie.id
    from tied
   cross join lateral (
     select jobs.job_queue_id as queue_id, min(jobs.id) as id
       from graphile_worker._private_jobs as jobs
      where jobs.is_available = true
        and jobs.priority = tied.priority
        and jobs.run_at = tied.run_at
        and jobs.job_queue_id = any(tied.queue_ids)
        and jobs.task_id = any($2::int4[])
        --+ and (jobs.flags is null or not jobs.flags ?| $15::text[])
        and tied.first_id is null
      group by jobs.job_queue_id
   ) as tie
  union all
  select tie.queue_id, tie.id
    from tied
   cross join lateral (
     select jobs.job_queue_id as queue_id, min(jobs.id) as id
       from graphile_worker._private_jobs as jobs
      where jobs.id between tied.first_id and tied.last_id
        and jobs.is_available is not distinct from true  -- by the primary key's index: not a condition that another one has
        and jobs.priority is not distinct from tied.priority
        and jobs.run_at is not distinct from tied.run_at
        and jobs.job_queue_id = any(tied.queue_ids)
        and jobs.task_id = any($2::int4[])
        --+ and (jobs.flags is null or not jobs.flags ?| $15::text[])
      group by jobs.job_queue_id
   ) as tie
   where tied.first_id is not null
),
head as materialized (
  select queue.lane, queue.idle, queue.wanted, first.id, first.priority, first.run_at, true as keyed,
         first.suspect, queue.queue_id
    from queue
   cross join lateral (
     select coalesce((select least(lowest.id, queue.id) from lowest where lowest.queue_id = queue.queue_id), queue.id) as id
     offset 0
   ) as lowest
   cross join lateral (
     select jobs.id, jobs.priority, jobs.run_at,
            jobs.flags is not null and strpos(jobs.flags::text, '"backfill:crashes=') > 0 as suspect
       from graphile_worker._private_jobs as jobs
      where jobs.id = lowest.id
        and jobs.is_available = true
        and jobs.run_at <= now()
        and jobs.job_queue_id = queue.queue_id
        and jobs.task_id = any($2::int4[])
        --+ and (jobs.flags is null or not jobs.flags ?| $15::text[])
        for update skip locked
   ) as first
),
found as materialized (
  select found.*
    from (select * from free union all select * from head) as found
   where $11::bool or not found.suspect
),
fair as materialized (
  select found.*
    from found
   where not found.suspect
      or found.id = (select first.id
                       from found as first
                      where first.suspect
                      order by first.priority, first.run_at, first.id
                      limit 1)
),
plain as materialized (  -- then the limits above have chosen already, and there is nothing to weigh
  select not exists (select 1 from fair where fair.keyed or fair.suspect)
         and not exists (select 1 from piece group by piece.lane having count(*) > 1) as is_plain
),
picked as materialized (
  select fair.id, fair.queue_id
    from fair
   where (select plain.is_plain from plain)
  union all
  select fit.id, fit.queue_id
    from (
      select ranked.*,
             count(*) filter (where (ranked.keyed or ranked.suspect) and ranked.place > ranked.idle)
               over (partition by ranked.lane order by ranked.place) as left_over
        from (
          select fair.*,
                 row_number() over (partition by fair.lane order by fair.priority, fair.run_at, fair.id) as place
            from fair
           where not (select plain.is_plain from plain)
        ) as ranked
    ) as fit
   where fit.place <= fit.wanted
     and fit.left_over = 0
),
-- include: take_jobs

-- name: claim_queue_head
-- variant: claim_queue_head_without_flags
-- Claims the first due job of the queue of that name, for the lane that is the queue's own; nothing while it is held, nor,
-- without $5, when that job is a suspect.
-- takes: token text, task_ids int4[], queue_name text, began_at timestamptz, suspects bool
--+ -- takes: forbidden_flags text[]
-- gives: id int8, task_id int4, queue_id int4, key text, flags text, attempts int2
-- gives: priority int2, run_at timestamptz, payload text, queue_name text, max_attempts int2
-- gives: last_error text, created_at timestamptz, updated_at timestamptz, locked_at timestamptz, revision int4
with alive as materialized (
-- include: own_row
),
queue as materialized (
  select queues.id
    from graphile_worker._private_job_queues as queues
   where queues.queue_name = $3::text
     and exists (select 1 from alive)
     and queues.is_available
     for update skip locked
),
picked as materialized (
  select first.id, queue.id as queue_id
    from queue
   cross join lateral (
-- include: levels
     select due.id, due.suspect
       from level
      cross join lateral (
        select jobs.id, jobs.flags is not null and strpos(jobs.flags::text, '"backfill:crashes=') > 0 as suspect
          from graphile_worker._private_jobs as jobs
         where jobs.is_available = true
           and jobs.priority = level.priority
           and jobs.run_at <= now()
           and jobs.job_queue_id = queue.id
           and jobs.task_id = any($2::int4[])
           --+ and (jobs.flags is null or not jobs.flags ?| $6::text[])
           and ($4::timestamptz is null
                or jobs.run_at <= $4::timestamptz
                or (jobs.attempts = 0 and jobs.run_at <= jobs.created_at))
         order by jobs.priority, jobs.run_at, jobs.id
         limit 1
           for update skip locked
      ) as due
      limit 1
   ) as first
   where $5::bool or not first.suspect
),
-- include: take_jobs

-- name: free_queues
-- variant: free_queues_without_flags
-- The queues that the first $4 due jobs of these tasks belong to, of those that nobody holds: after a claim that left them,
-- queues whose first job somebody has locked, and behind whose jobs others' jobs wait unseen.
-- takes: task_ids int4[], other_queues text[], passed_queues int4[], jobs int4
--+ -- takes: forbidden_flags text[]
-- gives: queue_id int4
-- include: levels
select distinct first.queue_id
  from (
    select due.queue_id
      from level
     cross join lateral (
       select jobs.job_queue_id as queue_id
         from graphile_worker._private_jobs as jobs
        where jobs.is_available = true
          and jobs.priority = level.priority
          and jobs.run_at <= now()
          and jobs.task_id = any($1::int4[])
          --+ and (jobs.flags is null or not jobs.flags ?| $5::text[])
          and (jobs.job_queue_id is null
               or (jobs.job_queue_id <> all($3::int4[])
                   and (select queues.is_available and queues.queue_name <> all($2::text[])
                          from graphile_worker._private_job_queues as queues
                         where queues.id = jobs.job_queue_id)))
        order by jobs.priority, jobs.run_at
        limit $4::int4
     ) as due
     limit $4::int4
  ) as first
 where first.queue_id is not null

-- name: find_frontier
-- Where claims may begin to look for queued jobs: for each priority the time before which all due jobs are of queues that others
-- hold, and the lowest id of the queued jobs of just that time. Jobs of queues that $2 holds count as free, since it knows when
-- it frees them. passed: the queues of the jobs before it. Should one be freed meanwhile, its later jobs must not be taken for its
-- first: while the frontier is in use these queues are left alone. Of jobs given an earlier time a frontier knows nothing.
-- takes: task_ids int4[], worker_id text, other_queues text[]
-- gives: priority int2, run_at timestamptz, id int8, passed int4[]
-- include: levels
select level.priority, start.run_at,
       case when first.queue_id is not null
            then (select min(tie.id + 0)  -- not by the primary key's index, which would read all older jobs
                    from graphile_worker._private_jobs as tie
                   where tie.is_available = true
                     and tie.priority = level.priority
                     and tie.run_at = first.run_at
                     and tie.job_queue_id is not null
                     and tie.task_id = any($1::int4[]))
       end as id,
       array(select distinct passed.job_queue_id
               from graphile_worker._private_jobs as passed
              where passed.is_available = true
                and passed.priority = level.priority
                and passed.run_at < start.run_at
                and passed.job_queue_id is not null
                and passed.task_id = any($1::int4[])) as passed
  from level
  left join lateral (
    select jobs.run_at, jobs.job_queue_id as queue_id
      from graphile_worker._private_jobs as jobs
     where jobs.is_available = true
       and jobs.priority = level.priority
       and jobs.run_at <= now()
       and jobs.task_id = any($1::int4[])
       and (jobs.job_queue_id is null
            or (select (queues.is_available or starts_with(queues.locked_by, $2::text || '/'))
                       and queues.queue_name <> all($3::text[])
                  from graphile_worker._private_job_queues as queues
                 where queues.id = jobs.job_queue_id))
     order by jobs.priority, jobs.run_at
     limit 1
  ) as first on true
  left join lateral (  -- all are of held queues: from behind the last
    select jobs.run_at
      from graphile_worker._private_jobs as jobs
     where jobs.is_available = true
       and jobs.priority = level.priority
       and jobs.run_at <= now()
       and first.run_at is null
     order by jobs.priority desc, jobs.run_at desc
     limit 1
  ) as last on true
 cross join lateral (
   select coalesce(first.run_at, last.run_at + interval '1 microsecond') as run_at
 ) as start
 where start.run_at > timestamptz '0001-01-02 00:00+00'  -- Python's dates begin there

-- name: tell_others
-- Wakes every worker: a queue became free, and its next job is not one for the worker that freed it.
-- gives: told int8
select count(pg_notify('jobs:insert', json_build_object('r', random(), 'count', 1)::text)) as told

-- name: next_due
-- In how many seconds the next job of these tasks becomes due; null when none waits. One probe for each priority.
-- takes: task_ids int4[]
-- gives: seconds float8
-- include: levels
select extract(epoch from min(soon.run_at) - clock_timestamp())::float8 as seconds
  from level
 cross join lateral (
   select jobs.run_at
     from graphile_worker._private_jobs as jobs
    where jobs.is_available = true
      and jobs.priority = level.priority
      and jobs.run_at > now()
      and jobs.task_id = any($1::int4[])
    order by jobs.priority, jobs.run_at
    limit 1
 ) as soon

-- name: locks_of_worker
-- Every job and queue that a worker's claims hold, by their tokens. No index leads to locks: asked only after a reconnect
-- and seldom else.
-- takes: worker_id text
-- gives: job_id int8, queue_id int4, token text
select jobs.id as job_id, jobs.job_queue_id as queue_id, jobs.locked_by as token
  from graphile_worker._private_jobs as jobs
 where starts_with(jobs.locked_by, $1::text || '/')
union all
select null, queues.id, queues.locked_by
  from graphile_worker._private_job_queues as queues
 where starts_with(queues.locked_by, $1::text || '/')

-- name: end_backends
-- Ends the backends of that application name, and waits for their end up to $2 milliseconds each: how many there were.
-- Behind a pooler a backend that is idle is nobody's, and may be somebody else's in a moment: then only those that are in a
-- transaction.
-- takes: application_name text, patience int8, only_busy bool
-- gives: backends int8
select count(pg_terminate_backend(pid, $2::int8)) as backends
  from pg_stat_activity
 where application_name = $1::text
   and pid <> pg_backend_pid()
   and (state is distinct from 'idle' or not $3::bool)

-- name: end_predecessors
-- Ends the other backends of this session's application name, and waits for their end up to $1 milliseconds each. One that
-- has lost its client may hold locks until the network tells it so. Behind a pooler as in end_backends.
-- takes: patience int8, only_busy bool
-- gives: backends int8
select count(pg_terminate_backend(pid, $1::int8)) as backends
  from pg_stat_activity
 where application_name = current_setting('application_name')
   and pid <> pg_backend_pid()
   and (state is distinct from 'idle' or not $2::bool)

-- name: database_time
-- The database's clock: the time that decides what is due.
-- gives: now timestamptz
select now() as now

-- name: begin_scan
-- Whether this transaction is now the one that scans for used-up jobs of the schema.
-- takes: schema_name text
-- gives: ours bool
select pg_try_advisory_xact_lock(hashtextextended('backfill dead letter scan of ' || $1::text, 0)) as ours

-- name: backend
-- The id of the server's process behind this transaction. Through a pooler it is not the one that was announced to the client.
-- gives: process int4
select pg_backend_pid() as process

-- name: is_read_only
-- Whether the server, or this session of it, takes no writes.
-- gives: read_only bool
select current_setting('transaction_read_only')::bool as read_only

-- name: set_for_transaction
-- Sets settings up to the end of the transaction; how many.
-- takes: names text[], values text[]
-- gives: settings int8
select count(set_config(wanted.name, wanted.value, true)) as settings
  from unnest($1::text[], $2::text[]) as wanted(name, value)
