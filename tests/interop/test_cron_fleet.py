"""X-07: a mixed fleet with one crontab adds one job for each run, of those missed and of those to come."""

import asyncio
import itertools
import json
from contextlib import AsyncExitStack
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest
from tests.interop.tasks import shared
from tests.support.until import until

from backfill.sql import with_schema

if TYPE_CHECKING:
    from tests.conftest import Database
    from tests.interop.conftest import Ours, StartNode

CRONTAB = "* * * * * every ?fill=1h {a: 1}\n*/2 * * * * even ?fill=30m&id=two&queue=q&max=3&priority=-2"
KNOWN = """
insert into graphile_worker._private_known_crontabs (identifier, known_since)
select identifier, now() - interval '1 day' from unnest(array['every', 'two']) as known (identifier)
returning now()
"""
JOBS = """
select tasks.identifier as task, jobs.run_at, jobs.payload::text as payload, jobs.priority, jobs.max_attempts, queues.queue_name
from graphile_worker._private_jobs as jobs
join graphile_worker._private_tasks as tasks on tasks.id = jobs.task_id
left join graphile_worker._private_job_queues as queues on queues.id = jobs.job_queue_id
order by tasks.identifier, jobs.run_at
"""
MINUTE = timedelta(minutes=1)


@pytest.mark.timeout(180)  # it waits for a minute to begin, once
async def test_a_mixed_fleet_schedules_each_run_once(db: "Database", node: "StartNode", ours: "Ours") -> None:
    connection = await db.connect()
    began = await connection.fetchval(with_schema(KNOWN, db.schema))
    peers = [await node(db) for _ in range(2)]
    async with AsyncExitStack() as stack:
        starting = [
            peer.ask("run", {"tasks": ["shared"], "events": ["cron:scheduled"], "crontab": CRONTAB}) for peer in peers
        ]
        ours_starting = [stack.enter_async_context(ours.running(shared, crontab=CRONTAB)) for _ in range(2)]
        [*_, first, second] = await asyncio.gather(*starting, *ours_starting)
        tick = await connection.fetchval("select date_trunc('minute', now()) + interval '1 minute'")

        def all_have_met_it() -> bool:
            node_has = [any(told(event, tick) for event in peer.events) for peer in peers]
            entries = [entry for runner in (first, second) for entry in runner.worker.cron._entries or []]
            return all(node_has) and all(entry.cursor >= tick for entry in entries)

        await until(all_have_met_it, f"each of the four has scheduled {tick}", limit=120)
        await asyncio.gather(*(peer.ask("stop") for peer in peers))
    rows = await connection.fetch(with_schema(JOBS, db.schema))
    for task, step, back in (("every", MINUTE, timedelta(hours=1)), ("even", 2 * MINUTE, timedelta(minutes=30))):
        times = [row["run_at"] for row in rows if row["task"] == task and row["run_at"] <= tick]
        assert [later - earlier for earlier, later in itertools.pairwise(times)] == [step] * (len(times) - 1)
        assert began - back - MINUTE <= times[0] <= began - back + 2 * step
        assert tick - step < times[-1] <= tick
    check_payloads(rows, began, tick)
    assert {(row["task"], row["priority"], row["max_attempts"], row["queue_name"]) for row in rows} == {
        ("every", 0, 25, None),
        ("even", -2, 3, "q"),
    }


def told(event: dict[str, Any], tick: datetime) -> bool:
    """Whether Node tells that it has scheduled that run; in milliseconds since 1970."""
    return bool(event["event"] == "cron:scheduled" and event["timestamp"] == tick.timestamp() * 1000)


def check_payloads(rows: list[asyncpg.Record], began: datetime, tick: datetime) -> None:
    """Whoever added a job, its payload has one shape."""
    for row in rows:
        payload = json.loads(row["payload"])
        cron = payload.pop("_cron")
        assert payload == ({"a": 1} if row["task"] == "every" else {})
        assert cron.keys() == {"ts", "backfilled"}
        assert cron["ts"] == row["run_at"].strftime("%Y-%m-%dT%H:%M:00.000Z")
        if row["run_at"] < began - MINUTE or row["run_at"] >= tick:
            assert cron["backfilled"] is (row["run_at"] < tick)
