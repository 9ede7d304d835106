"""The sweep by its statements: who is dead, what becomes of what they held, and what is left alone."""

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest
from tests.support.until import until
from tests.worker.conftest import Sql

from backfill.client import BackfillClient
from backfill.model import JobSpec
from backfill.sql import with_schema
from backfill.worker.lease import boot_time
from backfill.worker.sweep import Sweeper, Swept, sweep
from backfill.worker.vitals import Late

if TYPE_CHECKING:
    from tests.conftest import Database
    from tests.worker.conftest import Claims

MakeClaims = Callable[[str], Awaitable["Claims"]]


async def dies(claims: "Claims", *, running: list[int] | None = None) -> tuple[str, Any]:
    """The worker's beats stop, long ago; what a sweeper saw of it."""
    beat = await claims.sql.value(
        "update graphile_worker.backfill_workers set heartbeat_at = now() - interval '2 hours', running = $2"
        " where id = $1 returning heartbeat_at",
        claims.worker,
        running or [],
    )
    return claims.worker, beat


async def swept(sql: "Sql", *seen: tuple[str, Any], bury: bool = True) -> Swept:
    return await sweep(sql.connection, sql.schema, seen, bury=bury, moved_by="sweeper", orphans=not seen)


async def crashes(sql: "Sql", job_id: int) -> list[str]:
    """Its flags that are about crashes."""
    job = await sql.job(job_id)
    assert job is not None
    return [] if job["flags"] is None else [flag for flag in job["flags"].split('"') if "crashes" in flag]


async def test_what_had_begun_runs_again_and_what_had_not_is_refunded(sql: "Sql", claims: "Claims") -> None:
    """R-61, R-63."""
    begun, waiting = await sql.add_many(2, max_attempts="2", queue="case when n = 1 then 'q' end")
    await claims.take()
    done = await swept(sql, await dies(claims, running=[begun]))
    assert (done.released, done.left, done.workers) == (2, 0, [claims.worker])
    assert await sql.locks() == (0, 0)
    rows = await sql.rows("select id, attempts, run_at <= now() as due from graphile_worker._private_jobs order by id")
    assert [tuple(row) for row in rows] == [(begun, 1, True), (waiting, 0, True)]
    assert [await crashes(sql, job) for job in (begun, waiting)] == [["backfill:crashes=1"]] * 2
    assert await sql.value("select count(*) from graphile_worker.backfill_workers") == 0


async def test_the_death_of_a_worker_never_uses_up_a_job(sql: "Sql", claims: "Claims") -> None:
    (job,) = await sql.add_many(1, max_attempts="1")
    await claims.take()
    await swept(sql, await dies(claims, running=[job]))
    assert await sql.value("select attempts from graphile_worker._private_jobs") == 0
    assert len(await claims_of(sql, "backfill-two", claims)) == 1


async def claims_of(sql: "Sql", name: str, like: "Claims") -> list[asyncpg.Record]:
    """What another worker claims."""
    other = type(like)(like.sql, name)
    await other.register()
    return await other.take()


async def test_freed_jobs_are_announced_with_their_number(db: "Database", sql: "Sql", claims: "Claims") -> None:
    heard: list[str] = []
    listening = await db.connect()
    await listening.add_listener("jobs:insert", lambda *args: heard.append(str(args[-1])))
    await sql.add_many(3)
    await claims.take()
    await swept(sql, await dies(claims))
    await until(lambda: heard, "it is told")
    assert ['"count" : 3' in heard[0], len(heard)] == [True, 1]


async def test_a_worker_that_has_beaten_since_is_left_alone(sql: "Sql", claims: "Claims") -> None:
    await sql.add_many(1)
    await claims.take()
    worker, _ = await dies(claims)
    assert (await swept(sql, (worker, await sql.value("select now()")))).released == 0
    assert await sql.locks() == (1, 0)


async def test_a_worker_whose_lease_goes_on_is_left_alone(sql: "Sql", claims: "Claims") -> None:
    """R-60."""
    await sql.add_many(1)
    await claims.take()
    beat = await sql.value("select heartbeat_at from graphile_worker.backfill_workers")
    assert (await swept(sql, (claims.worker, beat))).released == 0
    assert await sql.locks() == (1, 0)


async def test_locks_of_ours_without_a_row_are_a_dead_worker_s(
    sql: "Sql", claims: "Claims", make_claims: MakeClaims
) -> None:
    """R-62."""
    await sql.add_many(2, queue="'q' || n")
    await claims.take()
    await sql.run("delete from graphile_worker.backfill_workers")
    other = await make_claims("backfill-two")
    await sql.add_many(1, queue="'q3'")
    await other.take()
    assert (await swept(sql)).released == 2
    assert await sql.locks() == (1, 1)


