"""X-04, X-05, X-06: locks of queues, notifications, and unlocking, with a worker on each side at once."""

import asyncio
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest
from tests.interop.tasks import held, ours_only, shared
from tests.support.until import until

from backfill import BackfillClient, JobSpec, QueueConfig
from backfill.sql import with_schema

if TYPE_CHECKING:
    from tests.interop.conftest import Ours
    from tests.support.graphile import Peer

MINUTES = 600_000  # milliseconds between polls of Node: only notifications wake it
IDLE = "worker:getJob:empty"
NO_LOCKS = """
select (select count(*) from graphile_worker._private_jobs where locked_at is not null or locked_by is not null)
     + (select count(*) from graphile_worker._private_job_queues where locked_at is not null or locked_by is not null)
"""
JOBS = "select count(*) from graphile_worker._private_jobs"


async def run_on_node(peer: "Peer", *tasks: str, **options: Any) -> None:
    """Start Node's worker, and wait until it has found nothing to do."""
    await peer.ask("run", {"tasks": tasks, "events": [IDLE, "job:complete"], "pollInterval": MINUTES, **options})
    await peer.event(IDLE)


async def nothing_left(runs: asyncpg.Connection, schema: str) -> None:
    """Wait until no job is there and nothing is locked."""
    await until(lambda: count_is(runs, schema, 0), "no job is there")
    await nothing_locked(runs, schema)


async def nothing_locked(runs: asyncpg.Connection, schema: str) -> None:
    """Wait until no job and no queue is locked."""

    async def none() -> bool:
        return bool(await runs.fetchval(with_schema(NO_LOCKS, schema)) == 0)

    await until(none, "nothing is locked")


async def test_a_queue_that_node_has_is_left_alone(
    client: BackfillClient, peer: "Peer", ours: "Ours", runs: asyncpg.Connection
) -> None:
    """X-04."""
    await run_on_node(peer, "node only")
    await client.enqueue("node only", {"number": 1, "hold": True}, JobSpec(queue="q"))
    await peer.event("held", number=1)
    async with ours.running(shared, ours_only) as runner:
        await client.enqueue("shared", {"number": 2}, JobSpec(queue="q"))
        await client.enqueue("ours only", {"number": 3})
        assert runner.worker is not None
        releaser = runner.worker.releaser
        await until(lambda: releaser.ran == 1, "we have run the job without a queue")
        assert [row["number"] for row in await runs.fetch("select number from public.runs order by id")] == [1, 3]
        await peer.ask("release", 1)
        await nothing_locked(runs, client.schema)
        await client.enqueue("ours only", {"number": 4})  # Node does not tell that a queue is free
        await until(lambda: releaser.ran == 3, "we have run the others")
    await nothing_left(runs, client.schema)


async def test_a_queue_that_we_have_is_left_alone_by_node(
    client: BackfillClient, peer: "Peer", ours: "Ours", runs: asyncpg.Connection
) -> None:
    """X-04."""
    async with ours.running(ours_only):
        await client.enqueue("ours only", {"number": 1, "hold": True}, JobSpec(queue="q"))
        await until(lambda: 1 in held, "we have the queue")
        await run_on_node(peer, "shared")
        await client.enqueue("shared", {"number": 2}, JobSpec(queue="q"))
        await client.enqueue("shared", {"number": 3})
        await peer.event("job:complete", number=3)
        held.pop(1).set()
        await until(lambda: count_is(runs, client.schema, 1), "ours is done")
        await client.enqueue("shared", {"number": 4})
        await peer.event("job:complete", number=2)
    assert [row["number"] for row in await runs.fetch("select number from public.runs order by id")][:2] == [1, 3]
    await nothing_left(runs, client.schema)


async def count_is(runs: asyncpg.Connection, schema: str, count: int) -> bool:
    found: int = await runs.fetchval(with_schema(JOBS, schema))
    return found == count


