-- fragment: is_alive
-- Looks at the worker's row once there is a job, not before: its lock is written to the log, and a look that finds nothing shall
-- write nothing. `chosen.id` is what keeps it from being looked at first.
         case when chosen.id is not null then exists (select 1 from alive) end

-- fragment: claimed_columns
returning jobs.id, jobs.task_id, jobs.job_queue_id as queue_id, jobs.key, jobs.flags::text as flags, jobs.attempts,
          jobs.priority,
          greatest(jobs.run_at, timestamptz '0001-01-02 00:00+00') as run_at,  -- Python's dates begin there
          jobs.payload::text as payload,

-- fragment: more_claimed_columns
          jobs.max_attempts, jobs.last_error, jobs.created_at, jobs.updated_at, jobs.locked_at, jobs.revision

-- fragment: take_jobs
-- Takes the jobs of a CTE `chosen` (id, queue_id), whose rows this statement has locked, if the worker is alive. By arrays of ids,
-- not by a join: a plan made for an empty table must not be one that later reads all of it.
alive as materialized (
-- include: own_row
),
picked as materialized (
  select chosen.id, chosen.queue_id
    from chosen
   where
-- include: is_alive
),
held_queue as (
  update graphile_worker._private_job_queues as queues
     set locked_by = $1::text, locked_at = now()
   where queues.id = any(array(select picked.queue_id from picked where picked.queue_id is not null))
)
update graphile_worker._private_jobs as jobs
   set attempts = jobs.attempts + 1, locked_by = $1::text, locked_at = now()
 where jobs.id = any(array(select picked.id from picked))
-- include: claimed_columns
          case when jobs.job_queue_id is not null
               then (select queues.queue_name
                       from graphile_worker._private_job_queues as queues
                      where queues.id = jobs.job_queue_id)
          end as queue_name,
-- include: more_claimed_columns

-- fragment: own_row
-- The row of the worker whose token $1 is, locked against being declared dead until this has committed; none if it is dead.
select 1
    from graphile_worker.backfill_workers as workers
   where workers.id = split_part($1::text, '/', 1)
     and workers.dead_at is null
     for key share skip locked

-- fragment: free_jobs
-- Jobs without a queue for the pieces of lanes of a CTE `piece`, from their own index. Priorities are walked one by one, so that a
-- million jobs of an urgent priority that are not due cost one probe.
free as materialized (
  select piece.lane, piece.idle, piece.wanted, found.id, found.priority, found.run_at, found.keyed,
         found.suspect, null::int4 as queue_id
    from piece
   cross join lateral (
     with recursive level(priority) as (
       select case when piece.low = piece.high then piece.low else
         (select jobs.priority
            from graphile_worker._private_jobs as jobs
           where jobs.is_available = true
             and jobs.job_queue_id is null
             and jobs.priority between piece.low and piece.high
           order by jobs.priority
           limit 1) end
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
           and jobs.run_at >= piece.floor
           and jobs.run_at <= now()
           and jobs.task_id = any($2::int4[])
           and (jobs.flags is null or $9::bool or strpos(jobs.flags::text, '"backfill:crashes=') = 0)
           --+ and (jobs.flags is null or not jobs.flags ?| $16::text[])
           and ($8::timestamptz is null
                or jobs.run_at <= $8::timestamptz
                or (jobs.attempts = 0 and jobs.run_at <= jobs.created_at))
         order by jobs.priority, jobs.run_at
         limit piece.wanted
           for update skip locked
      ) as due
      limit piece.wanted
   ) as found
),

