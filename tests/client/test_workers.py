"""The view of workers: alive, draining, lost, and what each runs."""

from datetime import timedelta
from typing import TYPE_CHECKING

import pytest
from tests.worker.conftest import Sql

from backfill.client import BackfillClient
from backfill.model import WorkerState

if TYPE_CHECKING:
    from tests.conftest import Database


@pytest.fixture
async def sql(db: "Database") -> Sql:
    return Sql(await db.connect(), db.schema)


async def test_states_and_what_runs(client: BackfillClient, sql: Sql) -> None:
    assert await client.workers() == []
    lanes = '[{"name": "default", "concurrency": 3, "queue": null, "priorities": null}]'
    for name in ("a", "b", "c", "d"):
        await sql.named("register_worker", name, "host", 7, "1.0", lanes, ["task"], "alive", 30.0)
    (job,) = await sql.add_many(1)
    await sql.named("beat", "a", "alive", [job, 99], [5.0, 60.0], 0.25)
    await sql.named("beat", "b", "draining", [], [], 0.0)
    await sql.run("update graphile_worker.backfill_workers set heartbeat_at = now() - interval '31 s' where id = 'c'")
    await sql.run("update graphile_worker.backfill_workers set dead_at = now() where id = 'd'")
    found = {worker.id: worker for worker in await client.workers()}
    assert [found[name].state for name in "abcd"] == [
        WorkerState.ALIVE,
        WorkerState.DRAINING,
        WorkerState.LOST,
        WorkerState.LOST,
    ]
    worker = found["a"]
    assert [(run.id, run.task_identifier) for run in worker.running] == [(99, None), (job, "task")]
    assert worker.running[0].running_for >= timedelta(seconds=60)
    assert worker.running[1].running_for >= timedelta(seconds=5)
    assert (worker.host, worker.pid, worker.version, worker.tasks) == ("host", 7, "1.0", ["task"])
    assert (worker.lease, worker.loop_lag) == (timedelta(seconds=30), timedelta(seconds=0.25))
    assert worker.lanes[0]["concurrency"] == 3
    assert found["c"].silent_for >= timedelta(seconds=31)