async def test_each_wakes_the_other(
    client: BackfillClient, peer: "Peer", ours: "Ours", runs: asyncpg.Connection
) -> None:
    """X-05: as many of Node's idle workers as our notification says; polls are minutes away on both sides."""
    await run_on_node(peer, "node only", concurrency=3)
    async with ours.running(ours_only):
        await client.enqueue("node only", {"number": 0})
        await peer.event("job:complete", number=0)
        await client.enqueue_many([("node only", {"number": n, "hold": True}) for n in (1, 2, 3)])
        for n in (1, 2, 3):
            await peer.event("held", number=n)
        for n in (1, 2, 3):
            await peer.ask("release", n)
        await peer.ask("addJob", "ours only", {"number": 4, "hold": True})
        await until(lambda: 4 in held, "Node's add has woken us")
        held.pop(4).set()
        await peer.ask("addJobs", [{"identifier": "ours only", "payload": {"number": n}} for n in (5, 6, 7)])
        await nothing_left(runs, client.schema)


async def test_node_unlocks_a_job_that_runs_here(
    client: BackfillClient, peer: "Peer", ours: "Ours", runs: asyncpg.Connection
) -> None:
    """X-06: what ends here later is stale, and touches neither Node's run nor its locks."""
    one_slot = [QueueConfig.default_queue(1)]  # which is busy, so that Node has the job next
    async with ours.running(shared, queue_configs=one_slot) as runner:
        job = (await client.enqueue("shared", {"number": 1, "hold": True}, JobSpec(queue="q"))).unwrap()
        await until(lambda: 1 in held, "it runs here")
        running = await client.get_job(job.id)
        assert running is not None
        await peer.ask("forceUnlockWorkers", [running.locked_by])
        unlocked = await client.get_job(job.id)
        assert unlocked is not None
        assert (unlocked.locked_by, unlocked.attempts) == (None, 1)
        await peer.ask("run", {"tasks": ["shared"], "events": ["job:complete"], "pollInterval": MINUTES})
        await peer.event("held", number=1)
        held.pop(1).set()
        assert runner.worker is not None
        releaser = runner.worker.releaser
        await until(lambda: not releaser.held, "our outcome was written, or found stale")
        there = await client.get_job(job.id)
        assert there is not None
        assert (there.locked_by or "").startswith("pool-")
        await peer.ask("release", 1)
        await nothing_left(runs, client.schema)
    assert [tuple(row) for row in await runs.fetch("select side, attempt from public.runs order by id")] == [
        ("ours", 1),
        ("node", 2),
    ]


async def test_we_unlock_a_job_that_runs_on_node(
    client: BackfillClient, peer: "Peer", ours: "Ours", runs: asyncpg.Connection
) -> None:
    """X-06: Node completes by the job's id alone, so it takes the row away from us; the queue stays ours until we end."""
    await peer.ask("run", {"tasks": ["shared"], "events": ["job:complete"], "pollInterval": MINUTES})
    job = (await client.enqueue("shared", {"number": 1, "hold": True}, JobSpec(queue="q"))).unwrap()
    await peer.event("held", number=1)
    on_node = await client.get_job(job.id)
    assert on_node is not None
    async with ours.running(shared):
        await client.force_unlock_workers([on_node.locked_by or ""])
        await until(lambda: 1 in held, "it runs here, too")
        await peer.ask("release", 1)
        await until(lambda: count_is(runs, client.schema, 0), "Node has deleted it")
        assert await runs.fetchval(with_schema(NO_LOCKS, client.schema)) == 1  # the queue's
        held.pop(1).set()
        await nothing_left(runs, client.schema)


