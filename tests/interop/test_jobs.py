"""X-03: each side enqueues for the other, with all options; failures and their back-off are seen by the other."""

import asyncio
import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest
from tests.interop.tasks import shared

from backfill import BackfillClient, JobKeyMode, JobSpec
from backfill.sql import with_schema

if TYPE_CHECKING:
    from tests.interop.conftest import Ours
    from tests.support.graphile import Peer

LATER = datetime(2031, 5, 6, 7, 8, 9, 123000, UTC)

# Each a history of adds: what is given to Node's addJob beside task and payload. Attempts are always given, since ours
# are 8 by default and Node's 25.
HISTORIES: Mapping[str, list[tuple[Any, dict[str, Any]]]] = {
    "plain": [({"n": 1}, {})],
    "all options": [
        (
            {"n": 1},
            {
                "priority": -7,
                "queueName": 'a "queue"',
                "runAt": LATER.isoformat(),
                "maxAttempts": 3,
                "flags": ["one", "two"],
                "jobKey": "k",
            },
        )
    ],
    "replaced": [
        ({"n": 1}, {"jobKey": "k", "queueName": "q", "priority": 5, "flags": ["f"]}),
        ([2], {"jobKey": "k", "jobKeyMode": "replace"}),
    ],
    "time preserved": [
        ({"n": 1}, {"jobKey": "k", "runAt": LATER.isoformat()}),
        ({"n": 2}, {"jobKey": "k", "jobKeyMode": "preserve_run_at", "priority": 1}),
    ],
    "deduplicated": [
        ({"n": 1}, {"jobKey": "k", "priority": 2}),
        ({"n": 2}, {"jobKey": "k", "jobKeyMode": "unsafe_dedupe", "priority": 3}),
    ],
    "arrays joined": [([1, {"a": "ü"}], {"jobKey": "k"}), ([], {"jobKey": "k"}), ([2.5, None], {"jobKey": "k"})],
    "text": [("text \u2028 \\ \" '", {})],
    "number": [(12345678901, {})],
    "boolean": [(False, {"priority": 32767, "maxAttempts": 32767})],
}

COMPARED = """
select jobs.payload::text, jobs.priority, jobs.attempts, jobs.max_attempts, jobs.last_error, jobs.key, jobs.locked_at,
       jobs.locked_by, jobs.revision, jobs.flags::text, jobs.is_available, queues.queue_name, tasks.identifier,
       case when jobs.run_at > now() then jobs.run_at end as run_at, jobs.run_at between now() - interval '1 h' and now() as due
from graphile_worker._private_jobs as jobs
join graphile_worker._private_tasks as tasks on tasks.id = jobs.task_id
left join graphile_worker._private_job_queues as queues on queues.id = jobs.job_queue_id
"""


def spec_of(options: dict[str, Any]) -> JobSpec:
    """The same for our side."""
    run_at = options.get("runAt")
    return JobSpec(
        priority=options.get("priority", 0),
        queue=options.get("queueName"),
        run_at=None if run_at is None else datetime.fromisoformat(run_at),
        max_attempts=options.get("maxAttempts", 25),
        job_key=options.get("jobKey"),
        job_key_mode=JobKeyMode(options.get("jobKeyMode", "replace")),
        flags=frozenset(options.get("flags", ())),
    )


@pytest.mark.parametrize("history", HISTORIES)
async def test_what_both_add_is_the_same_and_each_runs_the_others(
    client: BackfillClient, peer: "Peer", ours: "Ours", runs: asyncpg.Connection, history: str
) -> None:
    """X-03."""
    compared = with_schema(COMPARED, client.schema)
    jobs = with_schema("graphile_worker._private_jobs", client.schema)

    async def added_by_node() -> asyncpg.Record:
        for payload, options in HISTORIES[history]:
            await peer.ask("addJob", "shared", payload, options)
        return (await runs.fetch(compared))[0]

    async def added_by_us() -> asyncpg.Record:
        for payload, options in HISTORIES[history]:
            await client.enqueue("shared", payload, spec_of(options))
        return (await runs.fetch(compared))[0]

    async def due() -> None:
        await runs.execute(f"update {jobs} set run_at = now()")

    theirs = await added_by_node()
    await due()
    assert await ours.drain(shared) == 1
    own = await added_by_us()
    assert without_layout(own) == without_layout(theirs)
    await due()
    await peer.ask("runOnce", {"tasks": ["shared"]})
    assert await runs.fetchval(f"select count(*) from {jobs}") == 0
    ran = await runs.fetch("select side, task, attempt, queue, payload from public.runs order by id")
    assert [row["side"] for row in ran] == ["ours", "node"]
    assert {(row["task"], row["attempt"], row["queue"]) for row in ran} == {("shared", 1, own["queue_name"])}
    assert [json.loads(row["payload"]) for row in ran] == [json.loads(own["payload"])] * 2


