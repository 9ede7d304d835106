"""The hot statements use the indexes, on full tables and with plans that were made on empty ones, and read no more of a full
queue than of a nearly empty one.

A plan is taken from an EXPLAIN of the very prepared statement, on a connection with a worker's settings.
"""

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest
from tests.worker.conftest import ANY, Frontier

from backfill.sql import statement, text

if TYPE_CHECKING:
    from tests.worker.conftest import Claims, Sql

MANY = 200_000
FEW = 2_000
LONG_AGO = datetime(2000, 1, 1, tzinfo=UTC)
NO_FRONTIER: Frontier = ([], [], [])
SLACK = 60  # pages: deeper index trees, a few more heap pages for rows that lie elsewhere
JOBS = "_private_jobs"
STATEMENTS = (
    "claim_jobs",
    "claim_free_jobs",
    "claim_next_of_queues",
    "claim_queue_head",
    "claim_jobs_without_flags",
    "claim_queue_head_without_flags",
    "free_queues_without_flags",
    "release_completed",
    "release_completed_requeued",
    "release_failed",
    "hand_back",
    "refresh_locks",
    "still_held",
    "next_due",
    "find_frontier",
)


class Prepared:
    """Prepared statements of one session."""

    def __init__(self, sql: "Sql") -> None:
        self.sql = sql

    async def prepare(self, name: str) -> None:
        await self.sql.connection.execute(f"prepare {name} as {text(name, self.sql.schema)}")

    async def explain(self, name: str, *args: Any) -> dict[str, Any]:
        """Execute it, undo that, and give the plan with what it did."""
        takes = statement(name).takes
        literals = ", ".join(literal(arg, kind) for arg, (_, kind) in zip(args, takes, strict=True))
        transaction = self.sql.connection.transaction()
        await transaction.start()
        try:
            value = await self.sql.connection.fetchval(
                f"explain (analyze, buffers, timing off, summary off, format json) execute {name}({literals})"
            )
        finally:
            await transaction.rollback()
        plan: dict[str, Any] = json.loads(value)[0]["Plan"]
        return plan


def literal(value: Any, kind: str) -> str:
    if value is None:
        return f"null::{kind}"
    if isinstance(value, list):
        return f"array[{', '.join(literal(item, kind.removesuffix('[]')) for item in value)}]::{kind}"
    quoted = str(value).replace("'", "''")
    return f"'{quoted}'::{kind}"


def nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for inner in plan.get("Plans", []):
        yield from nodes(inner)


def scans(plan: dict[str, Any], table: str = JOBS) -> list[str]:
    """The kinds of all scans of a table that were made."""
    return [
        node["Node Type"] for node in nodes(plan) if node.get("Relation Name") == table and "Scan" in node["Node Type"]
    ]


def pages(plan: dict[str, Any]) -> int:
    """Pages read."""
    return int(plan["Shared Hit Blocks"]) + int(plan["Shared Read Blocks"])


async def load(sql: "Sql", count: int, **columns: str) -> None:
    """Many waiting jobs; statistics and the visibility map as a server has them after a while."""
    await sql.add_many(count, **({"run_at": "now() - interval '1 h' + n * interval '1 ms'"} | columns))
    await sql.run("vacuum analyze graphile_worker._private_jobs")
    await sql.run("vacuum analyze graphile_worker._private_job_queues")


async def arguments(name: str, claims: "Claims", jobs: list[int]) -> tuple[Any, ...]:
    """What a worker would send for some jobs that it holds."""
    tokens = ["w/1"] * len(jobs)
    tasks = await claims.task_ids(["task"])
    token, piece = claims.token, (tasks, [0], [-32768], [32767], [10], [10])
    held: tuple[list[Any], ...] = ([], [], jobs, tokens)
    more: dict[str, tuple[Any, ...]] = {
        "claim_jobs": (token, *piece, None, ANY, [], [], *NO_FRONTIER, [None]),
        "claim_next_of_queues": (token, tasks, [1], [0], [LONG_AGO], [1], -32768, 32767, True),
        "claim_queue_head": (token, tasks, "q1", None, True),
        "claim_jobs_without_flags": (token, *piece, None, True, [], [], *NO_FRONTIER, [None], ["f"]),
        "claim_free_jobs": (token, *piece, None, ANY),
        "claim_queue_head_without_flags": (token, tasks, "q1", None, True, ["f"]),
        "free_queues_without_flags": (tasks, [], [], 10, ["f"]),
        "next_due": (tasks,),
        "find_frontier": (tasks, "w", []),
        "release_failed": (
            *held,
            *([value] * len(jobs) for value in (False, "m", "{}", True, 1.0)),
            "w",
            True,
            None,
            None,
            None,
        ),
        "hand_back": (*held, [False] * len(jobs), [0.0] * len(jobs), None, None, None, None, True),
        "release_completed": (*held, True),
        "release_completed_requeued": (*held, True),
    }
    return more.get(name, held)


@pytest.mark.parametrize("prepared_first", [True, False], ids=["prepared on empty tables", "prepared on full tables"])
async def test_no_scan_of_all_jobs(sql: "Sql", claims: "Claims", prepared_first: bool) -> None:
    prepared = Prepared(claims.sql)
    if prepared_first:
        for name in STATEMENTS:
            await prepared.prepare(name)
            await prepared.explain(name, *await arguments(name, claims, [1]))
    queue = "case when n % 2 = 0 then 'q' || n % 500 end"
    await load(sql, MANY, queue=queue, priority="n % 5")
    ids = [row["id"] for row in await sql.rows("select id from graphile_worker._private_jobs where id % 1999 = 0")]
    await sql.run(
        "update graphile_worker._private_jobs set locked_by = 'w/1', locked_at = now() where id = any($1)", ids
    )
    if not prepared_first:
        for name in STATEMENTS:
            await prepared.prepare(name)
    for name in STATEMENTS:
        plan = await prepared.explain(name, *await arguments(name, claims, ids[:50]))
        kinds = scans(plan)
        assert kinds, f"{name} does not look at jobs"
        assert set(kinds) <= {"Index Scan", "Index Only Scan", "Tid Scan"}, f"{name}: {kinds}"
        if name != "find_frontier":  # it wants to know which are held, a twentieth of the time at most
            assert set(scans(plan, "_private_job_queues")) <= {"Index Scan", "Index Only Scan"}, name
        assert pages(plan) < 3_000, f"{name} read {pages(plan)} pages"


