"""A schema of the Rust port, whose revisions 19 and 20 are not those of Graphile Worker (part 5 of what is known of it)."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from backfill.client import BackfillClient
from backfill.model import JobSpec
from backfill.schema import check, install, installed_revision
from backfill.schema.ddl import MIGRATIONS
from backfill.schema.facts import live_facts
from backfill.sql import quote_ident

if TYPE_CHECKING:
    from tests.conftest import Database
    from tests.schema.conftest import Sql

RUST_LIKE = (Path(__file__).parents[1] / "support" / "rust_like.sql").read_text(encoding="utf-8")
DROP_OURS = (
    "drop table graphile_worker.backfill_dlq, graphile_worker.backfill_migrations, graphile_worker.backfill_workers;"
    " drop function graphile_worker.backfill_to_jsonb"
)


async def everything(sql: "Sql") -> list[Any]:
    """All that is there but ours: objects, bodies and the ledger."""
    rows = await sql.rows(
        "select xmin::text, proname, prosrc from pg_proc where pronamespace = $1::text::regnamespace"
        " and proname not like 'backfill%' order by oid",
        quote_ident(sql.schema),
    )
    facts = await live_facts(sql.connection, sql.schema)
    revisions = await sql.rows("select * from graphile_worker.migrations order by id")
    return [*map(tuple, rows), *(fact for fact in facts.items() if "backfill_" not in fact[0]), *map(tuple, revisions)]


@pytest.mark.parametrize("revision", [19, 20])
async def test_it_is_accepted_and_no_body_touched(sql: "Sql", revision: int) -> None:
    await sql.run(DROP_OURS)
    await sql.connection.execute(RUST_LIKE.format(schema=quote_ident(sql.schema)))
    await sql.run("delete from graphile_worker.migrations where id > $1", revision)
    before = await everything(sql)
    assert await install(sql.connection, sql.schema) == [f"applied {step.name}" for step in MIGRATIONS]
    assert await install(sql.connection, sql.schema) == []
    assert await everything(sql) == before
    assert await check(sql.connection, sql.schema) == []
    assert await installed_revision(sql.connection, sql.schema) == revision


async def test_jobs_go_in_and_out(db: "Database", sql: "Sql") -> None:
    await sql.connection.execute(RUST_LIKE.format(schema=quote_ident(sql.schema)))
    async with BackfillClient(db.dsn, schema=db.schema) as client:
        jobs = [
            (await client.enqueue("task", n, JobSpec(job_key=key))).unwrap() for n, key in enumerate((None, "k", "k"))
        ]
        assert [job.revision for job in jobs] == [0, 0, 1]
        assert len(await client.fail_jobs([job.id for job in jobs[1:]], "on purpose")) == 1


async def test_a_body_of_nobody_we_know_stays_too(sql: "Sql") -> None:
    """Revision 18 of both is the same; what was changed since was changed on purpose."""
    await sql.run("delete from graphile_worker.migrations where id > 18")
    before = await everything(sql)
    assert await install(sql.connection, sql.schema) == []
    assert await everything(sql) == before