def without_layout(row: asyncpg.Record) -> dict[str, Any]:
    """The row, its JSON as values."""
    return {**row, "payload": json.loads(row["payload"]), "flags": row["flags"] and json.loads(row["flags"])}


async def test_batches(client: BackfillClient, peer: "Peer", ours: "Ours", runs: asyncpg.Connection) -> None:
    """X-03."""
    options: list[dict[str, Any]] = [
        {"priority": 3},
        {"queueName": "q"},
        {"jobKey": "k", "flags": ["f"]},
        {"maxAttempts": 2},
    ]
    await peer.ask(
        "addJobs",
        [{"identifier": "shared", "payload": {"number": n}, **given} for n, given in enumerate(options)],
    )
    assert await ours.drain(shared) == 4
    await client.enqueue_many([("shared", {"number": n + 4}, spec_of(given)) for n, given in enumerate(options)])
    await peer.ask("runOnce", {"tasks": ["shared"]})
    ran = await runs.fetch("select side, number, queue from public.runs order by number")
    expected = [
        (side, number, "q" if number % 4 == 1 else None)
        for number in range(8)
        for side in [("ours", "node")[number // 4]]
    ]
    assert [tuple(row) for row in ran] == expected


async def test_order_of_priority(client: BackfillClient, peer: "Peer", runs: asyncpg.Connection) -> None:
    """Node takes what we add in the order that we mean."""
    priorities = [5, -3, 0, 32767, -32768, 2]
    await client.enqueue_many([("shared", {"number": n}, JobSpec(priority=p)) for n, p in enumerate(priorities)])
    await peer.ask("runOnce", {"tasks": ["shared"], "concurrency": 1})
    ran = await runs.fetch("select number from public.runs order by id")
    assert [priorities[row["number"]] for row in ran] == sorted(priorities)


BACK_OFF = """
select jobs.attempts, jobs.last_error, jobs.locked_at, jobs.locked_by,
       extract(epoch from jobs.run_at - runs.ended)::float8 - exp(least(jobs.attempts, 10))::float8 as late
from graphile_worker._private_jobs as jobs
join lateral (select ended from public.runs where job_id = jobs.id order by id desc limit 1) as runs on true
"""


@pytest.mark.parametrize("first", ["ours", "node"])
async def test_failures_and_their_back_off_are_seen_by_the_other(
    client: BackfillClient, peer: "Peer", ours: "Ours", runs: asyncpg.Connection, first: str
) -> None:
    """X-03: the sides take turns at one job; it fails three times and then succeeds."""
    payload = {"number": 1, "fails": 3, "error": "it broke: ü"}
    if first == "ours":
        await client.enqueue("shared", payload, JobSpec(queue="q", max_attempts=5))
    else:
        await peer.ask("addJob", "shared", payload, {"queueName": "q", "maxAttempts": 5})
    sides = ["node", "ours", "node", "ours"] if first == "ours" else ["ours", "node", "ours", "node"]
    for attempt, side in enumerate(sides, start=1):
        if side == "node":
            await peer.ask("runOnce", {"tasks": ["shared"]})
        else:
            assert await ours.drain(shared) == 1
        rows = await runs.fetch(with_schema(BACK_OFF, client.schema))
        if attempt == 4:
            assert rows == []
            break
        [row] = rows
        assert (row["attempts"], row["locked_at"], row["locked_by"]) == (attempt, None, None)
        assert "it broke: ü" in row["last_error"]
        assert 0 <= row["late"] < 60  # counted from the release, which is soon after the end
        await peer.ask("runOnce", {"tasks": ["shared"]})  # not due: nothing happens
        assert await ours.drain(shared) == 0
        await runs.execute(with_schema("update graphile_worker._private_jobs set run_at = now()", client.schema))
    ran = await runs.fetch("select side, attempt, queue from public.runs order by id")
    assert [tuple(row) for row in ran] == [(side, attempt, "q") for attempt, side in enumerate(sides, start=1)]


async def test_what_node_gave_up_on_becomes_a_dead_letter(
    client: BackfillClient, peer: "Peer", ours: "Ours", runs: asyncpg.Connection
) -> None:
    await peer.ask("addJob", "shared", {"number": 1, "fails": 9, "error": "no use"}, {"maxAttempts": 1, "jobKey": "k"})
    await peer.ask("runOnce", {"tasks": ["shared"]})
    assert await client.process_failed_jobs() == 1
    [entry] = (await client.list_dlq_jobs()).jobs
    assert (entry.job_key, entry.payload["number"], entry.failure_count) == ("k", 1, 1)
    assert "no use" in str(entry.last_error)
    # Requeued, it is done by Node, which knows nothing of the entry: a scan settles it.
    await client.requeue_dlq_job(entry.id, payload={"number": 2})
    await peer.ask("runOnce", {"tasks": ["shared"]})
    async with ours.running(shared):
        async with asyncio.timeout(60):
            while (await client.list_dlq_jobs()).jobs:
                await asyncio.sleep(0.02)
    assert [row["number"] for row in await runs.fetch("select number from public.runs order by id")] == [1, 2]


@pytest.mark.parametrize("forbidding", ["ours", "node"])
async def test_forbidden_flags(
    client: BackfillClient, peer: "Peer", ours: "Ours", runs: asyncpg.Connection, forbidding: str
) -> None:
    await peer.ask("addJob", "shared", {"number": 1}, {"flags": ["heavy", "x"]})
    await peer.ask("addJob", "shared", {"number": 2}, {"flags": ["x"]})
    await client.enqueue("shared", {"number": 3}, JobSpec(flags=frozenset({"heavy"})))
    await client.enqueue("shared", {"number": 4}, JobSpec())
    if forbidding == "ours":
        assert await ours.drain(shared, forbidden_flags=["heavy", "y"]) == 2
        await peer.ask("runOnce", {"tasks": ["shared"]})
    else:
        await peer.ask("runOnce", {"tasks": ["shared"], "forbiddenFlags": ["heavy", "y"]})
        assert await ours.drain(shared) == 2
    ran = await runs.fetch("select side, number, attempt from public.runs order by number")
    other = {"ours": "node", "node": "ours"}[forbidding]
    assert [tuple(row) for row in ran] == [(other, 1, 1), (forbidding, 2, 1), (other, 3, 1), (forbidding, 4, 1)]


async def test_array_payloads_of_both_become_one_batch_job(
    client: BackfillClient, peer: "Peer", runs: asyncpg.Connection
) -> None:
    """C-028, C-030 across both: Node runs what both have added, and leaves what failed."""
    await peer.ask("addJob", "batch", [{"n": 1}, {"n": 2, "fails": True}], {"jobKey": "k"})
    await client.enqueue("batch", [{"n": 3}], JobSpec(job_key="k"))
    await peer.ask("addJob", "batch", [{"n": 4, "fails": True}], {"jobKey": "k"})
    await peer.ask("runOnce", {"batches": ["batch"]})
    assert [
        [item["n"] for item in json.loads(row[0])] for row in await runs.fetch("select payload from public.runs")
    ] == [[1, 2, 3, 4]]
    [job] = await client.list_jobs()
    assert ([item["n"] for item in job.payload], job.attempts) == ([2, 4], 1)
    assert job.last_error is not None
    assert "item 2 fails\nitem 4 fails" in job.last_error
