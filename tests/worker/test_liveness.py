"""A worker's row, its lease, and what happens when the lease lapses, with workers in this process and real statements."""

import asyncio
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
from tests.support.proxy import Proxy, Sent

from backfill.errors import ClaimLost, ConfigurationError
from backfill.model import task
from backfill.sql import text
from backfill.worker import QueueConfig, WorkerConfig, WorkerContext
from backfill.worker.lane import Lane
from backfill.worker.lease import Fence, Lease, boot_time

if TYPE_CHECKING:
    from tests.conftest import Database
    from tests.worker.conftest import MakeRunner, RunWorker, Sql, Until

LEASE = timedelta(seconds=5)
ROW = "select * from graphile_worker.backfill_workers"
DEAD = "update graphile_worker.backfill_workers set dead_at = now()"


class TestLease:
    """The two moments and the fences."""

    def test_a_beat_moves_the_deadline_from_when_it_was_sent(self) -> None:
        lease, sent_at = Lease(30), boot_time()
        assert not lease.fence.stands()
        assert lease.renew(sent_at)
        assert (lease.fence.deadline, lease.ends) == (sent_at + 30 - 4, sent_at + 30)
        fence = lease.fence
        assert not lease.renew(sent_at + 1)
        assert lease.fence is fence
        assert fence.deadline == sent_at + 27

    def test_what_has_lapsed_never_stands_again(self) -> None:
        lease = Lease(5)
        lease.renew(boot_time() - 4)
        old = lease.fence
        assert not old.stands()
        assert lease.renew(boot_time())
        assert lease.fence.stands()
        assert not old.stands()
        lease.lose()
        assert not lease.fence.stands()

    def test_a_fence_says_what_is_not_to_be_done(self) -> None:
        with pytest.raises(ClaimLost, match=r"job 7 may run on another worker by now: .* so it may not add jobs"):
            Fence(0.0).check(7, "add jobs")

    @pytest.mark.parametrize("seconds", [4.9, 86_401])
    def test_a_lease_has_bounds(self, seconds: float) -> None:
        with pytest.raises(ConfigurationError, match="lease is"):
            WorkerConfig(database_url="postgresql://", lease=timedelta(seconds=seconds))

    def test_the_environment_has_it(self) -> None:
        """R-59."""
        environment = {"DATABASE_URL": "postgresql://", "BACKFILL_LEASE_SECS": "7"}
        assert WorkerConfig.from_env(environment).lease == timedelta(seconds=7)
        with pytest.raises(ConfigurationError, match="BACKFILL_LEASE_SECS='4'"):
            WorkerConfig.from_env(environment | {"BACKFILL_LEASE_SECS": "4"})
        assert WorkerConfig.from_env(environment).with_lease(LEASE).lease == LEASE


@pytest.fixture
def holding() -> tuple[Any, asyncio.Event, asyncio.Event]:
    """A task that waits for the test, and the events: it has begun, it may end."""
    begun, may_end = asyncio.Event(), asyncio.Event()

    @task("task")
    async def hold(ctx: WorkerContext) -> None:
        begun.set()
        await may_end.wait()

    return hold, begun, may_end


async def test_the_row_tells_who_it_is_and_what_it_runs_and_goes_at_the_end(
    sql: "Sql", run_worker: "RunWorker", until: "Until", holding: tuple[Any, asyncio.Event, asyncio.Event]
) -> None:
    """R-60."""
    hold, begun, may_end = holding
    async with run_worker(hold, lease=LEASE, queue_configs=[QueueConfig.default_queue(3)]) as running:
        job = await sql.add("task")
        await begun.wait()

        async def shown() -> Any:
            row = await sql.row(ROW)
            return row if row["running"] else None

        row = await until(shown)
        assert (row["id"], row["running"], row["tasks"], row["state"]) == (running.worker.id, [job], ["task"], "alive")
        assert row["lease"] == LEASE
        assert '"concurrency": 3' in row["lanes"]
        assert len(row["running_since"]) == 1
        running.stop.set()
        await until(lambda: state_is(sql, "draining"))
        may_end.set()
    assert await sql.rows(ROW) == []


