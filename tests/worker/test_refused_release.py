"""A release that the database refuses, for one job of many or for all: the others get through, and no job is lost."""

import asyncio
import json
import logging
from typing import TYPE_CHECKING, Any

import pytest

from backfill.model import JobSpec, task
from backfill.worker import release

if TYPE_CHECKING:
    from tests.worker.conftest import RunWorker, Sql, Until

    from backfill.client import BackfillClient

ONCE = JobSpec(max_attempts=1)
TRIGGER = """
create function graphile_worker.refuse() returns trigger language plpgsql as $$
begin
  if {condition} then raise exception 'not this one' using errcode = '{state}'; end if;
  return coalesce(new, old);
end $$;
create trigger refuse before insert or update or delete on graphile_worker.{table}
  for each row execute function graphile_worker.refuse()
"""


async def refuse(sql: "Sql", condition: str, *, state: str = "P0001", table: str = "backfill_dlq") -> None:
    """A user's trigger that raises."""
    await sql.run(TRIGGER.format(condition=condition, state=state, table=table))


class Crowd:
    """Jobs that all fail or end at the same moment, and so are released together."""

    def __init__(self, size: int) -> None:
        self.running, self.together = 0, asyncio.Event()

        async def meet() -> None:
            self.running += 1
            if self.running == size:
                self.together.set()
            await self.together.wait()

        @task("bad")
        async def bad(payload: Any) -> None:
            await meet()
            raise RuntimeError("bad")

        @task("poison")
        async def poison(payload: Any) -> None:
            await meet()
            raise RuntimeError("poison")

        @task("good")
        async def good(payload: Any) -> None:
            await meet()

        self.tasks = bad, poison, good


async def test_one_job_that_the_dead_letter_queue_refuses_is_isolated(
    sql: "Sql", client: "BackfillClient", run_worker: "RunWorker", until: "Until", caplog: pytest.LogCaptureFixture
) -> None:
    await refuse(sql, "new.task_identifier = 'poison'")
    crowd = Crowd(10)
    jobs = [(name, {"n": n}, ONCE) for n, name in enumerate(["bad"] * 4 + ["poison"] + ["bad"] * 2 + ["good"] * 3)]
    async with run_worker(*crowd.tasks) as running:
        made = [outcome.unwrap().id for outcome in await client.enqueue_many(jobs)]
        await until(lambda: crowd.together.is_set() and not running.worker.releaser.held, "all are released")
    assert sorted(json.loads(entry["payload"])["n"] for entry in await sql.dead()) == [0, 1, 2, 3, 5, 6]
    (kept,) = await sql.rows("select * from graphile_worker._private_jobs")
    assert (kept["id"], kept["attempts"], kept["max_attempts"], kept["locked_by"]) == (made[4], 1, 1, None)
    assert kept["last_error"] == "RuntimeError: poison"
    alarms = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    assert len(alarms) == 1
    assert f"job {made[4]} (poison)" in alarms[0]
    assert "not this one" in alarms[0]


async def test_a_column_that_the_user_made_mandatory(
    sql: "Sql", client: "BackfillClient", run_worker: "RunWorker", until: "Until", caplog: pytest.LogCaptureFixture
) -> None:
    await sql.run("alter table graphile_worker.backfill_dlq add column team text not null")
    crowd = Crowd(6)
    async with run_worker(*crowd.tasks) as running:
        await client.enqueue_many([("bad", n, JobSpec(max_attempts=1, queue=f"q{n}")) for n in range(3)])
        await client.enqueue_many([("good", n, ONCE) for n in range(3)])
        await until(lambda: crowd.together.is_set() and not running.worker.releaser.held, "all are released")
    assert await sql.count("attempts = max_attempts and last_error = 'RuntimeError: bad'") == 3
    assert await sql.count() == 3
    assert await sql.locks() == (0, 0)
    assert sum(record.levelno == logging.ERROR for record in caplog.records) == 3
    # Mended, the jobs get there after all.
    await sql.run("alter table graphile_worker.backfill_dlq alter column team set default 'us'")
    assert await client.process_failed_jobs() == 3
    assert len(await sql.dead()) == 3


async def test_a_trigger_that_keeps_a_dead_letter_from_being_stored(
    sql: "Sql", client: "BackfillClient", run_worker: "RunWorker", until: "Until", caplog: pytest.LogCaptureFixture
) -> None:
    """It raises nothing: the row is just not there afterwards. The job must be."""
    await sql.run(
        "create function public.swallow() returns trigger language plpgsql as $$ begin return null; end $$;"
        " create trigger swallow before insert on graphile_worker.backfill_dlq"
        " for each row when (new.task_identifier = 'poison') execute function public.swallow()"
    )
    crowd = Crowd(4)
    async with run_worker(*crowd.tasks) as running:
        names = ["bad", "poison", "poison", "good"]
        made = [outcome.unwrap().id for outcome in await client.enqueue_many([(name, {}, ONCE) for name in names])]
        await until(lambda: crowd.together.is_set() and not running.worker.releaser.held, "all are released")
    assert [entry["original_job_id"] for entry in await sql.dead()] == made[:1]
    kept = await sql.rows("select * from graphile_worker._private_jobs order by id")
    assert [(row["id"], row["attempts"], row["locked_by"]) for row in kept] == [(made[1], 1, None), (made[2], 1, None)]
    assert sum(record.levelno == logging.ERROR for record in caplog.records) == 2


