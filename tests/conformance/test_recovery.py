"""What dead workers leave behind, where tests/worker/test_sweep.py and test_liveness.py do not show it: R-61, R-63, X-06."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from backfill import task
from backfill.worker.sweep import sweep

if TYPE_CHECKING:
    from tests.conftest import Database
    from tests.worker.conftest import Claims, MakeRunner, Sql

MakeClaims = Callable[[str], Awaitable["Claims"]]


async def test_sweeps_at_once_free_each_job_once(db: "Database", sql: "Sql", make_claims: MakeClaims) -> None:
    """R-61, R-63: of two dead workers, by five sweepers that know no task of theirs; queues are freed with the jobs."""
    seen: list[tuple[str, Any]] = []
    begun: list[int] = []
    await sql.add_many(12, queue="case when n % 2 = 0 then 'q' || n end")
    for name in ("backfill-one", "backfill-two"):
        claims = await make_claims(name)
        begun += [row["id"] for row in await claims.take(6)]
        beat = await sql.value(
            "update graphile_worker.backfill_workers set heartbeat_at = now() - interval '2 hours', running = $2"
            " where id = $1 returning heartbeat_at",
            name,
            begun[-6:],
        )
        seen.append((name, beat))
    assert len(begun) == 12
    assert await sql.locks() == (12, 6)
    sessions = [await db.connect() for _ in range(5)]
    done = await asyncio.gather(*(sweep(each, db.schema, seen, bury=True, moved_by="x") for each in sessions))
    if sum(each.left for each in done):  # one passed by what another had just locked
        done.append(await sweep(sessions[0], db.schema, seen, bury=True, moved_by="x"))
    assert sum(each.released for each in done) == 12
    assert await sql.locks() == (0, 0)
    flags = await sql.rows("select distinct flags::text from graphile_worker._private_jobs")
    assert [row["flags"] for row in flags] == ['{"backfill:crashes=1": true}']
    assert await sql.value("select count(*) from graphile_worker.backfill_workers") == 0


async def test_freed_jobs_run_on_another_worker(sql: "Sql", make_claims: MakeClaims, make_runner: "MakeRunner") -> None:
    """R-61, X-06: after the sweep, and after force_unlock_workers with what locked_by says."""
    ran: list[int] = []

    @task("task")
    async def note(payload: dict[str, int]) -> None:
        ran.append(payload["n"])

    await sql.add_many(2, queue="'q' || n")
    first, second = await make_claims("backfill-one"), await make_claims("backfill-two")
    await first.take(1)
    await second.take(1)
    beat = await sql.value(
        "update graphile_worker.backfill_workers set heartbeat_at = now() - interval '2 hours'"
        " where id = 'backfill-one' returning heartbeat_at"
    )
    runner = await make_runner(note)
    assert await runner.process_available_jobs() == 0
    await sweep(sql.connection, sql.schema, [("backfill-one", beat)], bury=True, moved_by="x")
    assert await runner.process_available_jobs() == 1
    names = await sql.value("select array_agg(distinct locked_by) from graphile_worker._private_jobs")
    assert names == [second.token]
    await sql.rows("select graphile_worker.force_unlock_workers($1)", names)
    assert await runner.process_available_jobs() == 1
    assert sorted(ran) == [1, 2]
    assert await sql.locks() == (0, 0)