@pytest.mark.parametrize("runs_on", ["nobody", "ours", "node"])
async def test_what_node_does_to_our_jobs(
    client: BackfillClient, peer: "Peer", ours: "Ours", runs: asyncpg.Connection, runs_on: str
) -> None:
    """completeJobs, rescheduleJobs, permanentlyFailJobs; and ours on what runs on Node: running jobs are left alone."""
    jobs = [(await client.enqueue("shared", {"number": n, "hold": True})).unwrap() for n in range(3)]
    [first, second, third] = [job.id for job in jobs]
    if runs_on == "nobody":
        assert [row["id"] for row in await peer.ask("completeJobs", [first])] == [str(first)]
        assert [row["id"] for row in await peer.ask("permanentlyFailJobs", [second], "by Node")] == [str(second)]
        [row] = await peer.ask(
            "rescheduleJobs", [third], {"runAt": "2031-01-01T00:00:00Z", "priority": 7, "attempts": 2}
        )
        assert (row["id"], row["priority"], row["attempts"]) == (str(third), 7, 2)
        assert await client.process_failed_jobs() == 1
        [entry] = (await client.list_dlq_jobs()).jobs
        assert "by Node" in str(entry.last_error)
        [left] = await client.list_jobs()
        assert (left.id, left.priority, left.attempts, left.run_at.year) == (third, 7, 2, 2031)
        return
    if runs_on == "ours":
        async with ours.running(shared):
            await until(lambda: {0, 1, 2} <= held.keys(), "they run here")
            for request in ("completeJobs", "permanentlyFailJobs", "rescheduleJobs"):
                given = {"rescheduleJobs": {"attempts": 5}, "permanentlyFailJobs": "no"}.get(request)
                assert await peer.ask(request, [first, second, third], given) == []
    else:
        await peer.ask("run", {"tasks": ["shared"], "concurrency": 3, "pollInterval": MINUTES})
        for n in range(3):
            await peer.event("held", number=n)
        assert not await client.complete_jobs([first])
        assert not await client.fail_jobs([second], "by us")
        assert not await client.reschedule_jobs([third], priority=7)
        for n in range(3):
            await peer.ask("release", n)
    await nothing_left(runs, client.schema)
    assert (await client.list_dlq_jobs()).jobs == []


async def test_what_we_do_to_nodes_jobs(client: BackfillClient, peer: "Peer", runs: asyncpg.Connection) -> None:
    added = [await peer.ask("addJob", "shared", {"number": n}, {"jobKey": f"k{n}", "queueName": "q"}) for n in range(4)]
    [first, second, third, fourth] = [int(job["id"]) for job in added]
    assert await client.complete_jobs([first])
    assert await client.fail_jobs([second], "by us")
    assert await client.reschedule_jobs([third], priority=7)
    assert await client.remove_job("k3")
    [left] = await client.list_jobs()
    assert (left.id, left.priority) == (third, 7)
    [entry] = (await client.list_dlq_jobs()).jobs
    assert (entry.job_key, entry.queue_name) == ("k1", "q")
    await peer.ask("runOnce", {"tasks": ["shared"]})
    assert [row["job_id"] for row in await runs.fetch("select job_id from public.runs")] == [third]
    assert fourth


async def test_nodes_clean_up_beside_our_worker(
    client: BackfillClient, peer: "Peer", ours: "Ours", runs: asyncpg.Connection
) -> None:
    """Rows of tasks and queues vanish and come back under other ids; a worker that runs finds the new ones."""
    everything = {"tasks": ["GC_TASK_IDENTIFIERS", "GC_JOB_QUEUES", "DELETE_PERMAFAILED_JOBS"]}
    dead = await peer.ask("addJob", "shared", {"number": 0}, {"maxAttempts": 1})
    await peer.ask("permanentlyFailJobs", [dead["id"]])
    async with ours.running(shared, dlq_processor_interval=None) as runner:
        assert runner.worker is not None
        for n in range(1, 6):
            await peer.ask("cleanup", everything)
            if n % 2:
                await peer.ask("addJob", "shared", {"number": n}, {"queueName": f"q{n % 3}"})
            else:
                await client.enqueue("shared", {"number": n}, JobSpec(queue=f"q{n % 3}"))
            await nothing_left(runs, client.schema)
        assert runner.worker.releaser.ran == 5
    assert [row["number"] for row in await runs.fetch("select number from public.runs order by id")] == list(
        range(1, 6)
    )


