-- name: role_and_rights
-- What the current role may do with the schema's tables; no row when the schema has no table of jobs.
-- blinded: row-level security would hide every job from it.
-- takes: schema_name text
-- gives: role text, owner text, blinded bool, is_member bool, dlq_owner text, dlq_rights bool, server_version int4
select
    current_user::text as role,
    pg_get_userbyid(jobs.relowner)::text as owner,
    row_security_active(jobs.oid) as blinded,
    pg_has_role(jobs.relowner, 'member') as is_member,
    pg_get_userbyid(dlq.relowner)::text as dlq_owner,
    (
        has_table_privilege(dlq.oid, 'select')
        and has_table_privilege(dlq.oid, 'insert')
        and has_table_privilege(dlq.oid, 'update')
        and has_table_privilege(dlq.oid, 'delete')
        and coalesce(has_sequence_privilege(dlq_ids.oid, 'usage'), true)
    ) as dlq_rights,
    current_setting('server_version_num')::int4 as server_version
from pg_namespace as namespaces
join pg_class as jobs on jobs.relnamespace = namespaces.oid and jobs.relname = '_private_jobs'
left join pg_class as dlq on dlq.relnamespace = namespaces.oid and dlq.relname = 'backfill_dlq'
left join pg_class as dlq_ids on dlq_ids.relnamespace = namespaces.oid and dlq_ids.relname = 'backfill_dlq_id_seq'
where namespaces.nspname = $1::text

-- name: prove_listen
-- Send a notification to a channel of one's own, and name the channels on which this session listens; and say whether the
-- server takes no writes, for then nobody notifies here.
-- takes: channel text, payload text
-- gives: channels text[], read_only bool
select array(select pg_listening_channels()) as channels, current_setting('transaction_read_only')::bool as read_only
from (select pg_notify($1, $2)) as sent

-- name: send_notification
-- Sends a notification.
-- takes: channel text, payload text
-- gives: sent bool
select pg_notify($1, $2) is not null as sent

-- name: schema_facts
-- What a schema consists of, one fact for each object, in words that do not depend on the schema's name.
-- Needs an empty search_path, so that types of the schema come out qualified.
-- takes: schema_name text
-- gives: object text, fact text
with relations as (
    select classes.oid, classes.relname::text as name, classes.relkind, classes.relrowsecurity
    from pg_class as classes
    join pg_namespace as namespaces on namespaces.oid = classes.relnamespace
    where namespaces.nspname = $1::text
),
facts as (
    select
        case relkind when 'v' then 'view' when 'c' then 'type' else 'table' end || ' ' || name as object,
        case when relrowsecurity then 'row level security' else '' end as fact
    from relations
    where relkind in ('r', 'p', 'v', 'c')

    union all
    select
        'column ' || relations.name || '.' || attributes.attname,
        format_type(attributes.atttypid, attributes.atttypmod)
        || case when attributes.attnotnull then ' not null' else '' end
        || case when attributes.attidentity = 'a' then ' generated always as identity' else '' end
        || case
            when attributes.attgenerated <> '' then ' generated as ' || expressions.text
            when expressions.text like 'nextval(%' then ' default nextval'
            when expressions.text is not null then ' default ' || expressions.text
            else ''
        end
    from relations
    join pg_attribute as attributes on attributes.attrelid = relations.oid
    left join pg_attrdef as defaults
        on defaults.adrelid = attributes.attrelid and defaults.adnum = attributes.attnum
    cross join lateral (select pg_get_expr(defaults.adbin, defaults.adrelid) as text) as expressions
    where relations.relkind in ('r', 'p', 'v', 'c')
    and attributes.attnum > 0
    and not attributes.attisdropped

    union all
    select
        'constraint ' || relations.name || '.' || constraints.conname,
        pg_get_constraintdef(constraints.oid)
    from relations
    join pg_constraint as constraints on constraints.conrelid = relations.oid
    where constraints.contype <> 'n'  -- NOT NULL is a constraint only on newer servers

    union all
    select
        'index ' || index_classes.relname,
        case when indexes.indisunique then 'unique ' else '' end || methods.amname
        || ' on ' || relations.name
        || ' (' || (
            select string_agg(
                pg_get_indexdef(indexes.indexrelid, part, true)
                || case when indexes.indoption[part - 1] & 1 = 1 then ' desc' else '' end,
                ', ' order by part
            )
            from generate_series(1, indexes.indnkeyatts::integer) as parts (part)
        ) || ')'
        || coalesce((
            select ' include (' || string_agg(pg_get_indexdef(indexes.indexrelid, part, true), ', ' order by part) || ')'
            from generate_series(indexes.indnkeyatts + 1, indexes.indnatts::integer) as parts (part)
        ), '')
        || coalesce(' where ' || pg_get_expr(indexes.indpred, indexes.indrelid), '')
        || case when indexes.indisvalid then '' else ' (invalid)' end
    from relations
    join pg_index as indexes on indexes.indrelid = relations.oid
    join pg_class as index_classes on index_classes.oid = indexes.indexrelid
    join pg_am as methods on methods.oid = index_classes.relam

    union all
    select
        'sequence ' || relations.name,
        format_type(sequences.seqtypid, null)
    from relations
    join pg_sequence as sequences on sequences.seqrelid = relations.oid

    union all
    select
        'function ' || functions.proname
        || '(' || replace(pg_get_function_identity_arguments(functions.oid), namespaces.prefix, 'SCHEMA.') || ')',
        replace(pg_get_function_arguments(functions.oid), namespaces.prefix, 'SCHEMA.')
        || ' returns ' || replace(pg_get_function_result(functions.oid), namespaces.prefix, 'SCHEMA.')
        || ' ' || languages.lanname
        || case functions.provolatile when 'i' then ' immutable' when 's' then ' stable' else ' volatile' end
        || case when functions.proisstrict then ' strict' else '' end
        || case when functions.prosecdef then ' security definer' else '' end
    from pg_proc as functions
    join (select oid, nspname, quote_ident(nspname) || '.' as prefix from pg_namespace) as namespaces
        on namespaces.oid = functions.pronamespace
    join pg_language as languages on languages.oid = functions.prolang
    where namespaces.nspname = $1::text
)
select object, fact
from facts
order by object