async def state_is(sql: "Sql", state: str) -> bool:
    return bool((await sql.row(ROW))["state"] == state)


async def test_one_that_runs_what_is_available_has_a_row_too(sql: "Sql", make_runner: "MakeRunner") -> None:
    seen: list[Any] = []

    @task("task")
    async def look() -> None:
        seen.extend(await sql.rows(ROW))

    await sql.add("task")
    runner = await make_runner(look)
    assert await runner.process_available_jobs() == 1
    assert len(seen) == 1
    assert await sql.rows(ROW) == []


async def test_a_worker_that_was_declared_dead_cancels_what_it_runs_and_is_born_again(
    sql: "Sql", run_worker: "RunWorker", until: "Until", caplog: pytest.LogCaptureFixture
) -> None:
    begun, contexts, refused = asyncio.Event(), [], []

    @task("task")
    async def hold(ctx: WorkerContext) -> None:
        contexts.append(ctx)
        begun.set()
        if len(contexts) == 1:
            await asyncio.Event().wait()

    async with run_worker(hold, lease=LEASE) as running:
        job = await sql.add("task")
        await begun.wait()
        first = running.worker.lease.fence
        await sql.run(DEAD)
        await until(lambda: first.lapsed)
        (old,) = contexts[:1]
        for attempt in (lambda: old.pool, lambda: old.enqueue("task"), lambda: old.transaction().__aenter__()):
            try:
                found = attempt()
                await found
            except ClaimLost as error:
                refused.append(error)
        assert len(refused) == 3
        await until(lambda: len(contexts) == 2)  # handed back, since nobody had taken it, and claimed anew
        assert running.worker.lease.fence.stands()
        await until(lambda: is_gone(sql, job))
    assert "has lost its lease (the database says that it is dead)" in caplog.text


async def is_gone(sql: "Sql", job: int) -> bool:
    return await sql.job(job) is None


async def test_a_worker_that_is_cut_off_stops_its_jobs_before_the_lease_ends_and_goes_on_when_it_is_back(
    db: "Database",
    sql: "Sql",
    run_worker: "RunWorker",
    until: "Until",
    holding: tuple[Any, asyncio.Event, asyncio.Event],
) -> None:
    hold, begun, may_end = holding
    cut_off, connected = False, asyncio.Event()
    beat = text("beat", db.schema)

    def rule(sent: Sent) -> Any:
        return "before" if cut_off and sent.sql == beat else None

    async def block(_session: Any) -> None:
        await connected.wait()

    async with Proxy(db.dsn, rule, block) as proxy, run_worker(hold, lease=LEASE, database_url=proxy.dsn) as running:
        job = await sql.add("task")
        await begun.wait()
        cut_off = True
        fence = running.worker.lease.fence
        await until(lambda: fence.lapsed, limit=60)
        assert boot_time() < running.worker.lease.ends, "it stopped before others may take its jobs"
        await until(lambda: not running.worker.vitals.running())
        cut_off = False
        connected.set()
        may_end.set()
        await until(lambda: is_gone(sql, job))


async def test_nothing_begins_without_a_lease(sql: "Sql", run_worker: "RunWorker", until: "Until") -> None:
    ran: list[int] = []

    @task("task")
    async def note(ctx: WorkerContext) -> None:
        ran.append(ctx.job.id)

    async with run_worker(note, lease=LEASE) as running:
        running.worker.lease.lose()
        fence = running.worker.lease.fence
        await sql.add("task")
        await until(lambda: ran)
        assert running.worker.lease.fence is not fence


