"""A mixed fleet, two processes of each side, drains 5,000 mixed jobs: each attempt of each job runs once, queues stay serial."""

import asyncio
import contextlib
import random
import signal
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest
from tests.interop.test_jobs import spec_of
from tests.support.until import until

from backfill import BackfillClient
from backfill.schema import check
from backfill.schema.facts import live_facts, upstream_facts
from backfill.sql import with_schema

if TYPE_CHECKING:
    from tests.conftest import Database
    from tests.interop.conftest import StartNode

COUNT = 5_000
CHUNK = 250
QUEUES = 20
KEYS = 200

# One of Node's processes fetches and releases in batches.
AHEAD = {"localQueue": {"size": 8}, "completeJobBatchDelay": 0, "failJobBatchDelay": 0}

UNFINISHED = "select count(*) from graphile_worker._private_jobs where attempts < max_attempts or locked_at is not null"
LOCKED_QUEUES = "select count(*) from graphile_worker._private_job_queues where locked_at is not null"

# Runs that began before an earlier one of the same queue, or of the same job, had ended.
OVERLAPS = """
select count(*)
from (
    select began, max(ended) over (partition by {what} order by began rows between unbounded preceding and 1 preceding) as before
    from public.runs
    where {what} is not null
) as runs
where began < before
"""


@dataclass
class Mixture:
    """Jobs of all kinds, the same at each run of the test.

    Attributes:
        jobs: Task, payload and options, as Node's addJob takes them.
        attempts: How many attempts each job without a key will have, by its number.
        dead: The numbers of jobs that use up their attempts.
        last: The number that each key was given last.
    """

    jobs: list[tuple[str, dict[str, Any], dict[str, Any]]] = field(default_factory=list)
    attempts: dict[int, int] = field(default_factory=dict)
    dead: set[int] = field(default_factory=set)
    last: dict[str, int] = field(default_factory=dict)

    @classmethod
    def made(cls, count: int) -> "Mixture":
        mixture, rng = cls(), random.Random(7)
        for number in range(count):
            task = rng.choices(["shared", "node only", "ours only"], [8, 1, 1])[0]
            options: dict[str, Any] = {
                "priority": rng.randint(-3, 3),
                "maxAttempts": 3,
                "flags": ["some"] if number % 9 == 0 else [],
            }
            payload: dict[str, Any] = {"number": number}
            if rng.random() < 0.3:
                options["queueName"] = f"q{rng.randrange(QUEUES)}"
            if rng.random() < 0.1:
                options["runAt"] = (datetime.now(UTC) + timedelta(seconds=rng.uniform(0.5, 4))).isoformat()
            if rng.random() < 0.1:
                options["jobKey"] = f"k{rng.randrange(KEYS)}"
                mixture.last[options["jobKey"]] = number
            else:
                if rng.random() < 0.08:
                    payload["fails"] = 1
                if rng.random() < 0.02:
                    payload["fails"], options["maxAttempts"] = 9, 1
                    mixture.dead.add(number)
                mixture.attempts[number] = min(payload.get("fails", 0) + 1, options["maxAttempts"])
            mixture.jobs.append((task, payload, options))
        return mixture


def added_by_node(number: int) -> bool:
    return number // CHUNK % 2 == 0


@contextlib.asynccontextmanager
async def python_worker(database: "Database") -> AsyncIterator[None]:
    """A worker of ours in a process of its own, by the command line."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "backfill", "worker", "tasks", "--concurrency", "5"),
        *("--database-url", database.dsn, "--schema", database.schema),
        cwd=Path(__file__).parent,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        yield
        process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(60):
            assert await process.wait() == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


@pytest.mark.timeout(240)
async def test_a_mixed_fleet(empty_db: "Database", node: "StartNode", empty_runs: asyncpg.Connection) -> None:
    schema, runs, mixture = empty_db.schema, empty_runs, Mixture.made(COUNT)
    peers = [await node(empty_db) for _ in range(2)]
    await peers[0].ask("migrate")  # Node's own functions
    for peer, preset in zip(peers, ({}, AHEAD), strict=True):
        options = {"concurrency": 5, "pollInterval": 100, "preset": {"worker": preset}}
        await peer.ask("run", {"tasks": ["shared", "node only"], **options})

    async def count_is_zero(sql: str) -> bool:
        return bool(await runs.fetchval(with_schema(sql, schema)) == 0)

    async with BackfillClient(empty_db.dsn, schema=schema) as client:
        async with python_worker(empty_db), python_worker(empty_db):
            for start in range(0, COUNT, CHUNK):
                await add(client, peers[0], mixture.jobs[start : start + CHUNK], by_node=added_by_node(start))
            await until(lambda: count_is_zero(UNFINISHED), "all jobs are done or used up", limit=200)
            await until(lambda: count_is_zero(LOCKED_QUEUES), "all queues are free")
        await asyncio.gather(*(peer.ask("stop") for peer in peers))
        await client.process_failed_jobs()
        dead = (await client.dlq_stats()).total_jobs
        assert await client.list_jobs() == []

    assert dead == len(mixture.dead)
    assert await runs.fetchval("select count(*) from public.runs where ended is null") == 0
    ran: dict[int, list[int]] = {}
    for row in await runs.fetch("select number, attempt from public.runs order by number, attempt"):
        ran.setdefault(row["number"], []).append(row["attempt"])
    without_key = {number: attempts for number, attempts in ran.items() if number in mixture.attempts}
    assert without_key == {number: list(range(1, most + 1)) for number, most in mixture.attempts.items()}
    assert [attempts for number, attempts in ran.items() if number not in mixture.attempts and attempts != [1]] == []
    # Not so of those that Node added: its addJob loses a payload when a worker claims the key's job at that moment.
    assert {number for number in mixture.last.values() if not added_by_node(number)} <= ran.keys()
    for what in ("queue", "job_id"):
        assert await runs.fetchval(OVERLAPS.format(what=what)) == 0, what
    shares = await runs.fetch("select side, pid, count(*) from public.runs group by side, pid")
    assert sorted(row["side"] for row in shares) == ["node", "node", "ours", "ours"]
    facts = await live_facts(runs, schema)
    assert {thing: fact for thing, fact in facts.items() if "backfill_" not in thing} == upstream_facts()
    assert await check(runs, schema) == []


async def add(
    client: BackfillClient, peer: Any, jobs: list[tuple[str, dict[str, Any], dict[str, Any]]], *, by_node: bool
) -> None:
    """Add some: those without a key at once, the others one by one, since a key may be given several times."""
    keyed = [job for job in jobs if "jobKey" in job[2]]
    plain = [job for job in jobs if "jobKey" not in job[2]]
    if by_node:
        await peer.ask(
            "addJobs", [{"identifier": task, "payload": payload, **options} for task, payload, options in plain]
        )
        for job in keyed:
            await peer.ask("addJob", *job)
    else:
        await client.enqueue_many([(task, payload, spec_of(options)) for task, payload, options in plain])
        for task, payload, options in keyed:
            await client.enqueue(task, payload, spec_of(options))
