"""remove_job, complete_jobs, permanently_fail_jobs, reschedule_jobs, force_unlock_workers, and the view."""

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest

if TYPE_CHECKING:
    from tests.schema.conftest import Heard, Sql

LATER = datetime(2100, 1, 1, tzinfo=UTC)
FRESH, JUST_FRESH, STALE = "0 s", "3 hours 59 minutes", "4 hours 1 minute"
REMOVE = "select * from graphile_worker.remove_job($1)"


async def selection(sql: "Sql") -> dict[str, int]:
    """Jobs in every state that the functions tell apart."""
    jobs = {name: (await sql.add(name))["id"] for name in ("ready", "dead", "running", "long", "stale", "unlisted")}
    await sql.exhaust(jobs["dead"])
    await sql.lock(jobs["running"], FRESH)
    await sql.lock(jobs["long"], JUST_FRESH)
    await sql.lock(jobs["stale"], STALE)
    await sql.run("update graphile_worker._private_jobs set updated_at = 'epoch', last_error = 'before'")
    return jobs


async def everything(sql: "Sql") -> dict[int, dict[str, Any]]:
    return {row["id"]: dict(row) for row in await sql.rows("select * from graphile_worker._private_jobs")}


def listed(jobs: dict[str, int]) -> list[int]:
    return [*(number for name, number in jobs.items() if name != "unlisted"), 999_999]


async def touched(sql: "Sql", call: str, *args: Any) -> tuple[dict[str, int], set[str], dict[int, dict[str, Any]]]:
    """Call a function on all but one job: the jobs, the names of those it gave back, and all rows before."""
    jobs = await selection(sql)
    before = await everything(sql)
    rows = await sql.rows(f"select * from graphile_worker.{call}", listed(jobs), *args)
    names = {number: name for name, number in jobs.items()}
    after = await everything(sql)
    given = {names[row["id"]] for row in rows}
    for name, number in jobs.items():
        if name not in given:
            assert after[number] == before[number], name
    for row in rows:
        assert after.get(row["id"], dict(row)) == dict(row)
    return jobs, given, before


@pytest.mark.parametrize("age", [None, STALE])
async def test_remove_deletes_a_job_that_does_not_run(sql: "Sql", heard: "Heard", age: str | None) -> None:
    job = await sql.add(job_key="k", payload="1")
    if age:
        await sql.lock(job["id"], age)
    await heard()
    removed = await sql.row(REMOVE, "k")
    assert (removed["id"], removed["key"], removed["payload"]) == (job["id"], "k", "1")
    assert await everything(sql) == {}
    assert await heard() == [-1]


async def test_remove_deletes_a_dead_job(sql: "Sql") -> None:
    job = await sql.add(job_key="k")
    await sql.exhaust(job["id"])
    assert (await sql.row(REMOVE, "k"))["id"] == job["id"]
    assert await everything(sql) == {}


@pytest.mark.parametrize("age", [FRESH, JUST_FRESH])
async def test_remove_lets_a_running_job_finish_but_not_retry(sql: "Sql", heard: "Heard", age: str) -> None:
    job = await sql.add(job_key="k", queue_name="q")
    await sql.lock(job["id"], age)
    await sql.run("update graphile_worker._private_job_queues set locked_at = now(), locked_by = 'someone'")
    await heard()
    removed = await sql.row(REMOVE, "k")
    assert dict(removed) == dict(await sql.job(job["id"]))
    assert (removed["key"], removed["attempts"], removed["max_attempts"]) == (None, 25, 25)
    assert removed["locked_by"] == "someone"
    assert removed["updated_at"] > job["updated_at"]
    assert await heard() == []
    assert await sql.value("select locked_by from graphile_worker._private_job_queues") == "someone"


@pytest.mark.parametrize("key", ["unknown", "", None])
async def test_remove_of_nothing_is_one_row_of_nulls(sql: "Sql", heard: "Heard", key: str | None) -> None:
    await sql.add(job_key="k")
    await heard()
    assert set(await sql.row(REMOVE, key)) == {None}
    assert await heard() == []
    assert len(await everything(sql)) == 1


async def test_complete_deletes_what_does_not_run(sql: "Sql", heard: "Heard") -> None:
    """C-035, R-33."""
    await heard()
    jobs, given, _ = await touched(sql, "complete_jobs($1)")
    assert given == {"ready", "dead", "stale"}
    assert set(await everything(sql)) == {jobs["running"], jobs["long"], jobs["unlisted"]}
    assert -1 not in await heard()


@pytest.mark.parametrize(("reason", "stored"), [("given up", "given up"), (None, "Manually marked as failed")])
async def test_permanently_fail_uses_up_the_attempts(sql: "Sql", reason: str | None, stored: str) -> None:
    """C-036, R-33."""
    jobs, given, _ = await touched(sql, "permanently_fail_jobs($1, $2)", reason)
    assert given == {"ready", "dead", "stale"}
    for name in given:
        job = await sql.job(jobs[name])
        assert (job["attempts"], job["max_attempts"], job["last_error"]) == (25, 25, stored)
        assert job["updated_at"] > datetime.fromtimestamp(0, UTC)
    assert (await sql.job(jobs["stale"]))["locked_by"] == "someone"