-- fragment: one_suspect
-- Of the jobs of a CTE `found` those that are no suspects, and the first suspect.
fair as materialized (
  select found.*
    from found
   where not found.suspect
      or found.id = (select first.id
                       from found as first
                      where first.suspect
                      order by first.priority, first.run_at, first.id
                      limit 1)
)

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
-- $10 are queues with a lane of their own, $11 queues to look behind; $8, where it is not null, is when the caller began: only what was due then, or
-- was made since to run at once, is taken.
-- $12–$14 are the frontier, as find_frontier gives it: of these priorities queued jobs are looked for from there on. $15: for each
-- piece, from which time on its jobs without a queue are looked for; null = from the beginning.
-- A suspect (a worker died with it in its hands) is never claimed ahead, and one at most is claimed, none without $9.
-- Nothing is claimed for a worker that counts as dead.
-- takes: token text, task_ids int4[], lanes int4[], lows int2[], highs int2[], idle int4[], wanted int4[]
-- takes: began_at timestamptz, suspects bool, other_queues text[], passed_queues int4[]
-- takes: frontier_priorities int2[], frontier_times timestamptz[], frontier_ids int8[], floors timestamptz[]
--+ -- takes: forbidden_flags text[]
-- gives: id int8, task_id int4, queue_id int4, key text, flags text, attempts int2
-- gives: priority int2, run_at timestamptz, payload text, queue_name text, max_attempts int2
-- gives: last_error text, created_at timestamptz, updated_at timestamptz, locked_at timestamptz, revision int4
with piece as materialized (
  select p.lane, p.low, p.high, p.idle, p.wanted, coalesce(p.floor, '-infinity') as floor
    from unnest($3::int4[], $4::int2[], $5::int2[], $6::int4[], $7::int4[], $15::timestamptz[])
         as p(lane, low, high, idle, wanted, floor)
),
-- include: free_jobs
frontier as materialized (
  select * from unnest($12::int2[], $13::timestamptz[], $14::int8[]) as f(priority, run_at, id)
),
candidate as materialized (
  select piece.lane, piece.idle, piece.wanted, found.id, found.priority, found.run_at, found.queue_id
    from piece
   cross join lateral (
     with recursive level(priority) as (
       select case when piece.low = piece.high then piece.low else
         (select jobs.priority
            from graphile_worker._private_jobs as jobs
           where jobs.is_available = true
             and jobs.priority between piece.low and piece.high
           order by jobs.priority
           limit 1) end
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
           and (jobs.job_queue_id is not null or jobs.flags is null or $9::bool
                or strpos(jobs.flags::text, '"backfill:crashes=') = 0)
           --+ and (jobs.flags is null or not jobs.flags ?| $16::text[])
           and (jobs.job_queue_id is null
                or (jobs.job_queue_id <> all($11::int4[])
                    and (select queues.is_available and queues.queue_name <> all($10::text[])
                           from graphile_worker._private_job_queues as queues
                          where queues.id = jobs.job_queue_id)))
           and ($8::timestamptz is null
                or jobs.run_at <= $8::timestamptz
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
        --+ and (jobs.flags is null or not jobs.flags ?| $16::text[])
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
        --+ and (jobs.flags is null or not jobs.flags ?| $16::text[])
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
        --+ and (jobs.flags is null or not jobs.flags ?| $16::text[])
        for update skip locked
   ) as first
),
found as materialized (
  select found.*
    from (select * from free union all select * from head) as found
   where $9::bool or not found.suspect
),
-- include: one_suspect
,
plain as materialized (  -- then the limits above have chosen already, and there is nothing to weigh
  select not exists (select 1 from fair where fair.keyed or fair.suspect)
         and not exists (select 1 from piece group by piece.lane having count(*) > 1) as is_plain
),
chosen as materialized (
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

-- name: claim_free_jobs
-- What claim_jobs does for pieces that want no more jobs than they have idle slots, one for each lane, while no job has a queue:
-- in half of its start-up time, which is most of what the claim of a few jobs costs. Nothing is claimed once there is a row
-- of a queue, since then a queued job may be more urgent.
-- takes: token text, task_ids int4[], lanes int4[], lows int2[], highs int2[], idle int4[], wanted int4[]
-- takes: began_at timestamptz, suspects bool
-- gives: id int8, task_id int4, queue_id int4, key text, flags text, attempts int2
-- gives: priority int2, run_at timestamptz, payload text, queue_name text, max_attempts int2
-- gives: last_error text, created_at timestamptz, updated_at timestamptz, locked_at timestamptz, revision int4
with piece as materialized (
  select p.*, timestamptz '-infinity' as floor
    from unnest($3::int4[], $4::int2[], $5::int2[], $6::int4[], $7::int4[]) as p(lane, low, high, idle, wanted)
   where not exists (select 1 from graphile_worker._private_job_queues)
),
-- include: free_jobs
found as materialized (
  select free.* from free where $9::bool or not free.suspect
),
-- include: one_suspect
,
alive as materialized (
-- include: own_row
)
update graphile_worker._private_jobs as jobs
   set attempts = jobs.attempts + 1, locked_by = $1::text, locked_at = now()
 where jobs.id = any(array(select chosen.id
                           from fair as chosen
                          where
-- include: is_alive
                         ))
-- include: claimed_columns
          null::text as queue_name,
-- include: more_claimed_columns

-- name: has_queues
-- Whether there are rows of queues: then claim_free_jobs takes nothing.
-- takes: nothing
-- gives: has_queues bool
select exists (select 1 from graphile_worker._private_job_queues) as has_queues

-- name: claim_next_of_queues
-- Claims the next jobs of queues that a release has just freed: $3 queues, with priority, time and id of the job that each had run
-- ($4, $5, $6). For one lane, of priorities $7 to $8, that has a slot for each and knows of nothing else that waits.
--
-- Looks at the 100 most urgent jobs that wait. A queue that has none of these gets nothing, and neither does one whose first of
-- them may have equals behind the hundredth: unless these equal the job that was run, too. That one was the first of them by id, so
-- those after it are looked for by id. The caller then looks with claim_jobs.
-- takes: token text, task_ids int4[], queue_ids int4[], priorities int2[], times timestamptz[], ids int8[]
-- takes: low int2, high int2, suspects bool
-- gives: id int8, task_id int4, queue_id int4, key text, flags text, attempts int2
-- gives: priority int2, run_at timestamptz, payload text, queue_name text, max_attempts int2
-- gives: last_error text, created_at timestamptz, updated_at timestamptz, locked_at timestamptz, revision int4
with queue as materialized (
  select freed.*
    from unnest($3::int4[], $4::int2[], $5::timestamptz[], $6::int8[]) as freed(queue_id, priority, run_at, job_id)
   cross join lateral (
     select queues.id
       from graphile_worker._private_job_queues as queues
      where queues.id = freed.queue_id
        and queues.is_available
        for update skip locked
   ) as free_queue
),
front as materialized (
  select jobs.id, jobs.priority, jobs.run_at, jobs.job_queue_id, jobs.task_id
    from graphile_worker._private_jobs as jobs
   where jobs.is_available = true
   order by jobs.priority, jobs.run_at
   limit 101
),
edge as materialized (
  select front.priority, front.run_at from front offset 100
),
first as materialized (
  select queue.queue_id, queue.job_id, front.id, front.priority, front.run_at,
         (front.priority, front.run_at) = (queue.priority, queue.run_at) as is_equal,
         coalesce((select (front.priority, front.run_at) < (edge.priority, edge.run_at) from edge), true) as is_all
    from queue
   cross join lateral (
     select front.id, front.priority, front.run_at
       from front
      where front.job_queue_id = queue.queue_id
        and front.run_at <= now()
        and front.priority between $7::int2 and $8::int2
        and front.task_id = any($2::int4[])
      order by front.priority, front.run_at, front.id
      limit 1
   ) as front
),
found as materialized (
  select head.id, head.priority, head.run_at, head.suspect, first.queue_id
    from first
   cross join lateral (
     select coalesce(min(jobs.id), first.id) as id
       from graphile_worker._private_jobs as jobs
      where not first.is_all
        and jobs.id >= first.job_id  -- that one too: it may have been given back
        and jobs.id < first.id
        and jobs.is_available is not distinct from true  -- by the primary key's index: not a condition that another one has
        and jobs.priority is not distinct from first.priority
        and jobs.run_at is not distinct from first.run_at
        and jobs.job_queue_id = first.queue_id
        and jobs.task_id = any($2::int4[])
   ) as lowest
   cross join lateral (
     select jobs.id, jobs.priority, jobs.run_at,
            jobs.flags is not null and strpos(jobs.flags::text, '"backfill:crashes=') > 0 as suspect
       from graphile_worker._private_jobs as jobs
      where jobs.id = lowest.id
        and jobs.is_available = true
        and jobs.run_at <= now()
        and jobs.job_queue_id = first.queue_id
        and jobs.task_id = any($2::int4[])
        for update skip locked
   ) as head
   where (first.is_all or (first.is_equal and first.id - first.job_id < 1000))
     and ($9::bool or not head.suspect)
),
-- include: one_suspect
,
chosen as materialized (
  select fair.id, fair.queue_id from fair
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
with queue as materialized (
  select queues.id
    from graphile_worker._private_job_queues as queues
   where queues.queue_name = $3::text
     and queues.is_available
     for update skip locked
),
chosen as materialized (
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

