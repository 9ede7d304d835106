"""``backfill workers``."""

from typing import TYPE_CHECKING

from tests.cli.conftest import CommandLine
from tests.worker.conftest import Sql

if TYPE_CHECKING:
    from tests.conftest import Database

LANES = '[{"name": "default", "concurrency": 3, "queue": null, "priorities": null}]'


async def test_the_list_and_the_document(cli: CommandLine, db: "Database") -> None:
    assert (await cli("workers")).out == "no workers\n"
    assert (await cli("workers", "--json")).document == {"workers": []}
    sql = Sql(await db.connect(), db.schema)
    for name in ("backfill-a", "backfill-b"):
        await sql.named("register_worker", name, "host", 7, "1.0", LANES, ["task"], "alive", 3600.0)
    await sql.named("beat", "backfill-a", "alive", [1, 2, 3, 4], [60.0, 3700.0, 90000.0, 5.0], 0.0)
    await sql.run("update graphile_worker.backfill_workers set dead_at = now() where id = 'backfill-b'")
    out = (await cli("workers")).out
    assert "3 ? 1 d 1 h; 2 ? 1 h 1 min; 1 ? 1 min" in out
    assert "; and 1 more" in out
    assert "2 workers: 1 alive, 0 draining, 1 lost" in out
    first, second = (await cli("workers", "--json")).document["workers"]
    assert (first["state"], second["state"], first["lease"]) == ("alive", "lost", 3600.0)
    assert first["running"][0]["id"] == 3
    assert first["running"][0]["running_for"] >= 90000