async def test_reschedule_changes_what_is_given(sql: "Sql", heard: "Heard") -> None:
    """C-037, R-33."""
    await heard()
    jobs, given, before = await touched(
        sql,
        "reschedule_jobs($1, run_at => $2, priority => $3, attempts => $4, max_attempts => $5)",
        LATER, 7, 1, 9,
    )  # fmt: skip
    await heard()
    assert given == {"ready", "dead", "stale"}
    for name in given:
        job = await sql.job(jobs[name])
        assert (job["run_at"], job["priority"], job["attempts"], job["max_attempts"]) == (LATER, 7, 1, 9)
        assert (job["last_error"], job["revision"]) == ("before", 0)
        assert job["updated_at"] > before[job["id"]]["updated_at"]
        assert (job["locked_at"], job["locked_by"]) == tuple(
            before[job["id"]][column] for column in ("locked_at", "locked_by")
        )


async def test_reschedule_leaves_what_is_not_given(sql: "Sql") -> None:
    _, given, before = await touched(sql, "reschedule_jobs($1)")
    assert given == {"ready", "dead", "stale"}
    for number, row in (await everything(sql)).items():
        assert row | {"updated_at": None} == before[number] | {"updated_at": None}


async def test_reschedule_does_not_notify(sql: "Sql", heard: "Heard") -> None:
    job = await sql.add()
    await heard()
    await sql.rows("select * from graphile_worker.reschedule_jobs($1, now())", [job["id"]])
    assert await heard() == []


@pytest.mark.parametrize(
    ("argument", "value", "state"),
    [
        ("priority", 40000, "22003"),
        ("attempts", 40000, "22003"),
        ("max_attempts", 40000, "22003"),
        ("max_attempts", 0, "23514"),
    ],
)
async def test_reschedule_refuses_numbers_out_of_range(sql: "Sql", argument: str, value: int, state: str) -> None:
    job = await sql.add()
    with pytest.raises(asyncpg.PostgresError) as caught:
        await sql.rows(f"select * from graphile_worker.reschedule_jobs($1, {argument} => $2)", [job["id"]], value)
    assert caught.value.sqlstate == state


async def test_reschedule_takes_negative_attempts(sql: "Sql") -> None:
    job = await sql.add()
    [row] = await sql.rows("select * from graphile_worker.reschedule_jobs($1, attempts => -3)", [job["id"]])
    assert row["attempts"] == -3


@pytest.mark.parametrize("call", ["complete_jobs", "permanently_fail_jobs", "reschedule_jobs"])
@pytest.mark.parametrize("ids", [None, []])
async def test_no_ids_touch_nothing(sql: "Sql", call: str, ids: list[int] | None) -> None:
    await sql.add()
    before = await everything(sql)
    assert await sql.rows(f"select * from graphile_worker.{call}($1)", ids) == []
    assert await everything(sql) == before


async def test_force_unlock_frees_the_jobs_and_queues_of_the_workers_named(sql: "Sql", heard: "Heard") -> None:
    """C-038, R-34."""
    mine = await sql.add(queue_name="mine")
    theirs = await sql.add(queue_name="theirs")
    for job, worker in ((mine, "w1"), (theirs, "w2")):
        await sql.lock(job["id"], by=worker)
        await sql.run(
            "update graphile_worker._private_job_queues set locked_at = now(), locked_by = $2 where id = $1",
            job["job_queue_id"],
            worker,
        )
    before = await sql.job(mine["id"])
    await heard()
    assert await sql.value("select graphile_worker.force_unlock_workers($1)", ["w1", "w3"]) in (None, "")
    after = await sql.job(mine["id"])
    assert dict(after) == dict(before) | {"locked_at": None, "locked_by": None, "is_available": True}
    assert (await sql.job(theirs["id"]))["locked_by"] == "w2"
    queues = await sql.rows("select queue_name, locked_by, locked_at is null from graphile_worker._private_job_queues")
    assert {tuple(row) for row in queues} == {("mine", None, True), ("theirs", "w2", False)}
    assert await heard() == []


async def test_force_unlock_of_no_worker_frees_nothing(sql: "Sql") -> None:
    job = await sql.add()
    await sql.lock(job["id"])
    await sql.rows("select graphile_worker.force_unlock_workers(null)")
    assert (await sql.job(job["id"]))["locked_by"] == "someone"


async def test_the_view_shows_jobs_with_their_names(sql: "Sql") -> None:
    """C-042."""
    await sql.add("a", queue_name="q", job_key="k", priority=3, flags=["f"])
    job = await sql.add("b", max_attempts=4)
    await sql.lock(job["id"])
    rows = await sql.rows("select * from graphile_worker.jobs order by id")
    tables = await sql.rows("select * from graphile_worker._private_jobs order by id")
    assert [(row["task_identifier"], row["queue_name"]) for row in rows] == [("a", "q"), ("b", None)]
    hidden = ("payload", "is_available", "task_id", "job_queue_id")
    for row, table in zip(rows, tables, strict=True):
        shown = {name: value for name, value in row.items() if name not in ("task_identifier", "queue_name")}
        assert shown == {name: value for name, value in table.items() if name not in hidden}