async def claim_pages(
    claims: "Claims", *, idle: int = 10, wanted: int = 10, frontier: Frontier = NO_FRONTIER
) -> tuple[int, int]:
    """Pages read by a claim of ten, and jobs claimed; prepared anew."""
    prepared = Prepared(claims.sql)
    await prepared.prepare("claim_jobs")
    tasks = await claims.task_ids(["task"])
    piece = ([0], [-32768], [32767], [idle], [wanted])
    plan = await prepared.explain("claim_jobs", claims.token, tasks, *piece, None, ANY, [], [], *frontier, [None])
    await claims.sql.run("deallocate claim_jobs")
    return pages(plan), int(plan["Actual Rows"])


async def test_a_claim_reads_no_more_of_many_waiting_jobs_than_of_few(sql: "Sql", claims: "Claims") -> None:
    await load(sql, FEW, priority="n % 5")
    few, taken = await claim_pages(claims)
    assert taken == 10
    await load(sql, MANY - FEW, priority="n % 5")
    many, taken = await claim_pages(claims)
    assert taken == 10
    assert many < 2 * few + SLACK


async def test_nor_of_many_jobs_of_many_queues(sql: "Sql", claims: "Claims") -> None:
    queue = "'q' || n % 1000"
    await load(sql, FEW, queue=queue, priority="n % 5")
    few, taken = await claim_pages(claims)
    assert taken == 10
    await load(sql, MANY - FEW, queue=queue, priority="n % 5")
    many, taken = await claim_pages(claims)
    assert taken == 10
    assert many < 2 * few + SLACK


async def test_jobs_that_are_not_due_cost_nothing_however_urgent_they_are(sql: "Sql", claims: "Claims") -> None:
    await load(sql, FEW)
    before, taken = await claim_pages(claims)
    assert taken == 10
    await load(sql, 100_000, priority="-20", run_at="now() + interval '1 h'")
    await load(sql, FEW, priority="-10", run_at="now() + interval '1 h'", queue="'q' || n % 7")
    after, taken = await claim_pages(claims)
    assert taken == 10
    assert after < 2 * before + SLACK


async def test_jobs_behind_held_queues_cost_those_without_a_queue_nothing(sql: "Sql", claims: "Claims") -> None:
    await load(sql, FEW)
    before, _ = await claim_pages(claims)
    await load(sql, 50_000, priority="5", queue="'held'")
    await sql.run("update graphile_worker._private_job_queues set locked_at = now(), locked_by = 'node'")
    after, taken = await claim_pages(claims)
    assert taken == 10
    assert after < 2 * before + SLACK


async def test_jobs_behind_held_queues_cost_other_queues_nothing_from_the_frontier_on(
    sql: "Sql", claims: "Claims"
) -> None:
    await load(sql, FEW, queue="'q' || n % 50")
    before, taken = await claim_pages(claims)
    assert taken == 10
    await load(sql, 50_000, queue="'held'", run_at="now() - interval '2 h'")
    await sql.run(
        "update graphile_worker._private_job_queues set locked_at = now(), locked_by = 'node' where queue_name = 'held'"
    )
    after, taken = await claim_pages(claims, frontier=await claims.frontier())
    assert taken == 10
    assert after < 2 * before + SLACK


@pytest.mark.parametrize("queue", ["'q'", "'q' || n"], ids=["one queue", "many queues"])
async def test_many_jobs_of_one_moment_cost_a_claim_as_much_as_few_from_the_frontier_on(
    sql: "Sql", claims: "Claims", queue: str
) -> None:
    await load(sql, FEW, queue=queue, run_at="now() - interval '1 h'")
    few, taken = await claim_pages(claims, frontier=await claims.frontier())
    assert taken > 0
    await sql.run("delete from graphile_worker._private_jobs")
    await load(sql, 50_000, queue=queue, run_at="now() - interval '1 h'")
    many, taken = await claim_pages(claims, frontier=await claims.frontier())
    assert taken > 0
    assert many < 2 * few + SLACK
    read, taken = await claim_pages(claims)
    assert taken > 0
    assert read < 1_500, "without it all of them are looked through once, not for each queue"


async def test_releases_read_what_they_release_however_much_waits(sql: "Sql", claims: "Claims") -> None:
    read: dict[int, dict[str, int]] = {}
    for total in (FEW, MANY):
        await load(sql, total - await sql.count())
        ids = [row["id"] for row in await sql.rows("select id from graphile_worker._private_jobs limit 10")]
        await sql.run(
            "update graphile_worker._private_jobs set locked_by = 'w/1', locked_at = now() where id = any($1)", ids
        )
        read[total] = {}
        for name in ("release_completed", "release_completed_requeued", "release_failed", "hand_back", "next_due"):
            prepared = Prepared(claims.sql)
            await prepared.prepare(name)
            args = await arguments(name, claims, ids)
            read[total][name] = pages(await prepared.explain(name, *args))
            await claims.sql.run(f"deallocate {name}")
    for name, few in read[FEW].items():
        assert read[MANY][name] < 2 * few + SLACK, name