-- name: schema_owners
-- Who owns a schema and its table of jobs; no row when there is no such schema.
-- jobs_owner_usable: the current role can become the owner of the table, and that role can make objects here.
-- takes: schema_name text
-- gives: schema_owner text, jobs_owner text, jobs_owner_usable bool, current_role_name text
select
    pg_get_userbyid(namespaces.nspowner)::text as schema_owner,
    pg_get_userbyid(jobs.relowner)::text as jobs_owner,
    (
        case
            when current_setting('server_version_num')::int4 >= 160000 then pg_has_role(jobs.relowner, 'set')
            else pg_has_role(jobs.relowner, 'member')
        end
        and has_schema_privilege(jobs.relowner, namespaces.oid, 'create')
    ) as jobs_owner_usable,
    current_user::text as current_role_name
from pg_namespace as namespaces
left join pg_class as jobs on jobs.relnamespace = namespaces.oid and jobs.relname = '_private_jobs'
where namespaces.nspname = $1::text

-- name: schema_revision
-- The greatest revision that Graphile Worker's own ledger records, and how long ago the last was recorded, in seconds; null
-- when it is empty.
-- gives: revision int4, seconds float8
select max(id) as revision, extract(epoch from clock_timestamp() - max(ts))::float8 as seconds
from graphile_worker.migrations

-- name: schema_breaking_revision
-- The greatest revision that the ledger calls breaking; null when there is none.
-- gives: revision int4
select max(id) as revision
from graphile_worker.migrations
where breaking

-- name: tables_are_known
-- Whether Graphile Worker's tables have no columns but those given as table.column, and no later revision than $3.
-- takes: schema_name text, columns text[], newest_revision int4
-- gives: known bool
select not exists (
    select
    from pg_attribute as attributes
    join pg_class as classes on classes.oid = attributes.attrelid
    join pg_namespace as namespaces on namespaces.oid = classes.relnamespace
    where namespaces.nspname = $1::text
    and classes.relname in (select split_part(given.name, '.', 1) from unnest($2::text[]) as given (name))
    and attributes.attnum > 0
    and not attributes.attisdropped
    and classes.relname || '.' || attributes.attname <> all($2::text[])
)
and not exists (select from graphile_worker.migrations where id > $3::int4) as known

-- name: function_fingerprints
-- What the functions that add jobs consist of, in digests that do not depend on the schema's name.
-- takes: schema_name text
-- gives: name text, digest text
select functions.proname::text as name,
       md5(replace(functions.prosrc, '"' || replace($1::text, '"', '""') || '"', 'SCHEMA')) as digest
from pg_proc as functions
join pg_namespace as namespaces on namespaces.oid = functions.pronamespace
where namespaces.nspname = $1::text
and functions.proname in ('add_job', 'add_jobs')

-- name: record_revision
-- Note in Graphile Worker's ledger that a revision was applied, and tell all workers of the database, once this is
-- committed. Waits for another installer that is about to record the same, and then fails.
-- takes: revision int4, breaking bool
-- gives: told text
with recorded as (
    insert into graphile_worker.migrations (id, breaking)
    values ($1, $2)
    returning id, breaking
)
select pg_notify('worker:migrate', json_build_object('migrationNumber', id, 'breaking', breaking)::text)::text as told
from recorded

-- name: ledger
-- The migrations of our own that were applied.
-- gives: id int4
select id
from graphile_worker.backfill_migrations

-- name: record_migration
-- Note in our ledger that a migration was applied.
-- takes: id int4, name text
-- gives: nothing
insert into graphile_worker.backfill_migrations (id, name)
values ($1, $2)
on conflict (id) do nothing

-- name: lock_schema_changes
-- Wait for other installers of the schema, then keep them out until the transaction ends.
-- takes: lock_class int4, schema_name text
-- gives: lock text
select pg_advisory_xact_lock($1, hashtext($2))::text as lock

-- name: empty_search_path
-- Have the names of all objects outside pg_catalog come out qualified, until the transaction ends.
-- gives: search_path text
select set_config('search_path', '', true) as search_path

-- name: current_role_setting
-- The role that was taken on; 'none' when it is the one that connected.
-- gives: role text
select current_setting('role') as role

-- name: become_role
-- Work as another role until the transaction ends; 'none' is the one that connected.
-- takes: role text
-- gives: role text
select set_config('role', $1, true) as role