async def test_a_sweep_that_finds_another_at_work_does_not_scan(sql: "Sql", other: "Sql", claims: "Claims") -> None:
    await sql.add_many(1)
    await claims.take()
    seen = await dies(claims)
    await sql.add_many(1, locked_by="'backfill-gone/1'", locked_at="now()")
    async with other.connection.transaction():
        await other.named("mark_dead", [seen[0]], [seen[1]])
        assert (await swept(sql, seen)).released == 0
    assert (await swept(sql, seen)).released == 2


async def test_foreign_locks_are_no_business_of_a_sweep(sql: "Sql", claims: "Claims") -> None:
    await sql.add_many(1, locked_by="'node'", locked_at="now() - interval '1 day'")
    assert (await swept(sql, await dies(claims))).released == 0
    assert await sql.locks() == (1, 0)


async def test_what_somebody_has_locked_is_left_for_the_next_time_and_the_row_with_it(
    sql: "Sql", other: "Sql", claims: "Claims"
) -> None:
    first, second = await sql.add_many(2)
    await claims.take()
    seen = await dies(claims)
    async with other.connection.transaction():
        await other.run("select from graphile_worker._private_jobs where id = $1 for update", first)
        done = await swept(sql, seen)
        assert (done.released, done.left, done.workers) == (1, 1, [])
        assert await sql.locks() == (1, 0)
    assert await sql.value("select dead_at is not null from graphile_worker.backfill_workers")
    done = await swept(sql, seen)
    assert (done.released, done.workers) == (1, [claims.worker])
    assert await crashes(sql, second) == ["backfill:crashes=1"]


async def test_the_queue_of_a_job_that_somebody_has_locked_stays_held_with_it(
    sql: "Sql", other: "Sql", claims: "Claims", make_claims: MakeClaims
) -> None:
    """Its next job would overtake it."""
    first, second = await sql.add_many(2, queue="'q'")
    (taken,) = await claims.take()
    assert taken["id"] == first
    seen, living = await dies(claims), await make_claims("backfill-living")
    async with other.connection.transaction():
        await other.run("select from graphile_worker._private_jobs where id = $1 for no key update", first)
        assert (await swept(sql, seen)).left == 1
        assert await sql.locks() == (1, 1)
        assert await living.take() == []
    assert (await swept(sql, seen)).released == 1
    assert [row["id"] for row in await living.take()] == [first]
    assert await sql.value("select locked_by is null from graphile_worker._private_jobs where id = $1", second)


async def test_a_worker_that_counts_as_dead_claims_nothing(sql: "Sql", claims: "Claims") -> None:
    await sql.add_many(2, queue="case when n = 1 then 'q' end")
    await sql.run("update graphile_worker.backfill_workers set dead_at = now()")
    assert await claims.take() == []
    assert await claims.take_head("q") == []
    await sql.run("delete from graphile_worker.backfill_workers")
    assert await claims.take() == []
    await claims.register()
    assert len(await claims.take()) == 2


async def test_a_claim_that_is_under_way_is_not_slipped_past(sql: "Sql", other: "Sql", claims: "Claims") -> None:
    """The worker's row is locked by its claim: the sweep passes it by, and takes what was claimed the next time."""
    await sql.add_many(1)
    seen = await dies(claims)
    async with claims.sql.connection.transaction():
        assert len(await claims.take()) == 1
        assert (await swept(sql, seen)).released == 0
        assert await sql.value("select dead_at is null from graphile_worker.backfill_workers")
    assert (await swept(sql, seen)).released == 1


async def test_a_sweep_that_is_under_way_lets_no_claim_through(sql: "Sql", claims: "Claims") -> None:
    await sql.add_many(1)
    worker, beat = await dies(claims)
    async with sql.connection.transaction():
        assert len(await sql.named("mark_dead", [worker], [beat])) == 1
        assert await claims.take() == []


async def test_its_connections_are_ended(db: "Database", sql: "Sql", claims: "Claims") -> None:
    """A frozen worker's statements may hold locks for ever."""
    (job,) = await sql.add_many(1)
    await claims.take()
    frozen = await db.connect(server_settings={"application_name": f"{claims.worker}:release"})
    await frozen.execute("begin")
    await frozen.fetch(with_schema("select from graphile_worker._private_jobs for update", db.schema))
    assert (await swept(sql, await dies(claims))).released == 1
    assert await crashes(sql, job) == ["backfill:crashes=1"]
    await until(frozen.is_closed, "it is ended")


