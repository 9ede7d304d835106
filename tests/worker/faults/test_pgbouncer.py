"""Worker and client through PgBouncer in transaction mode, where four sessions of the server serve all their connections."""

import asyncio
import logging
from collections import Counter
from collections.abc import Iterator
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import pytest
from tests.conftest import SCHEMA
from tests.support.pgbouncer import PgBouncer
from tests.support.places import contradictions, locks, misplaced, places
from tests.support.proxy import Proxy, Sent, Session
from tests.support.until import until
from tests.worker.conftest import Claims, RunWorker, Sql
from tests.worker.faults.conftest import Ran, is_empty
from tests.worker.faults.test_ended_backends import LANES, WAVE, wave
from tests.worker.faults.workload import JOBS, Ledger, Workload, prepare
from tests.worker.test_sweep import dies, swept

from backfill.cli.demo.tables import demo_schema
from backfill.client import BackfillClient
from backfill.client.doctor import examine
from backfill.db import CLAIM, WORKER_SETTINGS, connect
from backfill.db.limits import TCP
from backfill.errors import ConfigurationError, ConnectionTimeout, ValidationFailed
from backfill.model import FindingLevel, task
from backfill.schema import check
from backfill.sql import with_schema
from backfill.worker import WorkerContext

if TYPE_CHECKING:
    from tests.conftest import Database

POLL = timedelta(milliseconds=20)
SAID = "is reached through a connection pooler"
DEAF = "notifications do not come through a connection pooler"


@pytest.fixture
def bouncer(db: "Database") -> Iterator[PgBouncer]:
    with PgBouncer(db.dsn) as running:
        yield running


