"""A user's open transaction on a running job's row, or on its queue: nothing waits for it, and nothing stays behind."""

import asyncio
import json
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest

from backfill.model import RetryPolicy, task

if TYPE_CHECKING:
    from tests.worker.conftest import RunWorker, Sql, Until

AT_ONCE = RetryPolicy(3, 0.0, 0.0)


class Gate:
    """A task whose first run of the key's job waits for the test; payloads are noted as they begin."""

    def __init__(self, *, fails: bool) -> None:
        self.seen: list[Any] = []
        self.started, self.may_end, self.others = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self.quick = 0

        @task("keyed", retry_policy=AT_ONCE)
        async def keyed(payload: Any) -> None:
            self.seen.append(payload)
            if payload == "old":
                self.started.set()
                await self.may_end.wait()
                if fails:
                    raise RuntimeError("the old one failed")

        @task("quick")
        async def quick() -> None:
            self.quick += 1
            if self.quick == 30:
                self.others.set()

        self.tasks = keyed, quick


async def change(other: "Sql", how: str) -> None:
    if how == "re-add":
        await other.add("keyed", "new", job_key="k", queue_name="q")
    else:
        await other.run("select graphile_worker.remove_job('k')")


@pytest.mark.parametrize("ending", ["commit", "rollback"])
@pytest.mark.parametrize("fails", [False, True], ids=["succeeds", "fails"])
@pytest.mark.parametrize("how", ["re-add", "remove"])
async def test_a_transaction_that_changes_the_key_of_a_running_job(
    sql: "Sql", other: "Sql", run_worker: "RunWorker", until: "Until", *, how: str, fails: bool, ending: str
) -> None:
    gate = Gate(fails=fails)
    async with run_worker(*gate.tasks) as running:
        old = await sql.add("keyed", "old", job_key="k", queue_name="q", max_attempts=1)
        async with asyncio.timeout(30):
            await gate.started.wait()
        transaction = other.connection.transaction()
        await transaction.start()
        await change(other, how)
        gate.may_end.set()
        # No slot stalls, and other jobs' releases go through at once, while the transaction is open.
        for _ in range(30):
            await sql.add("quick")
        async with asyncio.timeout(30):
            await gate.others.wait()
        await until(lambda: list(running.worker.releaser.held) == [old], "all but the held job are released")
        assert (
            await sql.count("task_id = (select id from graphile_worker._private_tasks where identifier = 'quick')") == 0
        )
        await getattr(transaction, ending)()
        await until(lambda: not running.worker.releaser.held, "the held job is released")
        if how == "re-add" and ending == "commit":
            await until(lambda: gate.seen == ["old", "new"], "the new payload has run")
        await until(lambda: none_left(sql), "nothing is left in the queue")
    assert gate.seen == (["old", "new"] if how == "re-add" and ending == "commit" else ["old"])
    assert await sql.locks() == (0, 0)
    dead = [(json.loads(entry["payload"]), entry["job_key"], entry["failure_reason"]) for entry in await sql.dead()]
    if not fails:
        assert dead == []
    elif ending == "rollback":
        assert dead == [("old", "k", "Job exceeded maximum retry attempts (1/1)")]
    else:
        assert dead == [("old", None, "Job was superseded while running: its key was added again or removed")]


async def none_left(sql: "Sql") -> bool:
    return await sql.count() == 0


@pytest.mark.parametrize("fails", [False, True], ids=["succeeds", "fails"])
async def test_a_committed_re_add_detaches_the_running_job(
    sql: "Sql", run_worker: "RunWorker", until: "Until", fails: bool
) -> None:
    gate = Gate(fails=fails)
    async with run_worker(*gate.tasks):
        old = await sql.add("keyed", "old", job_key="k", max_attempts=9)
        async with asyncio.timeout(30):
            await gate.started.wait()
        new = await sql.add("keyed", "new", job_key="k")
        await until(lambda: gate.seen == ["old", "new"], "the new one has run beside the old one")
        gate.may_end.set()
        await until(lambda: none_left(sql), "both are gone")
    assert new != old
    assert [(entry["original_job_id"], entry["job_key"]) for entry in await sql.dead()] == (
        [(old, None)] if fails else []
    )


