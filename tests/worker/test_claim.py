"""What one claim takes: which jobs, in which order, and what it writes into their rows."""

from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
from tests.worker.conftest import ANY

from backfill.errors import InvalidInput
from backfill.model import task
from backfill.worker import WorkerContext

if TYPE_CHECKING:
    from tests.worker.conftest import Claims, MakeRunner, Sql

SOON = timedelta(seconds=60)
AGO = timedelta(seconds=-60)


def ids(rows: list[Any]) -> list[int]:
    return [row["id"] for row in rows]


async def test_by_priority_then_time_then_id(sql: "Sql", claims: "Claims") -> None:
    made = [
        (await sql.add(priority=priority, run_at=timedelta(seconds=-seconds)), priority, -seconds)
        for priority, seconds in [(5, 10), (-32768, 1), (5, 20), (0, 5), (32767, 90), (0, 5.5), (-1, 0), (0, 4)]
    ]
    expected = [job_id for job_id, *_ in sorted(made, key=lambda job: job[1:])]
    for count in (3, 1, 4):
        assert ids(await claims.take(count)) == expected[:count]
        expected = expected[count:]
    assert await claims.take() == []


async def test_of_equal_time_by_id(sql: "Sql", claims: "Claims") -> None:
    made = await sql.add_many(20, run_at="'2020-01-01'")
    assert ids(await claims.take(5)) == made[:5]
    assert ids(await claims.take(15)) == made[5:]


async def test_nothing_from_an_empty_schema(claims: "Claims") -> None:
    assert await claims.take() == []
    assert await claims.take_head("q") == []


async def test_what_is_written_and_returned(sql: "Sql", claims: "Claims") -> None:
    job_id = await sql.add(
        payload={"a": [1.5, None]},
        queue_name="q",
        job_key="k",
        priority=3,
        max_attempts=7,
        flags=["x", "y"],
        run_at=AGO,
    )
    await sql.run("update graphile_worker._private_jobs set attempts = 2, last_error = 'oh', updated_at = 'epoch'")
    before = await sql.job(job_id)
    (row,) = await claims.take()
    after = await sql.job(job_id)
    assert before is not None
    assert after is not None
    queue = await sql.row("select *, now() - locked_at as age from graphile_worker._private_job_queues")
    assert dict(after) == {
        **before,
        "attempts": 3,
        "locked_by": "backfill-one/1",
        "locked_at": after["locked_at"],
        "is_available": False,
    }
    assert (queue["locked_by"], queue["is_available"]) == ("backfill-one/1", False)
    assert timedelta(0) <= queue["age"] < SOON
    assert after["locked_at"] == queue["locked_at"]
    assert dict(row) == {
        "id": job_id,
        "task_id": before["task_id"],
        "queue_id": queue["id"],
        "key": "k",
        "flags": '{"x": true, "y": true}',
        "attempts": 3,
        "priority": 3,
        "run_at": before["run_at"],
        "payload": '{"a": [1.5, null]}',
        "queue_name": "q",
        "max_attempts": 7,
        "last_error": "oh",
        "created_at": before["created_at"],
        "updated_at": before["updated_at"],
        "locked_at": after["locked_at"],
        "revision": 0,
    }


async def test_only_known_tasks(sql: "Sql", claims: "Claims") -> None:
    for queue in (None, "q", "r"):
        await sql.add("unknown", queue_name=queue, priority=-5)
    known = [await sql.add("task"), await sql.add("also", queue_name="q")]
    assert sorted(ids(await claims.take(tasks=("task", "also", "never seen")))) == known
    assert await claims.take(tasks=("task", "also")) == []
    assert await claims.take(tasks=()) == []


@pytest.mark.parametrize("queue", [None, "q"])
async def test_what_is_not_due_stays(sql: "Sql", claims: "Claims", queue: str | None) -> None:
    later = await sql.add(queue_name=queue, run_at=SOON, priority=-9)
    due = await sql.add(queue_name=queue, run_at=AGO)
    assert ids(await claims.take()) == [due]
    assert await claims.take() == []
    row = await sql.job(later)
    assert row is not None
    assert (row["attempts"], row["locked_by"]) == (0, None)


@pytest.mark.parametrize("queue", [None, "q"])
async def test_locked_and_used_up_jobs_stay(sql: "Sql", claims: "Claims", queue: str | None) -> None:
    locked, used_up, free = [await sql.add(queue_name=queue, max_attempts=3) for _ in range(3)]
    await sql.run("update graphile_worker._private_jobs set attempts = 3 where id = $1", used_up)
    await sql.run(
        "update graphile_worker._private_jobs set locked_at = '2000-01-01', locked_by = 'node' where id = $1", locked
    )
    assert ids(await claims.take()) == [free]