async def test_those_of_its_handlers_are_ended_as_well_but_none_that_is_idle(
    db: "Database", sql: "Sql", claims: "Claims"
) -> None:
    """An idle one holds nothing; the worker may come back, and behind a pooler it may be somebody else's by now."""
    await sql.add_many(1)
    await claims.take()
    name = {"application_name": f"{claims.worker}:pool"}
    busy, idle = [await db.connect(server_settings=name) for _ in range(2)]
    await busy.execute("begin")
    await busy.fetch(with_schema("select from graphile_worker._private_jobs for key share", db.schema))
    assert (await swept(sql, await dies(claims))).released == 1
    await until(busy.is_closed, "it is ended")
    assert await idle.fetchval("select true")


async def test_its_sessions_have_ended_before_it_looks_for_what_they_held(
    sql: "Sql", db: "Database", claims: "Claims"
) -> None:
    """Many of them, each of which holds a job; the sweep passes by what is locked."""
    await sql.add_many(12)
    await claims.take(12)
    for number in range(12):
        busy = await db.connect(server_settings={"application_name": f"{claims.worker}:pool"})
        await busy.execute("begin")
        await busy.fetch(
            with_schema(
                "select from graphile_worker._private_jobs order by id offset $1 limit 1 for key share", db.schema
            ),
            number,
        )
    done = await swept(sql, await dies(claims))
    assert (done.released, done.left) == (12, 0)


async def test_a_transaction_that_has_looked_whether_its_claim_stands_commits_before_others_get_the_job(
    sql: "Sql", other: "Sql", claims: "Claims"
) -> None:
    """One whose session can't be ended, such as of another role."""
    (job,) = await sql.add_many(1)
    await claims.take()
    seen = await dies(claims)
    async with other.connection.transaction():
        assert await other.named("hold_claim", job, claims.token)
        done = await swept(sql, seen)
        assert (done.released, done.left) == (0, 1)
    assert (await swept(sql, seen)).released == 1
    assert not await other.named("hold_claim", job, claims.token)


async def test_only_the_job_that_was_the_sole_suspect_three_times_is_quarantined(
    sql: "Sql", make_claims: MakeClaims
) -> None:
    poison, neighbour = await sql.add_many(2, priority="n", max_attempts="3")
    for number in range(1, 5):
        worker = await make_claims(f"backfill-{number}")
        await sql.run("update graphile_worker._private_jobs set run_at = now() where run_at > now()")
        taken = [row["id"] for row in await worker.take(10)]
        assert taken == ([poison, neighbour] if number == 1 else [poison])
        done = await swept(sql, await dies(worker, running=taken))
        assert done.quarantined == (number == 4)
    (entry,) = await sql.dead()
    assert (entry["original_job_id"], entry["created_by"]) == (poison, "sweeper")
    assert entry["failure_reason"] == "Job killed its worker: 4 workers died while they ran it"
    assert "WorkerCrashed" in entry["last_error"]
    assert await crashes(sql, neighbour) == ["backfill:crashes=1"]
    assert await sql.count() == 1


async def test_after_the_first_time_it_waits_a_while(sql: "Sql", make_claims: MakeClaims) -> None:
    await sql.add_many(1)
    for number, due in ((1, True), (2, False)):
        worker = await make_claims(f"backfill-{number}")
        await worker.take()
        await swept(sql, await dies(worker))
        assert await sql.value("select run_at <= now() from graphile_worker._private_jobs") is due
    assert await sql.value("select last_error from graphile_worker._private_jobs") == (
        "WorkerCrashed: worker backfill-2 died while it had this job (2 workers so far)"
    )


@pytest.mark.parametrize("how", ["off", "refused with an error", "refused silently"])
async def test_a_quarantined_job_stays_used_up_where_the_dead_letter_queue_does_not_take_it(
    sql: "Sql", claims: "Claims", how: str, caplog: pytest.LogCaptureFixture
) -> None:
    poison, other = await sql.add_many(
        2, priority="n", flags="case when n = 1 then '{\"backfill:crashes=3\": true}'::jsonb end"
    )
    if how != "off":
        body = "raise 'no room'" if "error" in how else "return null"
        await sql.run(
            f"create function refuse() returns trigger language plpgsql as $$ begin {body}; end $$;"
            "create trigger refuse before insert on graphile_worker.backfill_dlq for each row execute function refuse()"
        )
    await claims.take()
    await swept(sql, await dies(claims), bury=how != "off")
    rows = await sql.rows("select id, attempts >= max_attempts from graphile_worker._private_jobs order by id")
    assert [tuple(row) for row in rows] == [(poison, True), (other, False)]
    assert await sql.locks() == (0, 0)
    assert ("refuses" in caplog.text) == (how != "off")


async def test_a_superseded_job_does_not_run_again(sql: "Sql", client: BackfillClient, claims: "Claims") -> None:
    await client.enqueue("task", 1, JobSpec(job_key="k", max_attempts=3))
    await claims.take()
    await client.enqueue("task", 2, JobSpec(job_key="k", run_at=await sql.value("select now() + interval '1 h'")))
    await swept(sql, await dies(claims))
    rows = await sql.rows(
        "select key, attempts >= max_attempts as used_up from graphile_worker._private_jobs order by id"
    )
    assert [tuple(row) for row in rows] == [(None, True), ("k", False)]