async def test_a_pooler_is_found_out_and_said_once(
    bouncer: PgBouncer, db: "Database", caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(2):
        connection = await connect(bouncer.dsn)
        assert connection.has_pooler
        await connection.close()
    assert [SAID in record.getMessage() for record in caplog.records] == [True]
    direct = await connect(db.dsn)
    assert not direct.has_pooler
    await direct.close()


async def test_a_pooler_that_swallows_settings_is_found_out_too(db: "Database") -> None:
    with PgBouncer(db.dsn, ignores=TCP.settings()) as bouncer:
        connection = await connect(bouncer.dsn)
        assert connection.has_pooler
        for _ in range(8):
            assert await connection.fetchval("select count(*) from pg_prepared_statements") == 0
        await connection.close()


async def test_settings_and_limits_hold_for_the_statement_alone(bouncer: PgBouncer) -> None:
    connection = await connect(bouncer.dsn, limit=CLAIM, settings=WORKER_SETTINGS)
    try:
        names = [*WORKER_SETTINGS, "statement_timeout"]
        shown = "select current_setting(name) from unnest($1::text[]) as wanted(name)"
        rows = await connection.fetch_as_set(shown, names)
        wanted = {**WORKER_SETTINGS, "statement_timeout": "15s"}
        assert [row[0] for row in rows] == list(wanted.values())
        for _ in range(8):  # in whatever session
            left = [row[0] for row in await connection.fetch(shown, ["enable_seqscan", "statement_timeout"])]
            assert left == ["on", "0"]
    finally:
        await connection.close()


async def test_every_kind_of_job_comes_to_its_end(bouncer: PgBouncer, db: "Database", sql: Sql, tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger")

    def note(what: str, number: int) -> None:
        with ledger.path.open("a") as file:
            file.write(f"{what} {number}\n")

    async with BackfillClient(bouncer.dsn, SCHEMA) as client:
        await prepare(client)
    workload = Workload(SCHEMA, note)
    async with await workload.build(bouncer.dsn) as runner:
        running = runner.spawn_background(workload.stop)
        await workload.stop.wait()
        runner.hurry()
        await running
    allowed = {planned.number: {planned.end} for planned in JOBS}
    allowed[21].add("queue")  # it need not have looked for used-up jobs before its end
    connection = await db.connect()
    assert misplaced(await places(connection, SCHEMA), allowed) + await contradictions(connection, SCHEMA) == []
    assert await locks(connection, SCHEMA) == []
    runs = Counter(ledger.numbers("begin"))
    assert runs == Counter({planned.number: planned.runs for planned in JOBS if planned.runs})


async def test_a_transaction_of_a_dead_workers_handler_is_ended_behind_it(
    bouncer: PgBouncer, sql: Sql, claims: Claims
) -> None:
    """The pooler passes the name along with each transaction; its next one has another session."""
    await sql.add_many(1)
    await claims.take()
    name = {"application_name": f"{claims.worker}:pool"}
    connection = await connect(bouncer.dsn, settings=name)
    await connection.execute("begin")
    held = with_schema("select true from graphile_worker._private_jobs for key share", sql.schema)
    assert await connection.fetchval(held)
    done = await swept(sql, await dies(claims))
    assert (done.released, done.left) == (1, 0)
    connection.terminate()
    connection = await connect(bouncer.dsn, settings=name)
    assert await connection.fetchval(held)
    await connection.close()


async def test_a_demo_wants_a_direct_address(bouncer: PgBouncer) -> None:
    with pytest.raises(ConfigurationError, match="direct address"):
        async with demo_schema(bouncer.dsn, "a demo", keep=False):
            pass


async def test_a_schema_is_installed_and_checked(empty_db: "Database") -> None:
    with PgBouncer(empty_db.dsn) as bouncer:
        async with BackfillClient(bouncer.dsn, "a schema") as client:
            await client.enqueue("task")
            async with client.pool.acquire() as connection:
                assert await check(connection, "a schema") == []


async def test_a_restart_in_the_middle_costs_no_job_and_no_run(
    bouncer: PgBouncer, client: BackfillClient, sql: Sql, run_worker: RunWorker, ran: Ran
) -> None:
    @task("work")
    async def work(number: int, ctx: WorkerContext) -> None:
        await asyncio.sleep(0)
        ran.note((number, ctx.attempt))
        if number % 20 == 5:
            raise ValidationFailed("for good")
        if number % 10 == 3 and ctx.attempt == 1:
            raise ConnectionTimeout("once")

    waves = 3
    async with run_worker(
        work, ready=False, database_url=bouncer.dsn, queue_configs=LANES, poll_interval=POLL
    ) as running:
        for number in range(waves):
            done = ran.runs.total()
            await client.enqueue_many(wave(number))
            await ran.total(done + 20)
            await asyncio.to_thread(bouncer.restart)
            await until(partial(is_empty, sql), "the wave is done")
        await until(lambda: not running.worker.releaser.held, "all replies have come")
    numbers = range(waves * WAVE)
    assert ran.runs == {(n, 1): 1 for n in numbers} | {(n, 2): 1 for n in numbers if n % 10 == 3}
    assert await sql.locks() == (0, 0)
    assert sorted(int(row["payload"]) for row in await sql.dead()) == [n for n in numbers if n % 20 == 5]


@pytest.mark.parametrize(
    ("kind", "when"), [("claim", "before"), ("claim", "after"), ("commit", "before"), ("commit", "after")]
)
async def test_a_claim_whose_reply_is_lost_runs_once(
    bouncer: PgBouncer, sql: Sql, run_worker: RunWorker, kind: str, when: Literal["before", "after"]
) -> None:
    ran = Ran()

    @task("work")
    async def work(number: int, ctx: WorkerContext) -> None:
        ran.note((number, ctx.attempt))

    struck: list[Sent] = []
    claimed = False

    def rule(sent: Sent) -> Literal["before", "after"] | None:
        nonlocal claimed
        is_claim = sent.role == "claim" and sent.kind == "S" and "for update skip locked" in sent.sql
        claimed = claimed or is_claim
        is_commit = sent.role == "claim" and sent.kind == "Q" and sent.sql.startswith("COMMIT") and claimed
        if struck or not (is_claim if kind == "claim" else is_commit):
            return None
        struck.append(sent)
        return when

    async def cut(session: Session) -> None:
        session.cut()

    for number in range(3):
        await sql.add("work", number)
    async with (
        Proxy(bouncer.dsn, rule, cut) as proxy,
        run_worker(work, ready=False, database_url=proxy.dsn, poll_interval=POLL) as running,
    ):
        await ran.total(3)
        await until(partial(is_empty, sql), "all are released")
        assert running.worker.claimer.claims > 1
    assert len(struck) == 1
    assert sorted(ran.runs.values()) == [1, 1, 1]
    assert await sql.locks() == (0, 0)


async def test_it_polls_and_says_why(
    bouncer: PgBouncer, client: BackfillClient, run_worker: RunWorker, ran: Ran, caplog: pytest.LogCaptureFixture
) -> None:
    @task("work")
    async def work() -> None:
        ran.note("work")

    with caplog.at_level(logging.WARNING):
        async with run_worker(work, ready=False, database_url=bouncer.dsn, poll_interval=POLL) as running:
            await until(lambda: running.worker.listener.hopeless, "it does not listen")
            await client.enqueue("work")
            await ran.total(1)
            assert not running.worker.listener.proven
            assert running.worker.claimer.polls > 0
    assert caplog.text.count(DEAF) == 1


async def test_a_direct_address_to_listen_at_wakes_it(
    bouncer: PgBouncer, db: "Database", run_worker: RunWorker, ran: Ran
) -> None:
    @task("work")
    async def work() -> None:
        ran.note("work")

    async with (
        BackfillClient(bouncer.dsn, SCHEMA) as pooled,
        run_worker(work, database_url=bouncer.dsn, listen_url=db.dsn) as running,
    ):
        await pooled.enqueue("work")
        await ran.total(1)
        assert running.worker.claimer.notified > 0
        assert running.worker.claimer.polls == 0


async def test_an_address_of_another_database_is_not_taken_for_listening(
    bouncer: PgBouncer, empty_db: "Database", run_worker: RunWorker, caplog: pytest.LogCaptureFixture
) -> None:
    @task("work")
    async def work() -> None: ...

    async with run_worker(work, ready=False, database_url=bouncer.dsn, listen_url=empty_db.dsn) as running:
        running.worker.listener._check_timeout = 0.2
        await until(lambda: "does listen_url lead to the same database?" in caplog.text, "it is said")
        assert not running.worker.listener.proven


async def test_the_doctor_examines_through_it_and_says_so(bouncer: PgBouncer, db: "Database") -> None:
    connection = await connect(bouncer.dsn)
    try:
        found = {one.name: one for one in await examine(connection, db.schema, has_pooler=connection.has_pooler)}
    finally:
        await connection.close()
    assert found["pooler"].level is FindingLevel.ADVICE
    assert {found[name].level for name in ("schema", "role", "workers")} == {FindingLevel.OK}
