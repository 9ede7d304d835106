"""Claims never wait for rows that others have locked, and never take what another claim takes at the same time."""

import asyncio
import contextlib
import random
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.conftest import Database
    from tests.worker.conftest import Claims, Sql, Until

MakeClaims = Callable[[str], Awaitable["Claims"]]


def ids(rows: list[Any]) -> list[int]:
    return sorted(row["id"] for row in rows)


@pytest.fixture
async def impatient(claims: "Claims") -> "Claims":
    """Claims that fail as soon as they wait for a lock."""
    await claims.sql.run("set lock_timeout = '100ms'")
    return claims


@pytest.mark.parametrize(
    "doing",
    [
        "select id from graphile_worker._private_jobs where id = $1 for update",
        "select id from graphile_worker._private_jobs where id = $1 for key share",
        "update graphile_worker._private_jobs set priority = -7 where id = $1",
        "update graphile_worker._private_jobs set locked_at = now(), locked_by = 'node' where id = $1",
        "delete from graphile_worker._private_jobs where id = $1",
    ],
)
@pytest.mark.parametrize("queue", [None, "q"])
async def test_job_rows_that_a_transaction_holds_are_passed_by(
    sql: "Sql", other: "Sql", impatient: "Claims", doing: str, queue: str | None
) -> None:
    held, free = await sql.add(queue_name=queue), await sql.add()
    async with other.connection.transaction():
        await other.run(doing, held)
        assert ids(await impatient.take()) == [free]
        if queue is not None:
            assert held not in ids(await impatient.take_head(queue))


@pytest.mark.parametrize("doing", ["for update", "for share"])
async def test_queue_rows_that_a_transaction_holds_are_passed_by(
    sql: "Sql", other: "Sql", impatient: "Claims", doing: str
) -> None:
    await sql.add(queue_name="held")
    free = await sql.add(queue_name="free")
    async with other.connection.transaction():
        await other.rows(f"select * from graphile_worker._private_job_queues where queue_name = 'held' {doing}")
        assert ids(await impatient.take()) == [free]
        assert await impatient.take_head("held") == []


async def test_a_task_row_that_a_transaction_holds_stops_nobody(sql: "Sql", other: "Sql", impatient: "Claims") -> None:
    made = [await sql.add(), await sql.add(queue_name="q")]
    async with other.connection.transaction():
        await other.rows("select * from graphile_worker._private_tasks for update")
        assert ids(await impatient.take()) == made


async def test_a_transaction_that_adds_jobs_and_names_stops_nobody(
    sql: "Sql", other: "Sql", impatient: "Claims"
) -> None:
    first = await sql.add(queue_name="q")
    async with other.connection.transaction():
        hidden = [
            await other.add(job_key="k"),
            await other.add("new", queue_name="new"),
            await other.add(queue_name="q"),
        ]
        assert ids(await impatient.take(tasks=("task", "new"))) == [first]
    assert ids(await impatient.take(tasks=("task", "new"))) == hidden[:2]


async def test_a_keyed_add_under_way_is_passed_by_and_found_afterwards(
    sql: "Sql", other: "Sql", impatient: "Claims"
) -> None:
    job_id = await sql.add(payload=1, job_key="k")
    async with other.connection.transaction():
        assert await other.add(payload=2, job_key="k") == job_id
        assert await impatient.take() == []
    (row,) = await impatient.take()
    assert (row["id"], row["payload"], row["revision"]) == (job_id, "2", 1)


async def test_other_queues_go_on_while_a_head_is_held(sql: "Sql", other: "Sql", impatient: "Claims") -> None:
    heads = {queue: await sql.add(queue_name=queue) for queue in ("a", "b")}
    await sql.add(queue_name="a")
    async with other.connection.transaction():
        await other.rows("select * from graphile_worker._private_jobs where id = $1 for update", heads["a"])
        taken = ids(await impatient.take())
        assert heads["b"] in taken
        assert heads["a"] not in taken


async def complete(claims: "Claims", rows: list[Any]) -> None:
    """Release until all is released: a claim that comes too late holds a row for a moment, and is not waited for."""
    queues = [row["queue_id"] for row in rows if row["queue_id"] is not None]
    token = claims.token
    args = queues, [token] * len(queues), ids(rows), [token] * len(rows), False
    released = freed = 0
    while (released, freed) != (len(rows), len(queues)):
        (done,) = await claims.sql.named("release_completed", *args)
        released += done["released"]
        freed += done["freed"]


