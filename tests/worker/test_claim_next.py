"""Going on with a queue that a release has freed, without looking at all that waits: what it takes is what a claim would take."""

import random
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest
from tests.worker.test_claim_locks import complete

from backfill.model import task
from backfill.worker.link import Link

if TYPE_CHECKING:
    from tests.worker.conftest import Claims, RunWorker, Sql, Until

AT = "'2020-01-01'::timestamptz"
MANY = 260  # more than it looks at


def ids(rows: list[Any]) -> list[int]:
    return [row["id"] for row in rows]


async def would_take(claims: "Claims") -> list[int]:
    """What a claim would take now."""
    transaction = claims.sql.connection.transaction()
    await transaction.start()
    rows = await claims.take(100)
    await transaction.rollback()
    return ids(rows)


@pytest.mark.parametrize("seed", range(5))
async def test_it_goes_on_as_a_claim_would(sql: "Sql", claims: "Claims", seed: int) -> None:
    chance = random.Random(seed)
    for queue in ("a", "b", "c"):
        for _ in range(6):
            at = f"{AT} + {chance.randrange(3)} * interval '1 s'"
            await sql.add_many(chance.randrange(1, 5), queue=f"'{queue}'", priority=f"{chance.randrange(2)}", run_at=at)
    await sql.add_many(3, "other", queue="'a'", priority="-1")
    await sql.add_many(3, queue="'b'", priority="-1", run_at="now() + interval '1 h'")
    rows = await claims.take(100)
    rounds = 0
    while rows:
        await complete(claims, rows)
        expected = await would_take(claims)
        rows = await claims.take_next(rows)
        assert ids(rows) == expected
        rounds += 1
    assert rounds > 6
    assert await sql.count() == 6


async def test_jobs_of_one_moment_by_id_however_many(sql: "Sql", claims: "Claims") -> None:
    made = await sql.add_many(MANY, queue="'q'", run_at=AT)
    await sql.run(
        "update graphile_worker._private_jobs set flags = null where id % 3 = 0"
    )  # their rows are elsewhere now
    rows = await claims.take(1)
    taken = ids(rows)
    while rows:
        await complete(claims, rows)
        rows = await claims.take_next(rows)
        taken += ids(rows)
    assert taken == made


async def test_a_job_that_was_given_back_is_next_however_many_equal_it(sql: "Sql", claims: "Claims") -> None:
    made = await sql.add_many(MANY, queue="'q'", run_at=AT)
    rows = await claims.take(1)
    (row,) = rows
    say_which = False
    held = [row["queue_id"]], [claims.token], [row["id"]], [claims.token]
    await sql.named("hand_back", *held, [False], [0.0], None, None, [None], [None], say_which)
    assert ids(await claims.take_next(rows)) == made[:1]


async def test_nothing_of_a_queue_whose_next_job_is_far_behind(sql: "Sql", claims: "Claims") -> None:
    await sql.add_many(2, queue="'q'", priority="5")
    rows = await claims.take(1)
    await complete(claims, rows)
    await sql.add_many(MANY, queue="'held'", priority="1")
    await sql.run("update graphile_worker._private_job_queues set locked_at = now() where queue_name = 'held'")
    assert await claims.take_next(rows) == []
    assert len(await claims.take(1)) == 1


async def test_nothing_where_equals_may_be_behind_what_it_looks_at(sql: "Sql", claims: "Claims") -> None:
    """The job that was run came before these, so that nothing is known of their ids."""
    (first,) = await sql.add_many(1, queue="'q'", priority="-1")
    rows = await claims.take(1)
    assert ids(rows) == [first]
    await complete(claims, rows)
    await sql.add_many(MANY, queue="'q'", run_at=AT)
    assert await claims.take_next(rows) == []


async def test_a_job_that_came_meanwhile_and_is_more_urgent_is_next(sql: "Sql", claims: "Claims") -> None:
    await sql.add_many(5, queue="'q'", run_at=AT)
    rows = await claims.take(1)
    (urgent,) = await sql.add_many(1, queue="'q'", priority="-1")
    await complete(claims, rows)
    assert ids(await claims.take_next(rows, priorities=(0, 9))) != [urgent]
    await sql.run("update graphile_worker._private_jobs set locked_by = null, locked_at = null")
    await sql.run("update graphile_worker._private_job_queues set locked_by = null, locked_at = null")
    assert ids(await claims.take_next(rows)) == [urgent]


@pytest.mark.parametrize("held", ["locked_by = 'another', locked_at = now()", None])
async def test_nothing_of_a_queue_that_is_held_or_for_a_dead_worker(
    sql: "Sql", claims: "Claims", held: str | None
) -> None:
    await sql.add_many(2, queue="'q'")
    rows = await claims.take(1)
    await complete(claims, rows)
    what = f"_private_job_queues set {held}" if held else "backfill_workers set dead_at = now()"
    await sql.run(f"update graphile_worker.{what}")
    assert await claims.take_next(rows) == []


async def test_one_suspect_at_most(sql: "Sql", claims: "Claims") -> None:
    for queue in "ab":
        await sql.add_many(1, queue=f"'{queue}'", run_at=AT)
        await sql.add_many(1, queue=f"'{queue}'", flags="""'{"backfill:crashes=1": true}'""")
    rows = await claims.take(2)
    assert len(rows) == 2
    await complete(claims, rows)
    assert await claims.take_next(rows, suspects=False) == []
    assert len(await claims.take_next(rows)) == 1


async def test_a_worker_goes_on_with_its_queues_so(
    sql: "Sql", run_worker: "RunWorker", until: "Until", monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: Counter[str] = Counter()
    ran: list[int] = []
    fetch = Link.fetch

    async def counted(link: Link, name: str, *args: Any) -> Any:
        sent[name] += 1
        return await fetch(link, name, *args)

    @task("task")
    async def note(payload: dict[str, int]) -> None:
        ran.append(payload["n"])

    monkeypatch.setattr(Link, "fetch", counted)
    await sql.add_many(MANY, queue="'a'", run_at=AT)
    await sql.add_many(MANY, queue="'b'", run_at=AT)
    async with run_worker(note) as running:
        await until(lambda: len(ran) == 2 * MANY, "all have run")
        assert running.worker.claimer.polls == 0
    assert Counter(ran) == dict.fromkeys(range(1, MANY + 1), 2)
    assert sent["claim_next_of_queues"] > 0  # how often depends on what is freed while a claim is under way