async def test_what_waits_in_the_buffer_does_not_begin_when_the_lease_is_over(
    sql: "Sql", run_worker: "RunWorker", until: "Until"
) -> None:
    """As after a freeze: the slot goes on before anybody has told the worker."""
    lanes: list[Lane] = []
    lapsed: list[bool] = []
    blocked, may_end = asyncio.Event(), asyncio.Event()

    @task("task")
    async def mostly_quick(ctx: WorkerContext) -> None:
        lapsed.append(not ctx._claimed.fence.stands())
        if not blocked.is_set() and sum(lane.buffered for lane in lanes) >= 5:
            blocked.set()
            await may_end.wait()

    await sql.add_many(2000)
    async with run_worker(mostly_quick, lease=LEASE, queue_configs=[QueueConfig("only", 1)], ready=False) as running:
        lanes += running.worker.lanes
        async with asyncio.timeout(60):
            await blocked.wait()
        running.worker.lease.lose()
        may_end.set()
        await until(lambda: none_left(sql), limit=60)
    assert len(lapsed) == 2000
    assert not any(lapsed)


async def none_left(sql: "Sql") -> bool:
    return await sql.count() == 0


async def test_a_heartbeat_that_fails_in_an_unforeseen_way_goes_on(
    sql: "Sql",
    run_worker: "RunWorker",
    until: "Until",
    caplog: pytest.LogCaptureFixture,
    holding: tuple[Any, asyncio.Event, asyncio.Event],
) -> None:
    async with run_worker(holding[0], lease=LEASE) as running:
        heartbeat = running.worker.heartbeat
        held, heartbeat._vitals = heartbeat._vitals, None  # type: ignore[assignment]  # a fault of ours
        await until(lambda: "failed in an unforeseen way" in caplog.text)
        heartbeat._vitals = held
        beats = heartbeat.beats
        await until(lambda: heartbeat.beats > beats)


async def test_a_transaction_of_a_claim_that_was_taken_away_is_rolled_back(
    sql: "Sql", other: "Sql", run_worker: "RunWorker", until: "Until"
) -> None:
    await sql.run("create table effects (job bigint)")
    refused: list[BaseException] = []
    runs = 0

    @task("task")
    async def write(ctx: WorkerContext) -> None:
        nonlocal runs
        runs += 1
        try:
            async with ctx.transaction() as connection:
                await connection.execute("insert into effects values ($1)", ctx.job.id)
                if runs == 1:
                    await other.run("update graphile_worker._private_jobs set locked_by = null, locked_at = null")
        except ClaimLost as error:
            refused.append(error)
            raise

    async with run_worker(write) as running:
        await sql.add("task")
        await until(lambda: refused)
        running.worker.claimer.look()
        await until(lambda: runs == 2)
        await until(lambda: nothing_held(running.worker))
    assert await sql.value("select count(*) from effects") == 1
    assert "was taken away while it ran" in str(refused[0])


async def test_a_transaction_that_is_open_when_the_lease_ends_is_rolled_back_though_nobody_took_the_job(
    sql: "Sql", run_worker: "RunWorker", until: "Until"
) -> None:
    """Its claim still stands in the database, but who takes it over may be at it."""
    await sql.run("create table effects (job bigint)")
    refused: list[BaseException] = []
    leases: list[Lease] = []

    @task("task")
    async def write(ctx: WorkerContext) -> None:
        try:
            async with ctx.transaction() as connection:
                await connection.execute("insert into effects values ($1)", ctx.job.id)
                if not refused:
                    leases[0].lose()
        except ClaimLost as error:
            refused.append(error)
            raise

    async with run_worker(write, lease=LEASE) as running:
        leases.append(running.worker.lease)
        job = await sql.add("task")
        await until(lambda: is_gone(sql, job))
    assert await sql.value("select count(*) from effects") == 1
    assert "may not commit a transaction" in str(refused[0])


def nothing_held(worker: Any) -> bool:
    return not worker.releaser.held