async def test_suspects_are_claimed_one_at_a_time_and_never_ahead(sql: "Sql", claims: "Claims") -> None:
    suspect = "'{\"backfill:crashes=1\": true}'::jsonb"
    jobs = await sql.add_many(
        5, flags=f"case when n in (1, 3) then {suspect} end", run_at="now() + n * interval '1 ms'"
    )
    await sql.run("update graphile_worker._private_jobs set run_at = run_at - interval '1 h'")
    taken = [row["id"] for row in await claims.take(10)]
    assert taken == [jobs[0], jobs[1], jobs[3], jobs[4]]
    assert await claims.take(10, suspects=False) == []
    assert [row["id"] for row in await claims.take(10)] == [jobs[2]]


async def test_suspects_that_wait_hold_up_nobody_else(sql: "Sql", claims: "Claims") -> None:
    await sql.add_many(5, flags="'{\"backfill:crashes=1\": true}'::jsonb")
    free, queued = await sql.add_many(2, queue="case n when 2 then 'q' end")
    assert {row["id"] for row in await claims.take(2, suspects=False)} == {free, queued}


async def test_nothing_is_claimed_ahead_from_a_suspect_on(sql: "Sql", claims: "Claims") -> None:
    jobs = await sql.add_many(4, flags="case when n = 3 then '{\"backfill:crashes=1\": true}'::jsonb end", priority="n")
    assert [row["id"] for row in await claims.take(1, 4)] == jobs[:2]


async def test_a_suspect_at_the_head_holds_its_queue_while_another_runs(sql: "Sql", claims: "Claims") -> None:
    await sql.add_many(
        2, queue="'q'", priority="n", flags="case when n = 1 then '{\"backfill:crashes=1\": true}'::jsonb end"
    )
    assert await claims.take(suspects=False) == []
    assert await claims.take_head("q", suspects=False) == []
    assert len(await claims.take_head("q")) == 1


async def sweeps_again(sweeper: Sweeper, late: Late) -> bool:
    sweeper.observe([late], boot_time(), steady=True)
    return await sweeper.run_once() is not None


class TestSweeper:
    """When it judges that a worker is dead."""

    @pytest.fixture
    def sweeper(self) -> Sweeper:
        def never() -> Any:
            raise AssertionError("it should not sweep")

        return Sweeper(never, "s", moved_by="w", bury=True)

    async def test_it_has_to_see_the_beat_unmoved_for_a_quarter_of_the_lease(self, sweeper: Sweeper) -> None:
        now = boot_time()
        late = Late("w", timedelta(1), 40.0, -100.0, dead=False)  # type: ignore[arg-type]  # any value that tells beats apart
        sweeper.observe([late], now - 5, steady=True)
        assert await sweeper.run_once() is None
        sweeper.observe([late._replace(heartbeat_at=timedelta(2))], now, steady=True)  # type: ignore[arg-type]  # the same
        assert await sweeper.run_once() is None
        sweeper.observe([late], now - 12, steady=True)
        sweeper.observe([late], now, steady=True)
        with pytest.raises(AssertionError, match="should not"):
            await sweeper.run_once()

    async def test_it_rests_while_something_is_left(self, db: "Database", sql: "Sql", claims: "Claims") -> None:
        """Scans for locks cost: what somebody else's transaction holds is not worth one with each beat."""

        @contextlib.asynccontextmanager
        async def session() -> AsyncIterator[Any]:
            yield sql.connection

        sweeper = Sweeper(session, db.schema, moved_by="w", bury=True)
        other = Sql(await db.connect(), db.schema)
        await sql.add_many(1)
        await claims.take()
        worker, beat = await dies(claims)
        late = Late(worker, beat, 5.0, -100.0, dead=True)
        async with other.connection.transaction():
            await other.rows("select from graphile_worker._private_jobs for update")
            sweeper.observe([late], boot_time(), steady=True)
            done = await sweeper.run_once()
            assert done is not None
            assert done.left == 1
            sweeper.observe([late], boot_time(), steady=True)
            assert await sweeper.run_once() is None
        await until(lambda: sweeps_again(sweeper, late), "after a while it sweeps again")
        assert await sql.locks() == (0, 0)

    async def test_its_own_beats_must_have_gone_well(self, sweeper: Sweeper) -> None:
        late = Late("w", timedelta(1), 40.0, -100.0, dead=True)  # type: ignore[arg-type]  # any value that tells beats apart
        sweeper.observe([late], boot_time(), steady=False)
        assert await sweeper.run_once() is None
