"""The dead letter queue seen from a worker: what gets there unchanged, what comes back, and what others have left behind."""

import asyncio
import json
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest

from backfill.errors import InvalidInput
from backfill.model import JobSpec, Queue, task
from backfill.worker import WorkerContext

if TYPE_CHECKING:
    from tests.worker.conftest import MakeRunner, RunWorker, Sql, Until

    from backfill.client import BackfillClient

ODD_PAYLOADS = [
    '"a\\u0000b"',
    "1e400000",
    '{"deep": {"a": "\\u0000", "b": [1e400000, "ü𐍈"]}}',
    '{"a": 1, "a": 2}',
    '{"b": 1.10, "a":   []}',
    '"\\ud800"',
    "12345678901234567890123456789012345678901234567890",
    '{"backfill:json": "mine"}',
    "null",
]
LOSSY = {'{"a": 1, "a": 2}': {"a": 2}}  # jsonb keeps the last of equal keys


class Switch:
    """A task that fails for good, or not, as the test says; what it was given is noted."""

    def __init__(self) -> None:
        self.fails = True
        self.jobs: list[Any] = []

        @task("switch")
        async def switch(ctx: WorkerContext) -> None:
            self.jobs.append(ctx.job)
            if self.fails:
                raise InvalidInput("off")

        self.task = switch


async def test_a_failure_for_good_is_described(sql: "Sql", make_runner: "MakeRunner") -> None:
    switch = Switch()
    await sql.add("switch", max_attempts=5)
    await sql.run("update graphile_worker._private_jobs set attempts = 4")
    runner = await make_runner(switch.task)
    await runner.process_available_jobs()
    (entry,) = await sql.dead()
    error = json.loads(entry["last_error"])
    assert "test_dead_letters.py" in error.pop("traceback")
    assert runner.worker is not None
    assert error == {
        "type": "backfill.errors.InvalidInput",
        "message": "off",
        "retryable": False,
        "attempt": 5,
        "max_attempts": 5,
        "worker_id": runner.worker.id,
    }
    assert entry["created_by"] == runner.worker.id


@pytest.mark.parametrize("payload", ODD_PAYLOADS)
async def test_odd_payloads_get_there_and_come_back(
    sql: "Sql", client: "BackfillClient", make_runner: "MakeRunner", payload: str
) -> None:
    switch = Switch()
    await sql.rows(
        "select (graphile_worker.add_job('switch', $1::text::json, queue_name => $2, job_key => $3)).id",
        payload,
        "q" * 128,
        "k" * 512,
    )
    runner = await make_runner(switch.task)
    await runner.process_available_jobs()
    (entry,) = await sql.dead()
    assert (entry["queue_name"], entry["job_key"]) == ("q" * 128, "k" * 512)
    switch.fails = False
    await client.requeue_dlq_job(entry["id"])
    await runner.process_available_jobs()
    first, second = switch.jobs
    assert first.payload_text == payload
    if payload in LOSSY:
        assert second.payload == LOSSY[payload]
    elif "u0000" in payload or "e400" in payload or "ud800" in payload or "backfill:json" in payload:
        assert second.payload_text == payload, "what jsonb cannot hold is kept as text"
    else:
        assert json.loads(second.payload_text) == json.loads(payload)
    assert (second.queue_name, second.key, second.flags) == ("q" * 128, "k" * 512, frozenset())
    assert await sql.dead() == []
    assert await sql.count() == 0


@pytest.mark.parametrize("key", [None, "k"])
async def test_a_requeued_job_that_fails_brings_its_entry_back_and_one_that_succeeds_deletes_it(
    sql: "Sql", client: "BackfillClient", make_runner: "MakeRunner", key: str | None
) -> None:
    switch = Switch()
    await client.enqueue(
        "switch", {"n": 1}, JobSpec(job_key=key, queue=Queue.serial("q"), flags=["f"], timeout=timedelta(hours=1))
    )
    runner = await make_runner(switch.task)
    await runner.process_available_jobs()
    (before,) = await sql.dead()
    for times in (1, 2):
        await client.requeue_dlq_job(before["id"])
        (out,) = await sql.dead()
        assert out["requeued_job_id"] is not None
        await runner.process_available_jobs()
        (back,) = await sql.dead()
        assert (back["id"], back["requeued_job_id"], back["original_job_id"]) == (
            before["id"],
            None,
            out["requeued_job_id"],
        )
        assert (back["failure_count"], back["requeued_count"], len(json.loads(back["history"]))) == (
            times + 1,
            times,
            times,
        )
        assert json.loads(back["flags"]) == json.loads(before["flags"]), "its mark of a requeue is no flag of the job"
    switch.fails = False
    await client.requeue_dlq_job(before["id"])
    await runner.process_available_jobs()
    assert await sql.dead() == []
    assert await sql.count() == 0
    assert {(job.flags, job.extras.timeout) for job in switch.jobs} == {(frozenset({"f"}), timedelta(hours=1))}


async def test_a_requeued_job_that_is_retried_stays_tied_to_its_entry(
    sql: "Sql", client: "BackfillClient", make_runner: "MakeRunner"
) -> None:
    tries = 0

    @task("sometimes")
    async def sometimes() -> None:
        nonlocal tries
        tries += 1
        if tries < 3:
            raise RuntimeError("not yet")

    await sql.add("sometimes", max_attempts=1)
    runner = await make_runner(sometimes)
    await runner.process_available_jobs()
    (entry,) = await sql.dead()
    await client.requeue_dlq_job(entry["id"])
    await sql.run("update graphile_worker._private_jobs set max_attempts = 3")
    await runner.process_available_jobs()
    (out,) = await sql.dead()
    assert out["requeued_job_id"] is not None, "it waits for its retry"
    await sql.run("update graphile_worker._private_jobs set run_at = now()")
    await runner.process_available_jobs()
    assert (await sql.dead(), await sql.count(), tries) == ([], 0, 3)