@pytest.mark.parametrize("fails", [False, True], ids=["succeeds", "fails"])
async def test_a_held_queue_row_is_not_waited_for_and_its_successor_starts_when_it_is_let_go(
    sql: "Sql", other: "Sql", run_worker: "RunWorker", until: "Until", fails: bool
) -> None:
    gate = Gate(fails=fails)
    async with run_worker(*gate.tasks) as running:
        await sql.add("keyed", "old", queue_name="q", max_attempts=1)
        await sql.add("keyed", "next", queue_name="q")
        async with asyncio.timeout(30):
            await gate.started.wait()
        async with other.connection.transaction():
            await other.rows("select * from graphile_worker._private_job_queues for update")
            gate.may_end.set()
            for _ in range(30):
                await sql.add("quick")
            async with asyncio.timeout(30):
                await gate.others.wait()
            await until(lambda: one_left(sql), "the job itself is released")
            assert gate.seen == ["old"]
        await until(lambda: gate.seen == ["old", "next"], "the successor has started")
        await until(lambda: none_left(sql), "all are done")
        assert running.worker.releaser.stale == 0
    assert await sql.locks() == (0, 0)
    assert len(await sql.dead()) == fails


async def one_left(sql: "Sql") -> bool:
    return await sql.count() == 1


async def test_a_held_dead_letter_holds_up_its_own_job_alone(
    sql: "Sql", other: "Sql", run_worker: "RunWorker", until: "Until"
) -> None:
    """Somebody writes a note to the entry of the key, and a job with that key fails again meanwhile."""
    gate = Gate(fails=True)
    await sql.run(
        "insert into graphile_worker.backfill_dlq (task_identifier, payload, job_key, failure_reason)"
        " values ('keyed', '1', 'k', 'earlier')"
    )
    async with run_worker(*gate.tasks) as running:
        await sql.add("keyed", "old", job_key="k", max_attempts=1)
        async with asyncio.timeout(30):
            await gate.started.wait()
        async with other.connection.transaction():
            await other.run("update graphile_worker.backfill_dlq set notes = 'look into it'")
            gate.may_end.set()
            for _ in range(30):
                await sql.add("quick")
            async with asyncio.timeout(30):
                await gate.others.wait()
            await until(lambda: len(running.worker.releaser.held) == 1, "all but the held job are released")
        await until(lambda: none_left(sql), "the held job is released")
    (entry,) = await sql.dead()
    assert (entry["notes"], entry["failure_count"], json.loads(entry["payload"])) == ("look into it", 2, "old")
    assert await sql.locks() == (0, 0)


async def test_a_queue_is_freed_although_somebody_deleted_its_job(
    sql: "Sql", run_worker: "RunWorker", until: "Until"
) -> None:
    gate = Gate(fails=True)
    async with run_worker(*gate.tasks) as running:
        old = await sql.add("keyed", "old", queue_name="q")
        await sql.add("keyed", "next", queue_name="q")
        async with asyncio.timeout(30):
            await gate.started.wait()
        await sql.run("delete from graphile_worker._private_jobs where id = $1", old)
        gate.may_end.set()
        await until(lambda: gate.seen == ["old", "next"], "the successor has started")
        await until(lambda: none_left(sql), "all are done")
        assert running.worker.releaser.stale == 1
    assert await sql.locks() == (0, 0)
    assert await sql.dead() == []


async def test_a_job_whose_lock_an_operator_gave_to_somebody_else_is_left_alone(
    sql: "Sql", run_worker: "RunWorker", until: "Until"
) -> None:
    gate = Gate(fails=True)
    async with run_worker(*gate.tasks) as running:
        old = await sql.add("keyed", "old", max_attempts=1)
        async with asyncio.timeout(30):
            await gate.started.wait()
        await sql.run("update graphile_worker._private_jobs set locked_by = 'node', attempts = 7")
        gate.may_end.set()
        await until(lambda: not running.worker.releaser.held, "the worker has let it go")
        assert running.worker.releaser.stale == 1
    job = await sql.job(old)
    assert job is not None
    assert (job["locked_by"], job["attempts"], job["last_error"]) == ("node", 7, None)
    assert await sql.dead() == []


async def test_limits_changed_while_a_job_runs_count(sql: "Sql", run_worker: "RunWorker", until: "Until") -> None:
    gate = Gate(fails=True)
    async with run_worker(*gate.tasks):
        old = await sql.add("keyed", "old", max_attempts=1)
        async with asyncio.timeout(30):
            await gate.started.wait()
        await sql.run("update graphile_worker._private_jobs set max_attempts = 5, run_at = $1", await later(sql))
        gate.may_end.set()
        await until(lambda: unlocked(sql), "it is released")
    job = await sql.job(old)
    assert job is not None
    assert (job["attempts"], job["last_error"]) == (1, "RuntimeError: the old one failed")
    assert job["run_at"] > await later(sql, timedelta(minutes=50)), "no retry comes before the time that the row has"


async def unlocked(sql: "Sql") -> bool:
    return await sql.locks() == (0, 0)


async def later(sql: "Sql", by: timedelta = timedelta(hours=1)) -> Any:
    return await sql.value("select now() + $1::interval", by)