async def test_a_trouble_that_passes_costs_no_job_its_dead_letter(
    sql: "Sql", client: "BackfillClient", run_worker: "RunWorker", until: "Until"
) -> None:
    await sql.run("create sequence public.tries")  # a number taken stays taken when the statement fails
    await refuse(sql, "nextval('public.tries') <= 9", state="40001")
    crowd = Crowd(4)
    async with run_worker(*crowd.tasks) as running:
        await client.enqueue_many([("bad", n, ONCE) for n in range(4)])
        await until(lambda: crowd.together.is_set() and not running.worker.releaser.held, "all are released")
    assert await sql.count() == 0
    assert len(await sql.dead()) == 4


async def test_a_completion_that_is_refused_is_tried_again(
    sql: "Sql", client: "BackfillClient", run_worker: "RunWorker", until: "Until", caplog: pytest.LogCaptureFixture
) -> None:
    crowd = Crowd(4)
    async with run_worker(*crowd.tasks) as running:
        made = [outcome.unwrap().id for outcome in await client.enqueue_many([("good", n, ONCE) for n in range(3)])]
        await until(lambda: crowd.running == 3, "they run")
        await refuse(sql, f"tg_op = 'DELETE' and old.id = {made[1]}", table="_private_jobs")
        await client.enqueue("good", 4, ONCE)
        await until(lambda: list(running.worker.releaser.held) == [made[1]], "all but one are released")
        await until(lambda: "cannot be released, will try again" in caplog.text, "it is told")
        assert await sql.locks() == (1, 0)
        await sql.run("drop trigger refuse on graphile_worker._private_jobs")
        await until(lambda: not running.worker.releaser.held, "so is the last one")
    assert await sql.count() == 0


async def test_claiming_waits_while_outcomes_pile_up_and_goes_on_by_itself(
    sql: "Sql", other: "Sql", run_worker: "RunWorker", until: "Until", monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(release, "_STUCK", 5)
    ran = 0

    @task("final", max_attempts=1)
    async def final() -> None:
        nonlocal ran
        ran += 1
        raise ValueError("final")

    async with run_worker(final) as running:
        async with other.connection.transaction():
            await other.run("lock table graphile_worker.backfill_dlq in access exclusive mode")
            await sql.add_many(500, "final")
            await sql.run("select pg_notify('jobs:insert', '')")
            await until(lambda: running.worker.releaser.is_stuck, "outcomes pile up")
            await until(lambda: not any(slot.current for slot in running.worker.slots), "what was claimed has run")
            claims, notified = running.worker.claimer.claims, running.worker.claimer.notified
            await sql.run("select pg_notify('jobs:insert', '')")
            await until(lambda: running.worker.claimer.notified > notified, "there is a reason to look")
            await until(lambda: running.worker.claimer._due_at is None, "no timer is set that would wake it later")
            assert running.worker.claimer.claims == claims
            assert ran < 500
        await until(lambda: none_left(sql), "all have been released")
    assert len(await sql.dead()) == ran == 500


async def none_left(sql: "Sql") -> bool:
    return await sql.count() == 0


async def test_outcomes_outlive_connections_that_end_in_the_middle_of_a_refused_release(
    sql: "Sql", client: "BackfillClient", run_worker: "RunWorker", until: "Until"
) -> None:
    """The connection ends each time the dead letter queue refuses: whatever is in hand then must come again."""
    await sql.run("create sequence public.tries")
    await refuse(
        sql,
        "nextval('public.tries') % 3 = 0 or (new.task_identifier = 'poison' and pg_terminate_backend(pg_backend_pid()))",
    )
    crowd = Crowd(5)
    async with run_worker(*crowd.tasks) as running:
        await client.enqueue_many([(name, n, ONCE) for n, name in enumerate(["bad", "bad", "poison", "bad", "good"])])
        await until(lambda: crowd.together.is_set() and len(running.worker.releaser.held) < 5, "some are released")
        await sql.run("drop trigger refuse on graphile_worker.backfill_dlq")
        await until(lambda: not running.worker.releaser.held, "all are released")
    payloads = [json.loads(entry["payload"]) for entry in await sql.dead()]
    kept = [json.loads(row["payload"]) for row in await sql.rows("select payload from graphile_worker._private_jobs")]
    assert sorted(payloads + kept) == [0, 1, 2, 3]
    assert await sql.locks() == (0, 0)
