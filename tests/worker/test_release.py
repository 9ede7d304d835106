"""What the release statements write: by the token alone, as the row says at that moment, in one statement."""

import json
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.worker.conftest import Claims, Sql

BESIDES = {"id", "payload", "last_error", "flags", "failed_at"}  # looked at apart
ONES = {"keyed": False, "message": "it broke", "error": '{"type": "E"}', "retryable": True, "delay": 10.0}


def common(rows: Sequence[Any], token: str) -> tuple[list[Any], ...]:
    queues = [row["queue_id"] for row in rows if row["queue_id"] is not None]
    return queues, [token] * len(queues), [row["id"] for row in rows], [token] * len(rows)


async def complete(claims: "Claims", rows: Sequence[Any], token: str | None = None, *, requeued: bool = False) -> Any:
    name = "release_completed_requeued" if requeued else "release_completed"
    (row,) = await claims.sql.named(name, *common(rows, token or claims.token), *[True])
    assert len(row["ids"] or []) == row["released"]
    assert set(row["ids"] or []) <= {job["id"] for job in rows}
    return row["released"], row["freed"]


async def fail(
    claims: "Claims", rows: Sequence[Any], token: str | None = None, *, bury: bool = True, **given: Any
) -> list[Any]:
    """Release as failed; the same outcome for all but whether they had keys."""
    outcome = {**ONES, **given}
    columns = [[outcome[name]] * len(rows) for name in ("message", "error", "retryable", "delay")]
    keyed = [row["key"] is not None for row in rows]
    return await claims.sql.named(
        "release_failed", *common(rows, token or claims.token), keyed, *columns, "the worker", bury, None, None, None
    )


async def hand_back(
    claims: "Claims",
    rows: Sequence[Any],
    token: str | None = None,
    *,
    delay: float = 0.0,
    run_at: datetime | None = None,
    attempts: int | None = None,
) -> Any:
    keyed = [row["key"] is not None for row in rows]
    settings = [delay] * len(rows), None, None, [run_at] * len(rows), [attempts] * len(rows), True
    (row,) = await claims.sql.named("hand_back", *common(rows, token or claims.token), keyed, *settings)
    assert len(row["ids"] or []) == row["released"]
    return row["released"], row["freed"]


async def test_completed_jobs_are_deleted_and_their_queues_freed(sql: "Sql", claims: "Claims") -> None:
    for queue in (None, "q", "r"):
        await sql.add(queue_name=queue)
    waiting = await sql.add(queue_name="q")
    rows = await claims.take()
    assert await complete(claims, rows) == (3, 2)
    assert await sql.count() == 1
    assert await sql.locks() == (0, 0)
    assert [row["id"] for row in await claims.take()] == [waiting]


@pytest.mark.parametrize("release", [complete, fail, hand_back])
async def test_the_token_is_the_fence(sql: "Sql", claims: "Claims", release: Any) -> None:
    """A job and a queue that somebody else has locked since are not touched; nor are they by a claim's number alone."""
    await sql.add(queue_name="q", job_key="k")
    rows = await claims.take()
    token = claims.token
    for now_held_by in ("backfill-two/1", "backfill-one/11", "backfill-one", "node"):
        await sql.run("update graphile_worker._private_jobs set locked_by = $1", now_held_by)
        await sql.run("update graphile_worker._private_job_queues set locked_by = $1", now_held_by)
        before = [await sql.job(rows[0]["id"]), *await sql.rows("select * from graphile_worker._private_job_queues")]
        assert await release(claims, rows, token) in ((0, 0), [])
        after = [await sql.job(rows[0]["id"]), *await sql.rows("select * from graphile_worker._private_job_queues")]
        assert after == before
        assert await sql.dead() == []


@pytest.mark.parametrize("release", [complete, fail, hand_back])
async def test_an_unlocked_job_is_not_released(sql: "Sql", claims: "Claims", release: Any) -> None:
    await sql.add(queue_name="q")
    rows = await claims.take()
    await sql.run("update graphile_worker._private_jobs set locked_at = null, locked_by = null")
    await release(claims, rows)
    job = await sql.job(rows[0]["id"])
    assert job is not None
    assert (job["attempts"], job["last_error"]) == (1, None)
    assert await sql.locks() == (0, 0), "but the queue was still ours to free"


