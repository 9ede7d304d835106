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
    ) as dlq_rights,
    current_setting('server_version_num')::int4 as server_version
from pg_namespace as namespaces
join pg_class as jobs on jobs.relnamespace = namespaces.oid and jobs.relname = '_private_jobs'
left join pg_class as dlq on dlq.relnamespace = namespaces.oid and dlq.relname = 'backfill_dlq'
where namespaces.nspname = $1

-- name: prove_listen
-- Send a notification to a channel of one's own, and name the channels on which this session listens.
-- takes: channel text, payload text
-- gives: channels text[]
select array(select pg_listening_channels()) as channels
from (select pg_notify($1, $2)) as sent