async def test_only_priorities_of_the_piece(sql: "Sql", claims: "Claims") -> None:
    made = {
        (priority, queue): await sql.add(priority=priority, queue_name=queue and f"{queue}{priority}")
        for priority in (-11, -10, -1, 0)
        for queue in (None, "q")
    }
    assert sorted(ids(await claims.take(priorities=(-10, -1)))) == sorted(
        job for (priority, _), job in made.items() if priority in (-10, -1)
    )


async def test_several_pieces_in_one_statement(sql: "Sql", claims: "Claims") -> None:
    await sql.add_many(60, priority="n % 6", run_at="now() - interval '1 s'")
    known = await claims.task_ids(["task"])
    # Lane 1 has the priorities 0 and 5, lane 2 the rest, and less room.
    pieces = ([1, 2, 1], [0, 1, 5], [0, 4, 5], [9, 4, 9], [9, 4, 9])
    rows = await claims.sql.named("claim_jobs", claims.token, known, *pieces, None, ANY, [], [], [], [], [], [None] * 3)
    taken = sorted(row["priority"] for row in rows)
    assert taken == [0] * 9 + [1] * 4
    assert await sql.count(f"locked_by = '{claims.token}'") == 13


async def test_a_queue_gives_its_first_job_alone(sql: "Sql", claims: "Claims") -> None:
    made = await sql.add_many(8, queue="'q' || n % 2", run_at="now() - interval '1 s' * (10 - n)")
    assert ids(await claims.take()) == made[:2]
    assert await claims.take() == []
    assert await sql.locks() == (2, 2)


async def test_order_within_a_queue_is_priority_then_time_then_id_even_of_equal_times(
    sql: "Sql", claims: "Claims"
) -> None:
    made = await sql.add_many(
        30, queue="'q'", priority="n % 3", run_at="'2020-01-01'::timestamptz + n % 2 * '1 s'::interval"
    )
    rows = await sql.rows("select id from graphile_worker._private_jobs order by priority, run_at, id")
    # Rewritten rows lie elsewhere in the table: an order by place would show.
    await sql.run("update graphile_worker._private_jobs set last_error = '' where id = any($1)", made[:10])
    taken = []
    for _ in made:
        taken += ids(await claims.take(10))
        await release(claims)
    assert taken == ids(rows)


async def release(claims: "Claims") -> None:
    """Complete all that is locked."""
    await claims.sql.run("delete from graphile_worker._private_jobs where locked_by is not null")
    await claims.sql.run("update graphile_worker._private_job_queues set locked_at = null, locked_by = null")


async def test_a_queue_held_elsewhere_is_passed_by(sql: "Sql", claims: "Claims") -> None:
    await sql.add(queue_name="held", priority=-5)
    free, parallel = await sql.add(queue_name="free"), await sql.add()
    await sql.run(
        "update graphile_worker._private_job_queues set locked_at = '2000-01-01', locked_by = 'node' where queue_name = 'held'"
    )
    assert ids(await claims.take()) == [free, parallel]
    assert await claims.take_head("held") == []


async def test_queues_with_a_lane_of_their_own_are_left_to_it(sql: "Sql", claims: "Claims") -> None:
    own = await sql.add(queue_name="own", priority=-5)
    other_queue, parallel = await sql.add(queue_name="other"), await sql.add()
    assert ids(await claims.take(other_queues=["own", "else"])) == [other_queue, parallel]
    (head,) = await claims.take_head("own")
    assert (head["id"], head["queue_name"]) == (own, "own")
    assert await claims.take_head("own") == []
    assert await claims.take_head("no such queue") == []


async def test_the_head_of_a_queue_is_its_first_due_known_job(sql: "Sql", claims: "Claims") -> None:
    await sql.add(queue_name="q", run_at=SOON, priority=-9)
    await sql.add("unknown", queue_name="q", priority=-9)
    await sql.add(queue_name="p", priority=-9)
    made = await sql.add_many(12, queue="'q'", priority="n % 3", run_at="'2020-01-01'")
    rows = await sql.rows("select id from graphile_worker._private_jobs where id = any($1) order by priority, id", made)
    taken = []
    for _ in made:
        taken += ids(await claims.take_head("q"))
        await release(claims)
    assert taken == ids(rows)