async def test_two_workers_never_take_one_job_or_one_queue_twice(sql: "Sql", make_claims: MakeClaims) -> None:
    """Many rounds of claims and releases at once, by several workers; every run is counted, and so are queues held."""
    chance = random.Random(7)
    made = await sql.add_many(200) + await sql.add_many(
        300, queue="'q' || n % 5", priority="n % 2", run_at="now() - interval '1 s' * (n % 7)"
    )
    runs: Counter[int] = Counter()
    running: Counter[int] = Counter()
    order: dict[int, list[Any]] = {}

    async def work(claims: "Claims") -> None:
        while sum(runs.values()) < len(made):
            if chance.random() < 0.2:
                rows = await claims.take_head(f"q{chance.randrange(5)}")
            else:
                rows = await claims.take(chance.randint(1, 6), chance.randint(6, 9))
            for row in rows:
                runs[row["id"]] += 1
                if row["queue_id"] is not None:
                    running[row["queue_id"]] += 1
                    assert running[row["queue_id"]] == 1, "two jobs of a queue at once"
                    order.setdefault(row["queue_id"], []).append((row["priority"], row["run_at"], row["id"]))
            await asyncio.sleep(0)
            for row in rows:
                running[row["queue_id"]] -= 1
            if rows:
                await complete(claims, rows)

    workers = [await make_claims(f"backfill-{n}") for n in range(6)]
    async with asyncio.timeout(90):
        await asyncio.gather(*(work(claims) for claims in workers))
    assert runs == Counter(made)
    assert len(order) == 5
    for taken in order.values():
        assert taken == sorted(taken), "a queue gives its jobs in their order"
    assert await sql.locks() == (0, 0)


@contextlib.asynccontextmanager
async def slow_claim(sql: "Sql", claims: "Claims", until: "Until") -> AsyncIterator["asyncio.Task[list[Any]]"]:
    """A claim that has begun, and has to look at very much before it locks anything; what it claims is the task's result."""
    await sql.add_many(60_000, queue="'held'", priority="-1", run_at="now()")
    await sql.run("update graphile_worker._private_job_queues set locked_at = now() where queue_name = 'held'")
    pid = claims.sql.connection.get_server_pid()
    claiming = asyncio.create_task(claims.take())
    await until(lambda: active(sql, pid), "it looks at what the held queue has")
    yield claiming
    assert not claiming.done(), "the claim was not slow enough for this test"
    await claiming


async def test_a_queue_that_was_taken_since_a_claim_began_is_passed_by(
    sql: "Sql", make_claims: MakeClaims, until: "Until"
) -> None:
    """The slow claim has seen the queue free; when it comes to lock it, a worker for another task has it and runs its job."""
    slow, quick = await make_claims("backfill-slow"), await make_claims("backfill-quick")
    await sql.add("other", queue_name="q")
    await sql.add("task", queue_name="q", run_at=timedelta(seconds=1))
    assert await slow.take() == []  # prepares it, so that what is active from now on is its execution
    await sql.run("update graphile_worker._private_jobs set run_at = now()")
    async with slow_claim(sql, slow, until) as claiming:
        taken = await quick.take_head("q", ("other",))
        assert len(taken) == 1
    assert claiming.result() == []
    assert (
        await sql.value("select locked_by from graphile_worker._private_job_queues where queue_name = 'q'")
        == quick.token
    )


@pytest.mark.parametrize(
    "change",
    [
        "task_id = (select id from graphile_worker._private_tasks where identifier = 'other')",
        "run_at = now() + interval '1 hour'",
        "attempts = max_attempts",
        "job_queue_id = null",
    ],
)
async def test_a_head_that_was_changed_since_a_claim_began_is_passed_by(
    sql: "Sql", make_claims: MakeClaims, until: "Until", change: str
) -> None:
    slow = await make_claims("backfill-slow")
    await sql.add("other", run_at=timedelta(hours=1))
    assert await slow.take() == []
    job_id = await sql.add("task", queue_name="q")
    async with slow_claim(sql, slow, until) as claiming:
        await sql.run(f"update graphile_worker._private_jobs set {change} where id = $1", job_id)
    assert claiming.result() == []
    assert await sql.count("locked_by is not null") == 0


async def active(sql: "Sql", pid: int) -> bool:
    state = "select state = 'active' and query like 'with piece%' from pg_stat_activity where pid = $1"
    return bool(await sql.value(state, pid))


async def test_tokens_of_two_claims_differ(sql: "Sql", claims: "Claims") -> None:
    made = await sql.add_many(2)
    await claims.take(1)
    await claims.take(1)
    rows = await sql.rows("select locked_by from graphile_worker._private_jobs where id = any($1) order by id", made)
    assert [row["locked_by"] for row in rows] == ["backfill-one/1", "backfill-one/2"]


@pytest.mark.parametrize("level", ["repeatable read", "serializable"])
async def test_rows_that_others_change_are_passed_by_whatever_the_database_s_isolation_is(
    db: "Database", sql: "Sql", other: "Sql", make_claims: MakeClaims, level: str
) -> None:
    await sql.run(f"alter database {db.name} set default_transaction_isolation = '{level}'")
    claims = await make_claims("backfill-one")
    assert await claims.sql.value("show transaction_isolation") == "read committed"