async def test_locks_of_long_jobs_are_refreshed_and_superseded_ones_stay_known(sql: "Sql", claims: Any) -> None:
    await sql.add("task", job_key="k", queue_name="q")
    await sql.add("task")
    rows = await claims.take()
    await sql.add("task", job_key="k")
    for table in ("jobs", "job_queues"):
        await sql.run(
            f"update graphile_worker._private_{table} set locked_at = locked_at - interval '3 h' where locked_by is not null"
        )
    await sql.run(
        "update graphile_worker._private_jobs set updated_at = updated_at - interval '3 h' where locked_by is not null"
    )
    queues = [row["queue_id"] for row in rows if row["queue_id"] is not None]
    args = (queues, [claims.token], [row["id"] for row in rows], [claims.token, "somebody/1"])
    assert tuple((await sql.named("refresh_locks", *args))[0]) == (1, 1)
    fresh = await sql.rows(
        "select id, key is null and attempts >= max_attempts and updated_at > locked_at as superseded"
        " from graphile_worker._private_jobs where locked_at > now() - interval '1 h'"
    )
    assert [tuple(row) for row in fresh] == [(rows[0]["id"], True)]
    assert await sql.value("select locked_at > now() - interval '1 h' from graphile_worker._private_job_queues")


async def test_the_heartbeat_refreshes_what_is_held_for_long(
    sql: "Sql", run_worker: "RunWorker", until: "Until", holding: tuple[Any, asyncio.Event, asyncio.Event]
) -> None:
    hold, begun, may_end = holding
    async with run_worker(hold, lease=LEASE) as running:
        await sql.add("task")
        await begun.wait()
        await sql.run("update graphile_worker._private_jobs set locked_at = now() - interval '3 h'")
        for job in running.worker.vitals.held():
            job.claimed_at -= 100
        running.worker.heartbeat._refreshed_at -= 100
        await until(lambda: is_fresh(sql))
        may_end.set()


async def is_fresh(sql: "Sql") -> bool:
    return bool(await sql.value("select locked_at > now() - interval '1 h' from graphile_worker._private_jobs"))


async def test_a_handler_that_hogs_the_loop_keeps_its_job(
    sql: "Sql", run_worker: "RunWorker", until: "Until", caplog: pytest.LogCaptureFixture
) -> None:
    """For two leases of pure Python; a worker beside it, in a loop and thread of its own, would take the job."""
    runs: list[int] = []

    @task("task")
    async def hog(ctx: WorkerContext) -> None:
        runs.append(ctx.job.id)
        end = time.monotonic() + 2 * LEASE.total_seconds()
        while time.monotonic() < end:
            pass

    async with run_worker(hog, lease=LEASE) as running:
        fence = running.worker.lease.fence
        job = await sql.add("task")
        await until(lambda: is_gone(sql, job))
        assert running.worker.lease.fence is fence
        assert not fence.lapsed
    assert runs == [job]
    assert "lost its lease" not in caplog.text


async def test_a_registration_that_is_refused_ends_the_worker(
    sql: "Sql", make_runner: "MakeRunner", holding: tuple[Any, asyncio.Event, asyncio.Event]
) -> None:
    from backfill.errors import SchemaError

    runner = await make_runner(holding[0])
    await sql.run("drop table graphile_worker.backfill_workers")
    with pytest.raises(SchemaError, match=r"cannot register worker backfill-.* schema install"):
        await runner.process_available_jobs()
    with pytest.raises(SchemaError):
        await runner.run_until_cancelled(asyncio.Event())