@pytest.mark.parametrize("attempts", [0, 7, 25])
async def test_attempts_are_no_fence(sql: "Sql", claims: "Claims", attempts: int) -> None:
    await sql.add()
    rows = await claims.take()
    await sql.run("update graphile_worker._private_jobs set attempts = $1", attempts)
    assert await complete(claims, rows) == (1, 0)
    assert await sql.count() == 0


@pytest.mark.parametrize("release", [complete, fail, hand_back])
async def test_the_queue_is_freed_although_somebody_deleted_the_job(sql: "Sql", claims: "Claims", release: Any) -> None:
    await sql.add(queue_name="q")
    second = await sql.add(queue_name="q")
    rows = await claims.take()
    await sql.run("delete from graphile_worker._private_jobs where id = $1", rows[0]["id"])
    await release(claims, rows)
    assert await sql.locks() == (0, 0)
    assert [row["id"] for row in await claims.take()] == [second]


async def test_a_failed_job_waits_and_runs_again(sql: "Sql", claims: "Claims") -> None:
    job_id = await sql.add(queue_name="q", max_attempts=2)
    (verdict,) = await fail(claims, await claims.take(), delay=30.5, message="oh")
    assert (verdict["job_id"], verdict["verdict"], verdict["dlq_id"], verdict["freed"]) == (job_id, "retry", None, 1)
    assert 29 < verdict["wait_seconds"] <= 30.5
    job = await sql.row("select *, run_at - now() as wait from graphile_worker._private_jobs")
    assert timedelta(seconds=25) < job["wait"] <= timedelta(seconds=30.5)
    assert (job["attempts"], job["last_error"], job["locked_by"], job["locked_at"]) == (1, "oh", None, None)
    assert await sql.locks() == (0, 0)


async def test_each_failure_has_its_own_message_and_delay(sql: "Sql", claims: "Claims") -> None:
    ids = await sql.add_many(3)
    rows = await claims.take()
    token, none = claims.token, [False] * 3
    jobs = list(reversed(ids)), [token] * 3, none
    outcomes = ["c", "b", "a"], ["{}"] * 3, [True] * 3, [300.0, 200.0, 100.0]
    verdicts = await claims.sql.named("release_failed", *([], []), *jobs, *outcomes, *("w", True, None, None, None))
    assert len(rows) == len(verdicts) == 3
    assert {row["job_id"]: round(row["wait_seconds"], -1) for row in verdicts} == dict(
        zip(ids, (100, 200, 300), strict=True)
    )
    stored = await sql.rows("select last_error from graphile_worker._private_jobs order by id")
    assert [row["last_error"] for row in stored] == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("change", "retryable", "verdict"),
    [
        ("max_attempts = 25", True, "retry"),
        ("max_attempts = 1", True, "exhausted"),
        ("attempts = max_attempts", True, "exhausted"),
        ("attempts = 0", True, "retry"),
        ("max_attempts = 25", False, "permanent"),
        ("attempts = max_attempts", False, "permanent"),
        ("key = null, attempts = max_attempts", True, "superseded"),
        ("key = null, attempts = 0", True, "superseded"),
        ("key = null", False, "superseded"),
    ],
)
async def test_the_row_decides_as_it_is_at_the_release(
    sql: "Sql", claims: "Claims", change: str, retryable: bool, verdict: str
) -> None:
    await sql.add(job_key="k", max_attempts=3)
    rows = await claims.take()
    await sql.run(f"update graphile_worker._private_jobs set {change}")
    (row,) = await fail(claims, rows, retryable=retryable)
    assert row["verdict"] == verdict
    assert await sql.count() == (1 if verdict == "retry" else 0)
    assert len(await sql.dead()) == (0 if verdict == "retry" else 1)