@pytest.mark.parametrize("key", [None, "k"])
async def test_a_requeued_job_that_is_handed_back_stays_tied_to_its_entry(
    sql: "Sql",
    *,
    client: "BackfillClient",
    run_worker: "RunWorker",
    make_runner: "MakeRunner",
    until: "Until",
    key: str | None,
) -> None:
    switch, started = Switch(), asyncio.Event()
    await client.enqueue("switch", 1, JobSpec(job_key=key))
    await (await make_runner(switch.task)).process_available_jobs()
    (entry,) = await sql.dead()
    job = await client.requeue_dlq_job(entry["id"])

    @task("switch")
    async def waits() -> None:
        started.set()
        await asyncio.Event().wait()

    async with run_worker(waits, shutdown_timeout=timedelta(seconds=0.4), ready=False) as running:
        await until(started.is_set, "it runs")
        await running.end()
    (out,) = await sql.dead()
    assert out["requeued_job_id"] == job.id
    await sql.run("update graphile_worker._private_jobs set run_at = now()")
    await (await make_runner(switch.task)).process_available_jobs()
    (back,) = await sql.dead()
    assert (back["id"], back["requeued_job_id"], back["failure_count"]) == (entry["id"], None, 2)


async def test_with_the_dead_letter_queue_off_requeued_jobs_settle_their_entries_too(
    sql: "Sql", client: "BackfillClient", run_worker: "RunWorker", until: "Until"
) -> None:
    """A success deletes the entry; a failure for good leaves the job in the queue, tied to it, until somebody scans."""
    switch = Switch()
    ids = [(await client.enqueue("switch", n)).unwrap().id for n in range(2)]
    await client.fail_jobs(ids, "by hand")
    entries = await client.page_dlq_jobs()
    async with run_worker(switch.task, dlq_processor_interval=None) as running:
        failing = await client.requeue_dlq_job(entries[0].id)
        await until(lambda: running.worker.releaser.ran == 1, "the first has failed")
        switch.fails = False
        await client.requeue_dlq_job(entries[1].id)
        await until(lambda: dead_are(sql, [entries[0].id]), "the second's success has deleted its entry")
    (out,) = await sql.dead()
    assert (out["requeued_job_id"], await sql.count()) == (failing.id, 1)
    assert await client.process_failed_jobs() == 1
    (back,) = await sql.dead()
    assert (back["id"], back["requeued_job_id"], back["failure_count"]) == (entries[0].id, None, 2)


async def dead_are(sql: "Sql", ids: list[int]) -> bool:
    return [entry["id"] for entry in await sql.dead()] == ids


async def test_the_scanner_moves_what_others_left(sql: "Sql", run_worker: "RunWorker", until: "Until") -> None:
    switch = Switch()
    used_up = await sql.add_many(250, "unknown", key="'k' || n", max_attempts="3", attempts="3", last_error="'boom'")
    locked, waiting = await sql.add("unknown", max_attempts=1), await sql.add("unknown")
    await sql.run(
        "update graphile_worker._private_jobs set attempts = 1, locked_at = now(), locked_by = 'node' where id = $1",
        locked,
    )
    async with run_worker(switch.task, dlq_processor_interval=timedelta(seconds=0.05)) as running:
        await until(lambda: moved(sql, 250), "those that were there at the start were moved")
        again = await sql.add_many(1, "unknown", max_attempts="1", attempts="1")
        await until(lambda: moved(sql, 251), "so was a later one")
    dead = await sql.dead()
    assert sorted(entry["original_job_id"] for entry in dead) == sorted([*used_up, *again])
    assert {entry["created_by"] for entry in dead} == {running.worker.id}
    assert dead[0]["failure_reason"] == "Job exceeded maximum retry attempts (3/3)"
    assert json.loads(dead[0]["last_error"]) == {"message": "boom"}
    assert {row["id"] for row in await sql.rows("select id from graphile_worker._private_jobs")} == {locked, waiting}


async def moved(sql: "Sql", count: int) -> bool:
    return len(await sql.dead()) == count


async def test_with_the_dead_letter_queue_off_jobs_stay_in_the_queue(
    sql: "Sql", run_worker: "RunWorker", until: "Until"
) -> None:
    switch = Switch()
    await sql.add_many(2, "unknown", max_attempts="1", attempts="1")
    async with run_worker(switch.task, dlq_processor_interval=None) as running:
        final = await sql.add("switch", max_attempts=7)
        await until(lambda: running.worker.releaser.ran == 1, "it has failed")
    assert await sql.dead() == []
    assert await sql.count() == 3
    job = await sql.job(final)
    assert job is not None
    assert (job["attempts"], job["max_attempts"], job["last_error"]) == (7, 7, "InvalidInput: off")
    assert await sql.count("locked_by is null and attempts >= max_attempts") == 3


@pytest.mark.parametrize("bad", ["a\x00b", "half \ud800 pair", "x" * 10_000_000], ids=["nul", "surrogate", "10 MB"])
@pytest.mark.parametrize("final", [True, False])
async def test_any_message_can_be_stored(sql: "Sql", make_runner: "MakeRunner", bad: str, final: bool) -> None:
    @task("loud")
    async def loud() -> None:
        raise (InvalidInput if final else RuntimeError)(bad)

    job_id = await sql.add("loud")
    await (await make_runner(loud)).process_available_jobs()
    if final:
        (entry,) = await sql.dead()
        assert len(entry["last_error"]) < 40_000
    else:
        job = await sql.job(job_id)
        assert job is not None
        assert 10 < len(job["last_error"]) < 11_000