async def test_a_worker_waits_for_its_row_until_it_is_told_to_stop(
    db: "Database",
    make_runner: "MakeRunner",
    holding: tuple[Any, asyncio.Event, asyncio.Event],
    until: Callable[..., Any],
) -> None:
    may_pass, asked = asyncio.Event(), asyncio.Event()

    def rule(sent: Sent) -> Any:
        return "before" if sent.sql == text("register_worker", db.schema) else None

    async def block(_session: Any) -> None:
        asked.set()
        await may_pass.wait()

    async with Proxy(db.dsn, rule, block) as proxy:
        runner = await make_runner(holding[0], database_url=proxy.dsn, lease=LEASE)
        stop = asyncio.Event()
        running = runner.spawn_background(stop)
        await asked.wait()
        stop.set()
        assert await running == 0
        may_pass.set()


async def test_a_worker_runs_one_suspect_at_a_time_and_others_beside_it(
    sql: "Sql", run_worker: "RunWorker", until: "Until"
) -> None:
    now, most, order = 0, 0, []
    may_end = asyncio.Event()

    @task("task")
    async def watch(ctx: WorkerContext) -> None:
        nonlocal now, most
        is_suspect = ctx.job.extras.crashes > 0
        now += is_suspect
        most = max(most, now)
        order.append(ctx.job.id)
        if is_suspect:
            await may_end.wait()
        now -= is_suspect

    suspects = await sql.add_many(
        4, flags="'{\"backfill:crashes=1\": true}'::jsonb", queue="case n when 4 then 'own' end"
    )
    others = await sql.add_many(6)
    lanes = [QueueConfig.named_queue("own"), QueueConfig.default_queue(3)]
    async with run_worker(watch, queue_configs=lanes, ready=False):
        await until(lambda: set(others) <= set(order), "others run beside the suspect")
        assert len(set(suspects) & set(order)) == 1
        may_end.set()
        await until(lambda: len(order) == 10, "the other suspects run, one after the other")
    assert most == 1


async def test_queues_whose_first_jobs_are_suspects_that_wait_hold_no_other_queue_up(
    sql: "Sql", run_worker: "RunWorker", until: "Until"
) -> None:
    """Each has more jobs than a claim looks at, and a suspect without a queue waits as well."""
    order: list[str | None] = []
    may_end = asyncio.Event()

    @task("task")
    async def watch(ctx: WorkerContext) -> None:
        order.append(ctx.job.queue_name)
        if ctx.job.extras.crashes:
            await may_end.wait()

    suspect = "'{\"backfill:crashes=1\": true}'::jsonb"
    await sql.add_many(3, flags=suspect)
    for queue in ("one", "two"):
        await sql.add_many(5, queue=f"'{queue}'", flags=f"case n when 1 then {suspect} end")
    await sql.add_many(20, queue="'free'")
    async with run_worker(
        watch, queue_configs=[QueueConfig.default_queue(3)], poll_interval=timedelta(hours=1), ready=False
    ):
        await until(lambda: order.count("free") == 20, "without a poll, the other queue has run")
        assert order[0] is None
        assert len(order) == 21
        may_end.set()
        await until(lambda: len(order) == 33, "all have run")


async def test_embedded_a_handler_that_cannot_be_cancelled_runs_on_and_is_refused(
    sql: "Sql", run_worker: "RunWorker", until: "Until", caplog: pytest.LogCaptureFixture
) -> None:
    began, may_end = threading.Event(), threading.Event()
    runs: list[WorkerContext] = []

    @task("task")
    def in_thread(ctx: WorkerContext) -> None:
        runs.append(ctx)
        began.set()
        if len(runs) == 1:
            may_end.wait()

    try:
        async with run_worker(in_thread, lease=LEASE) as running:
            job = await sql.add("task")
            await until(began.is_set)
            await sql.run(DEAD)
            await until(lambda: "still run here since they can't be cancelled" in caplog.text)
            assert running.worker.lease.fence.stands(), "it is back, but not for this job"
            with pytest.raises(ClaimLost):
                _ = runs[0].pool
            assert await sql.locks() == (1, 0), "nobody has taken it, so it must not start again while it runs"
            may_end.set()
            await until(lambda: is_gone(sql, job))
    finally:
        may_end.set()
