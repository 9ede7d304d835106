"""Node's addJobs takes the rows of add_jobs for those of its specs by position. On our functions, they are."""

from typing import TYPE_CHECKING, Any

from backfill.sql import with_schema

if TYPE_CHECKING:
    from tests.conftest import Database
    from tests.support.graphile import Peer


async def test_each_job_that_node_gets_back_is_its_own(db: "Database", peer: "Peer") -> None:
    connection = await db.connect()
    # The jobs of two keys run: their successors come into the table after all the others.
    for key in ("z", "b"):
        await peer.ask("addJob", "old", {}, {"jobKey": key})
    await connection.execute(
        with_schema("update graphile_worker._private_jobs set locked_at = now(), locked_by = 'w'", db.schema)
    )
    keys = ["z", None, "y", "b", None, None, "a", "x", None]
    specs: list[dict[str, Any]] = [
        {"identifier": f"task {n}", "payload": {"n": n}} | ({"jobKey": key} if key else {})
        for n, key in enumerate(keys)
    ]
    jobs = await peer.ask("addJobs", specs)
    assert [(job["task_identifier"], job["payload"], job["key"]) for job in jobs] == [
        (f"task {n}", {"n": n}, key) for n, key in enumerate(keys)
    ]
    stored = await connection.fetch(with_schema("select id, task_identifier from graphile_worker.jobs", db.schema))
    names = {str(row["id"]): row["task_identifier"] for row in stored}
    assert [names[str(job["id"])] for job in jobs] == [job["task_identifier"] for job in jobs]