async def test_a_full_lane_claims_no_queue(sql: "Sql", claims: "Claims") -> None:
    await sql.add(queue_name="q")
    assert await claims.take(0, 5) == []
    assert await sql.locks() == (0, 0)


async def test_ahead_of_its_slots_neither_keyed_nor_queued_jobs(sql: "Sql", claims: "Claims") -> None:
    plain = await sql.add_many(5, run_at="now() - interval '1 s'")
    keyed = await sql.add(job_key="k")
    await sql.add_many(5)
    # The keyed job is the sixth: within reach of six slots, but not to be claimed ahead by two.
    assert ids(await claims.take(2, 9)) == plain
    assert ids(await claims.take(2, 9))[0] == keyed


async def test_a_keyed_or_queued_job_within_the_slots_is_taken(sql: "Sql", claims: "Claims") -> None:
    keyed, queued = await sql.add(job_key="k", run_at=AGO), await sql.add(queue_name="q", run_at=AGO)
    plain = await sql.add_many(5)
    assert ids(await claims.take(2, 5)) == [keyed, queued, *plain[:3]]


async def test_nothing_comes_before_a_keyed_job_that_had_to_be_left(sql: "Sql", claims: "Claims") -> None:
    first = await sql.add_many(2, priority="-1")
    await sql.add(job_key="k", priority=0)
    await sql.add_many(5, priority="1")
    assert ids(await claims.take(1, 9)) == first


async def test_of_what_came_later_only_what_was_made_to_run_at_once(sql: "Sql", claims: "Claims") -> None:
    """A run over what is due takes what was due when it began, and what was added since without a time."""
    old, retried_before = await sql.add(), await sql.add()
    await sql.run("update graphile_worker._private_jobs set attempts = 1 where id = $1", retried_before)
    began_at = await sql.value("select clock_timestamp()")
    child = await sql.add()
    await sql.run(  # due since the beginning
        "update graphile_worker._private_jobs set run_at = $2, created_at = $2::timestamptz - interval '1 h' where id = $1",
        await sql.add(),
        await sql.value("select clock_timestamp()"),
    )
    retried = await sql.add()
    await sql.run("update graphile_worker._private_jobs set attempts = 1 where id = $1", retried)
    in_queue = await sql.add(queue_name="q")
    assert sorted(ids(await claims.take(began_at=began_at))) == [old, retried_before, child, in_queue]
    assert await claims.take(began_at=began_at) == []
    assert len(await claims.take()) == 2


async def test_register_tasks_gives_the_ids_of_all(sql: "Sql") -> None:
    await sql.add("there")
    rows = await sql.named("register_tasks", ["new", "there", "other"])
    stored = await sql.rows("select id, identifier from graphile_worker._private_tasks")
    assert {(row["id"], row["identifier"]) for row in rows} == {(row["id"], row["identifier"]) for row in stored}
    assert {row["identifier"] for row in rows} == {"new", "there", "other"}
    again = await sql.named("register_tasks", ["new", "there", "other"])
    assert {tuple(row) for row in again} == {tuple(row) for row in rows}


async def test_next_due(sql: "Sql", claims: "Claims") -> None:
    async def seconds() -> float | None:
        value: float | None = (await sql.named("next_due", await claims.task_ids(["task"])))[0]["seconds"]
        return value

    await sql.add(run_at=AGO)
    await sql.add("unknown", run_at=SOON)
    assert await seconds() is None
    await sql.add(run_at=3 * SOON, priority=-5)
    await sql.add(run_at=2 * SOON, priority=5)
    await sql.add(run_at=4 * SOON, priority=5)
    found = await seconds()
    assert found is not None
    assert 60 < found <= 120


@pytest.mark.parametrize("run_at", ["-infinity", "4713-01-01 BC", "0001-01-01 00:00+14"])
@pytest.mark.parametrize("queue", [None, "q"])
async def test_times_before_python_s_first_date(
    sql: "Sql", make_runner: "MakeRunner", run_at: str, queue: str | None
) -> None:
    seen: list[Any] = []

    @task("task")
    async def note(ctx: WorkerContext) -> None:
        seen.append(ctx.job.run_at)
        raise InvalidInput("no")

    job_id = await sql.add(queue_name=queue)
    await sql.run("update graphile_worker._private_jobs set run_at = $1::text::timestamptz", run_at)
    assert await (await make_runner(note)).process_available_jobs() == 1
    assert [moment.year for moment in seen] == [1]
    assert await sql.value("select original_job_id from graphile_worker.backfill_dlq") == job_id