async def test_nodes_clean_up_amid_our_work(
    client: BackfillClient, peer: "Peer", ours: "Ours", runs: asyncpg.Connection
) -> None:
    """Queues are collected while jobs come and go in them; no job gets lost, and no queue stays locked."""
    count = 300
    collecting = True

    async def collect() -> None:
        while collecting:
            await peer.ask("cleanup", {"tasks": ["GC_JOB_QUEUES"]})

    async with ours.running(shared):
        collector = asyncio.create_task(collect())
        try:
            for n in range(count):
                await client.enqueue("shared", {"number": n}, JobSpec(queue=f"q{n % 5}"))
        finally:
            collecting = False
            await collector
        await nothing_left(runs, client.schema)
    assert {row["number"] for row in await runs.fetch("select number from public.runs")} == set(range(count))


async def test_node_frees_what_a_dead_worker_of_ours_held_for_four_hours(
    client: BackfillClient, peer: "Peer", runs: asyncpg.Connection
) -> None:
    """X-06: by its own rule of age, should none of our workers be there to do it in seconds."""
    await client.enqueue_many([("shared", {"number": n}, JobSpec(queue=f"q{n}")) for n in (1, 2)])
    for table, which in (("_private_jobs", "payload ->> 'number'"), ("_private_job_queues", "right(queue_name, 1)")):
        await runs.execute(
            with_schema(
                f"update graphile_worker.{table} set locked_by = 'backfill-0123456789abcdef01/7',"
                f" locked_at = now() - case {which} when '1' then interval '4 h 1 min' else interval '3 h 50 min' end",
                client.schema,
            )
        )
    soon = {"minResetLockedInterval": 50, "maxResetLockedInterval": 50, "pollInterval": 50}
    await peer.ask("run", {"tasks": ["shared"], "events": ["resetLocked:success"], **soon})
    await until(lambda: count_is(runs, client.schema, 1), "the first is done")
    for _ in range(2):
        await peer.event("resetLocked:success")
    assert [row["number"] for row in await runs.fetch("select number from public.runs")] == [1]
    [left] = await client.list_jobs()
    assert (left.payload["number"], left.locked_by) == (2, "backfill-0123456789abcdef01/7")


async def test_we_free_what_a_killed_node_worker_held_for_four_hours(
    client: BackfillClient, peer: "Peer", ours: "Ours", runs: asyncpg.Connection
) -> None:
    """X-06: age is the only evidence of its death, so younger locks stay."""
    await peer.ask("run", {"tasks": ["shared"], "concurrency": 2, "pollInterval": MINUTES})
    jobs = [
        (await client.enqueue("shared", {"number": n, "hold": True}, JobSpec(queue=f"q{n}"))).unwrap() for n in (1, 2)
    ]
    for n in (1, 2):
        await peer.event("held", number=n)
    await peer.kill()
    for job, age in zip(jobs, ("4 h 1 min", "3 h 50 min"), strict=True):
        aged = f"set locked_at = locked_at - interval '{age}' where locked_by is not null and"
        jobs_aged = f"update graphile_worker._private_jobs {aged} id = $1"
        queues_aged = f"update graphile_worker._private_job_queues {aged} queue_name = $1"
        await runs.execute(with_schema(jobs_aged, client.schema), job.id)
        await runs.execute(with_schema(queues_aged, client.schema), job.queue_name)
    assert await client.release_stale_job_locks() == 1
    assert await client.release_stale_queue_locks() == 1
    await runs.execute(
        with_schema("update graphile_worker._private_jobs set payload = '{\"number\": 3}'", client.schema)
    )
    assert await ours.drain(shared) == 1
    [left] = await client.list_jobs()
    assert left.id == jobs[1].id
    ran = await runs.fetch("select side, job_id, attempt from public.runs order by job_id, attempt")
    assert [tuple(row) for row in ran] == [("node", jobs[0].id, 1), ("ours", jobs[0].id, 2), ("node", jobs[1].id, 1)]
