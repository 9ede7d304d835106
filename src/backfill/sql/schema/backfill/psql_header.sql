-- The dead letter queue of backfill, for psql -f and for migration tools that take plain SQL.
--
-- Can be run any number of times, before or after the rest of the schema is installed. A table that the Rust crate
-- backfill installed is widened and extended in place. For a schema of another name:
--
--     sed 's/graphile_worker/your_schema/g' dlq_schema.sql

do $header$
begin
    if to_regnamespace('graphile_worker') is null then
        create schema graphile_worker;
    end if;
end;
$header$;
