-- A payload (json) for the dead letter queue (jsonb). json takes text that jsonb refuses: \u0000, lone surrogates,
-- 1e400000, nesting beyond the stack. Such a payload is kept as {"backfill:json": "<its text>"}. So is one that has that
-- key itself, so that every object with it is a wrapper and can be undone without guessing.

create or replace function graphile_worker.backfill_to_jsonb(payload json)
returns jsonb
language plpgsql
immutable
strict
as $body$
declare
    converted jsonb;
begin
    converted := payload::jsonb;
    if converted ? 'backfill:json' then
        return jsonb_build_object('backfill:json', payload::text);
    end if;
    return converted;
exception
    when data_exception or program_limit_exceeded then
        return jsonb_build_object('backfill:json', payload::text);
end;
$body$;