async def test_what_a_dead_letter_holds(sql: "Sql", claims: "Claims") -> None:
    job_id = await sql.add(
        "task", {"a": 1}, queue_name="q", job_key="k", priority=-3, max_attempts=5, flags=["f"], run_at=timedelta(0)
    )
    await sql.run("update graphile_worker._private_jobs set attempts = 4")
    rows = await claims.take()
    (row,) = await fail(claims, rows, error='{"type": "E", "message": "x"}')
    (entry,) = await sql.dead()
    assert row["dlq_id"] == entry["id"]
    assert (row["attempts"], row["max_attempts"]) == (5, 5)
    assert json.loads(entry["payload"]) == {"a": 1}
    assert json.loads(entry["last_error"]) == {"type": "E", "message": "x"}
    assert json.loads(entry["flags"]) == {"f": True}
    assert {name: entry[name] for name in set(entry.keys()) - BESIDES} == {
        "original_job_id": job_id,
        "task_identifier": "task",
        "queue_name": "q",
        "priority": -3,
        "job_key": "k",
        "max_attempts": 5,
        "failure_reason": "Job exceeded maximum retry attempts (5/5)",
        "failure_count": 1,
        "original_created_at": rows[0]["created_at"],
        "original_run_at": rows[0]["run_at"],
        "requeued_count": 0,
        "last_requeued_at": None,
        "notes": None,
        "created_by": "the worker",
        "requeued_job_id": None,
        "history": None,
    }


async def test_the_parallel_queue_is_the_empty_text(sql: "Sql", claims: "Claims") -> None:
    await sql.add(max_attempts=1)
    await sql.add(queue_name="default", max_attempts=1)
    await fail(claims, await claims.take())
    assert sorted(entry["queue_name"] for entry in await sql.dead()) == ["", "default"]


async def test_reasons_of_the_other_verdicts(sql: "Sql", claims: "Claims") -> None:
    await sql.add(job_key="k")
    rows = await claims.take()
    await sql.run("update graphile_worker._private_jobs set key = null, attempts = max_attempts")
    await fail(claims, rows)
    await sql.add()
    await fail(claims, await claims.take(), retryable=False, message="InvalidInput: bad")
    superseded, permanent = await sql.dead()
    assert superseded["failure_reason"].startswith("Job was superseded while running")
    assert superseded["job_key"] is None
    assert permanent["failure_reason"] == "Job failed with an error that is not retried: InvalidInput: bad"


async def test_with_the_dead_letter_queue_off_jobs_stay_dead(sql: "Sql", claims: "Claims") -> None:
    await sql.add(queue_name="q", max_attempts=1)
    await sql.add(max_attempts=9)
    rows = await claims.take()
    assert {row["verdict"] for row in await fail(claims, rows[:1], bury=False)} == {"exhausted"}
    assert {row["verdict"] for row in await fail(claims, rows[1:], bury=False, retryable=False)} == {"permanent"}
    assert await sql.dead() == []
    assert await sql.locks() == (0, 0)
    assert await sql.count("attempts >= max_attempts and last_error = 'it broke'") == 2
    assert await claims.take() == []


async def test_a_keyed_job_that_fails_again_updates_its_entry(sql: "Sql", claims: "Claims") -> None:
    for n in (1, 2, 3):
        await sql.add("task" if n < 3 else "other", n, job_key="k", max_attempts=n, priority=n)
        await sql.run("update graphile_worker._private_jobs set attempts = max_attempts - 1")
        await fail(claims, await claims.take(tasks=("task", "other")), error=json.dumps({"n": n}))
    (entry,) = await sql.dead()
    assert (entry["task_identifier"], entry["payload"], entry["priority"], entry["max_attempts"]) == (
        "other",
        "3",
        3,
        3,
    )
    assert (entry["failure_count"], json.loads(entry["last_error"])) == (3, {"n": 3})
    first, second = json.loads(entry["history"])
    assert (first["payload"], first["last_error"]) == (1, {"n": 1})
    assert first["failure_reason"] == "Job exceeded maximum retry attempts (1/1)"
    assert (second["payload"], second["task_identifier"], second["last_error"]) == (2, "task", {"n": 2})


