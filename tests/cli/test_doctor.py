"""``backfill doctor``, against real states of a real database."""

from functools import partial
from typing import TYPE_CHECKING, Any

from tests.cli.conftest import CommandLine
from tests.support.until import until
from tests.worker.conftest import Sql

if TYPE_CHECKING:
    from tests.conftest import Database

LANES = '[{"name": "default", "concurrency": 3, "queue": null, "priorities": null}]'
NAMES = [
    "server",
    "clock",
    "pooler",
    "schema",
    "role",
    "autovacuum",
    "dead rows",
    "fillfactor",
    "horizon",
    "workers",
    "connections",
    "notifications",
]


async def examined(cli: CommandLine, *args: object, code: int = 0) -> dict[str, dict[str, Any]]:
    """The findings by their names."""
    document = (await cli("doctor", "--json", *args, code=code)).document
    assert document["healthy"] is (code == 0)
    return {finding["name"]: finding for finding in document["findings"]}


async def test_a_line_for_each_thing_and_the_same_as_a_document(cli: CommandLine, db: "Database") -> None:
    done = await cli("doctor", "--old", "1h")
    assert [line[9:].partition(":")[0] for line in done.out.splitlines()] == NAMES
    assert f"ok       schema: {db.schema} is complete, at revision 20 of Graphile Worker\n" in done.out
    document = (await cli("doctor", "--old", "1h", "--json")).document
    assert (document["schema"], document["healthy"]) == (db.schema, True)
    assert [finding["name"] for finding in document["findings"]] == NAMES


async def test_the_settings_of_the_table(cli: CommandLine, db: "Database") -> None:
    sql = Sql(await db.connect(), db.schema)
    await sql.run(
        "insert into graphile_worker._private_jobs (task_id, payload) select 1, '{}' from generate_series(1, 1000)"
    )
    await sql.run("analyze graphile_worker._private_jobs")
    found = await examined(cli)
    assert (found["autovacuum"]["level"], found["fillfactor"]["level"]) == ("advice", "advice")
    assert found["autovacuum"]["values"]["dead_rows_waited_for"] == 250  # the server's 50, and a fifth
    await sql.run(
        "alter table graphile_worker._private_jobs set"
        " (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 2000, fillfactor = 45)"
    )
    found = await examined(cli)
    assert (found["autovacuum"]["level"], found["fillfactor"]["level"]) == ("ok", "ok")
    assert found["autovacuum"]["values"]["dead_rows_waited_for"] == 2020
    await sql.run("alter table graphile_worker._private_jobs set (autovacuum_enabled = off)")
    found = await examined(cli, code=1)
    assert "autovacuum is off for the table of jobs" in found["autovacuum"]["message"]


async def until_counted(db: "Database") -> None:
    watcher = await db.connect()
    counted = "select sum(n_dead_tup) > 100000 from pg_stat_user_tables where relname = '_private_jobs'"
    await until(partial(watcher.fetchval, counted), "the dead rows are in the statistics")


async def test_dead_rows_that_nobody_clears(cli: CommandLine, db: "Database") -> None:
    connection = await db.connect()
    sql = Sql(connection, db.schema)
    await sql.run("alter table graphile_worker._private_jobs set (autovacuum_enabled = off)")
    await sql.run(
        "insert into graphile_worker._private_jobs (task_id, payload) select 1, '{}' from generate_series(1, 100001)"
    )
    await sql.run("delete from graphile_worker._private_jobs")
    await connection.close()  # a session's counts are in the statistics at its end, at the latest
    await until_counted(db)
    found = (await examined(cli, code=1))["dead rows"]
    assert (found["level"], found["values"]["dead"]) == ("problem", 100001)
    await Sql(await db.connect(), db.schema).run("vacuum graphile_worker._private_jobs")
    found = (await examined(cli, code=1))["dead rows"]
    assert (found["level"], found["values"]["dead"]) == ("ok", 0)
    assert "never vacuumed" not in found["message"]


async def test_a_transaction_that_stays_open(cli: CommandLine, db: "Database") -> None:
    holder = await db.connect(server_settings={"application_name": "report"})
    transaction = holder.transaction(isolation="repeatable_read")
    await transaction.start()
    await holder.fetchval("select 1")
    assert (await examined(cli))["horizon"]["level"] == "ok"
    found = (await examined(cli, "--old", "1ms", code=1))["horizon"]
    (held,) = found["values"]["held"]
    assert held["kind"] == "transaction"
    assert f"pid {holder.get_server_pid()} of " in found["message"]
    assert "report, idle in transaction" in found["message"]
    await transaction.rollback()
    assert (await examined(cli, "--old", "1ms"))["horizon"]["level"] == "ok"


async def test_workers_and_jobs_that_nobody_runs(cli: CommandLine, db: "Database") -> None:
    sql = Sql(await db.connect(), db.schema)
    assert (await examined(cli))["workers"]["message"] == "0 alive, 0 draining, 0 lost"
    await sql.run(
        "insert into graphile_worker._private_jobs (task_id, payload, run_at) values (1, '{}', now() - interval '1 h')"
    )
    found = (await examined(cli, code=1))["workers"]
    assert "a job has been due for 3,6" in found["message"]
    for name in ("backfill-a", "backfill-b"):
        await sql.named("register_worker", name, "host", 7, "1.0", LANES, ["task"], "alive", 3600.0)
    found = await examined(cli)
    assert found["workers"]["level"] == "ok"
    assert found["connections"]["values"]["handlers_may_want"] == 20
    await sql.run("update graphile_worker.backfill_workers set dead_at = now() where id = 'backfill-b'")
    found = (await examined(cli))["workers"]
    assert (found["level"], found["values"]["lost"]) == ("advice", 1)
    await sql.run("delete from graphile_worker.backfill_workers where id = 'backfill-a'")
    found = (await examined(cli, code=1))["workers"]
    assert found["values"] == {"alive": 0, "draining": 0, "lost": 1, "due_for": found["values"]["due_for"]}


async def test_a_role_that_sees_no_jobs_and_not_what_others_do(bare_cli: CommandLine, db: "Database") -> None:
    connection = await db.connect()
    sql = Sql(connection, db.schema)
    role = f"blind_in_{db.name}"
    await connection.execute(f"create role {role} login password 'secret'")
    try:
        await sql.run(f"grant usage on schema graphile_worker to {role}")
        await sql.run(f"grant all on all tables in schema graphile_worker to {role}")
        url = db.dsn.replace("postgres@", f"{role}:secret@").replace("postgres:", f"{role}:", 1)
        where = ("--database-url", url, "--schema", db.schema)
        document = (await bare_cli("doctor", "--json", *where, code=1)).document
        found = {finding["name"]: finding for finding in document["findings"]}
        assert found["role"]["level"] == "problem"
        assert "row-level security" in found["role"]["message"]
        assert found["horizon"]["level"] == "advice"
        assert "pg_read_all_stats" in found["horizon"]["message"]
        assert "workers" not in found
    finally:
        await connection.execute(f"drop owned by {role}; drop role {role}")


async def test_a_schema_that_is_not_there(bare_cli: CommandLine, empty_db: "Database") -> None:
    done = await bare_cli("doctor", "--database-url", empty_db.dsn, code=1)
    assert "problem  schema: schema 'graphile_worker' is not installed in this database" in done.out
    assert "fillfactor" not in done.out


async def test_a_server_that_cannot_be_reached(bare_cli: CommandLine) -> None:
    done = await bare_cli("doctor", "--database-url", "postgresql://postgres@127.0.0.1:1/none", code=1)
    assert "cannot connect" in done.err