async def test_hand_back_refunds_the_attempt_and_tells_somebody(sql: "Sql", claims: "Claims", other: "Sql") -> None:
    """R-66."""
    heard: list[str] = []
    await other.connection.add_listener("jobs:insert", lambda *args: heard.append(args[3]))
    made = [*await sql.add_many(2), *await sql.add_many(1, queue="'q'")]
    before = [await sql.job(job_id) for job_id in made]
    assert await hand_back(claims, await claims.take()) == (3, 1)
    assert [await sql.job(job_id) for job_id in made] == before
    assert await sql.locks() == (0, 0)
    await other.value("select 1")
    assert [json.loads(payload)["count"] for payload in heard] == [3]


@pytest.mark.parametrize("known", [True, False])
async def test_the_queue_of_a_job_whose_row_is_locked_is_not_handed_back_without_it(
    sql: "Sql", claims: "Claims", other: "Sql", known: bool
) -> None:
    """Its next job would overtake it."""
    first, _ = await sql.add_many(2, queue="'q'")
    free, _ = await sql.add_many(2, queue="'free'")
    rows = await claims.take()

    async def given_back() -> Any:
        if known:
            return await hand_back(claims, rows)
        (row,) = await claims.sql.named("hand_back_unknown", *common(rows, claims.token))
        return row["released"], row["freed"]

    async with other.connection.transaction():
        await other.run("select from graphile_worker._private_jobs where id = $1 for no key update", first)
        assert await given_back() == (1, 1)
        assert await sql.locks() == (1, 1)
    assert await given_back() == (1, 1)
    assert sorted(row["id"] for row in await claims.take()) == [first, free]


async def test_hand_back_with_a_delay(sql: "Sql", claims: "Claims", other: "Sql") -> None:
    heard: list[str] = []
    await other.connection.add_listener("jobs:insert", lambda *args: heard.append(args[3]))
    await sql.add_many(1)
    await hand_back(claims, await claims.take(), delay=60.0)
    job = await sql.row("select *, run_at - now() as wait from graphile_worker._private_jobs")
    assert timedelta(seconds=55) < job["wait"] <= timedelta(seconds=60)
    assert job["attempts"] == 0
    await other.value("select 1")
    assert heard == []


async def test_hand_back_with_a_time_and_attempts_of_their_own(sql: "Sql", claims: "Claims") -> None:
    await sql.add_many(1, queue="'q'")
    at = datetime(2099, 1, 1, tzinfo=UTC)
    assert await hand_back(claims, await claims.take(), delay=60.0, run_at=at, attempts=3) == (1, 1)
    job = await sql.row("select * from graphile_worker._private_jobs")
    assert (job["run_at"], job["attempts"], job["locked_at"]) == (at, 3, None)


async def test_a_superseded_job_that_is_handed_back_goes(sql: "Sql", claims: "Claims") -> None:
    await sql.add(job_key="k", queue_name="q")
    rows = await claims.take()
    await sql.run("update graphile_worker._private_jobs set key = null, attempts = max_attempts")
    assert await hand_back(claims, rows) == (1, 1)
    assert await sql.count() == 0
    assert await sql.dead() == []


async def test_attempts_never_fall_below_zero(sql: "Sql", claims: "Claims") -> None:
    await sql.add()
    rows = await claims.take()
    await sql.run("update graphile_worker._private_jobs set attempts = 0")
    assert await hand_back(claims, rows) == (1, 0)
    assert await sql.count("attempts = 0") == 1


async def test_still_held_names_what_carries_the_token(sql: "Sql", claims: "Claims") -> None:
    for queue in ("q", "r"):
        await sql.add(queue_name=queue)
    await sql.add()
    rows = await claims.take()
    await sql.run("update graphile_worker._private_jobs set locked_by = 'node' where id = $1", rows[0]["id"])
    await sql.run("update graphile_worker._private_job_queues set locked_by = null where id = $1", rows[1]["queue_id"])
    found = await claims.sql.named("still_held", *common(rows, claims.token))
    assert {row["job_id"] for row in found} == {rows[1]["id"], rows[2]["id"], None}
    assert {row["queue_id"] for row in found} == {rows[0]["queue_id"], None}
