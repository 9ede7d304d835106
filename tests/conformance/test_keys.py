"""Job keys, by the client and before a worker: C-010 to C-016, C-031 to C-034, R-23 to R-32, X-08.

Each on functions that we installed, and on those that Node did.
"""

import asyncio
import json
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest
from tests.conftest import SCHEMA, install_ours, make_template, template_name
from tests.support.graphile import NEWEST, Peer

from backfill import (
    AlreadyInProgress,
    BackfillClient,
    Enqueued,
    EnqueueOutcome,
    Job,
    JobKeyMode,
    JobSpec,
    RetryPolicy,
    WorkerContext,
    task,
)
from backfill.schema import install

if TYPE_CHECKING:
    from tests.conftest import Database, Server
    from tests.worker.conftest import MakeRunner, RunWorker, Sql, Until

REPLACE, PRESERVE, DEDUPE = JobKeyMode.REPLACE, JobKeyMode.PRESERVE_RUN_AT, JobKeyMode.UNSAFE_DEDUPE
LATER = datetime(2100, 1, 1, tzinfo=UTC)
MUCH_LATER = datetime(2200, 1, 1, tzinfo=UTC)
AT_ONCE = RetryPolicy(5, 0.0, 0.0, 1.0, 0.0)

Add = Callable[..., Awaitable[EnqueueOutcome]]


class Ran:
    """A task that notes its payloads, and fails or waits when told."""

    def __init__(self) -> None:
        self.payloads: list[Any] = []
        self.started, self.may_end = asyncio.Event(), asyncio.Event()
        self.holds: set[Any] = set()
        self.fails: set[Any] = set()

        @task("task", retry_policy=AT_ONCE)
        async def note(payload: Any) -> None:
            self.payloads.append(payload)
            if payload in self.holds:
                self.started.set()
                await self.may_end.wait()
            if payload in self.fails:
                raise RuntimeError("not yet")

        self.task = note


@pytest.fixture(scope="session", params=["our functions", "Node's functions"])
def template(server: "Server", request: pytest.FixtureRequest) -> str:
    """The database that this module's are copies of."""
    if request.param == "our functions":
        name, fill = template_name(), install_ours
    else:
        request.getfixturevalue("node_packages")
        name, fill = template_name("_by_node"), installed_by_node
    asyncio.run(make_template(server, name, fill))
    return name


async def installed_by_node(dsn: str) -> None:
    node = await Peer.start(NEWEST, dsn, SCHEMA)
    await node.ask("migrate")
    await node.end()
    connection = await asyncpg.connect(dsn)
    done = await install(connection, SCHEMA)
    await connection.close()
    assert not [what for what in done if "revision" in what], "the functions must be Node's"


@pytest.fixture
def ran() -> Ran:
    return Ran()


@pytest.fixture(params=["sql", "enqueue", "enqueue_many"])
def add(sql: "Sql", client: BackfillClient, request: pytest.FixtureRequest) -> Add:
    """Adds a job of `task` in one of the three ways; through SQL the outcome is made from the row."""

    async def through_sql(payload: Any, spec: JobSpec) -> EnqueueOutcome:
        row = await sql.row(
            "select id, key, revision, run_at, attempts, locked_by from graphile_worker.add_job('task', $1::text::json,"
            " job_key => $2, run_at => $3, job_key_mode => $4, queue_name => $5, priority => $6, max_attempts => $7)",
            json.dumps(payload), spec.job_key, spec.run_at, spec.job_key_mode.value, spec.queue.name, int(spec.priority),
            spec.max_attempts,
        )  # fmt: skip
        found = await client.get_job(row["id"])
        assert found is not None
        return Enqueued(found)

    async def alone(payload: Any, spec: JobSpec) -> EnqueueOutcome:
        return await client.enqueue("task", payload, spec)

    async def in_a_batch(payload: Any, spec: JobSpec) -> EnqueueOutcome:
        _, outcome = await client.enqueue_many([("bystander",), ("task", payload, spec)])
        return outcome

    return {"sql": through_sql, "enqueue": alone, "enqueue_many": in_a_batch}[request.param]


async def keyed(sql: "Sql") -> list[tuple[Any, ...]]:
    rows = await sql.rows(
        "select jobs.payload::text, jobs.attempts, jobs.revision, jobs.key from graphile_worker._private_jobs as jobs"
        " join graphile_worker._private_tasks as tasks on tasks.id = jobs.task_id where identifier = 'task' order by jobs.id"
    )
    return [tuple(row) for row in rows]


async def nothing_waits(sql: "Sql") -> bool:
    return await sql.count() == 0


async def test_a_waiting_job_is_updated_in_place(add: Add, sql: "Sql", make_runner: "MakeRunner", ran: Ran) -> None:
    """C-010, R-23."""
    first = (await add("old", JobSpec(job_key="k", run_at=LATER))).unwrap()
    second = (await add("new", JobSpec(job_key="k", run_at=MUCH_LATER))).unwrap()
    assert (second.id, second.run_at, second.payload) == (first.id, MUCH_LATER, "new")
    await add("now", JobSpec(job_key="k"))
    await (await make_runner(ran.task)).process_available_jobs()
    assert ran.payloads == ["now"]
    assert await keyed(sql) == []


async def test_details_that_are_left_out_go_back_to_the_defaults(
    add: Add, sql: "Sql", request: pytest.FixtureRequest
) -> None:
    """C-014, R-23."""
    await add(1, JobSpec(job_key="k", run_at=LATER, queue="q", priority=4, max_attempts=3))
    job = (await add(2, JobSpec(job_key="k"))).unwrap()
    limit = 25 if request.node.callspec.params["add"] == "sql" else 8
    assert (job.queue_name, job.priority, job.max_attempts) == (None, 0, limit)
    assert job.run_at <= await sql.value("select now()")
    job = (await add(3, JobSpec(job_key="k", run_at=LATER, queue="q2", priority=5, max_attempts=9))).unwrap()
    assert (job.queue_name, job.priority, job.run_at, job.max_attempts) == ("q2", 5, LATER, 9)


async def test_a_key_is_free_again_after_completion(add: Add, make_runner: "MakeRunner", ran: Ran) -> None:
    """C-011, R-24."""
    runner = await make_runner(ran.task)
    first = (await add("first", JobSpec(job_key="k"))).unwrap()
    await runner.process_available_jobs()
    second = (await add("second", JobSpec(job_key="k"))).unwrap()
    assert (second.id != first.id, second.revision) == (True, 0)
    await runner.process_available_jobs()
    assert ran.payloads == ["first", "second"]


@pytest.mark.parametrize("mode", [REPLACE, PRESERVE])
@pytest.mark.parametrize("queue", [None, "q"])
async def test_a_running_job_gets_a_successor_and_both_run(
    add: Add, sql: "Sql", run_worker: "RunWorker", until: "Until", ran: Ran, *, mode: JobKeyMode, queue: str | None
) -> None:
    """C-012, R-24: in order, if they share a queue."""
    ran.holds.add("first")
    async with run_worker(ran.task):
        spec = JobSpec(job_key="k", job_key_mode=mode, queue=queue)
        first = (await add("first", spec)).unwrap()
        await ran.started.wait()
        second = (await add("second", spec)).unwrap()
        assert second.id != first.id
        ran.may_end.set()
        await until(lambda: len(ran.payloads) == 2, "both have run")
    assert ran.payloads == ["first", "second"]
    assert await keyed(sql) == []
    assert await sql.dead() == []


async def test_a_running_job_that_fails_after_it_was_replaced_is_not_retried(
    add: Add, sql: "Sql", run_worker: "RunWorker", until: "Until", ran: Ran
) -> None:
    """C-012, the failing case: its successor has its key, and runs; what it was is a dead letter."""
    ran.holds.add("first")
    ran.fails.add("first")
    async with run_worker(ran.task):
        await add("first", JobSpec(job_key="k"))
        await ran.started.wait()
        await add("second", JobSpec(job_key="k"))
        ran.may_end.set()
        await until(lambda: "second" in ran.payloads, "the successor has run")
        await until(sql.dead, "the first is a dead letter")
    assert ran.payloads.count("first") == 1
    (entry,) = await sql.dead()
    assert (json.loads(entry["payload"]), entry["job_key"]) == ("first", None)


async def test_unsafe_dedupe_on_a_running_job_adds_nothing(
    client: BackfillClient, sql: "Sql", run_worker: "RunWorker", ran: Ran, until: "Until"
) -> None:
    """C-012 in the mode unsafe_dedupe: the outcome says that the payload was not taken."""
    ran.holds.add("first")
    spec = JobSpec(job_key="k", job_key_mode=DEDUPE)
    async with run_worker(ran.task) as running:
        await client.enqueue("task", "first", spec)
        await ran.started.wait()
        assert await client.enqueue("task", "second", spec) == AlreadyInProgress("k")
        assert await client.enqueue_many([("task", "third", spec)]) == [AlreadyInProgress("k")]
        ran.may_end.set()
        await until(lambda: not running.worker.releaser.held, "it has ended")
    assert ran.payloads == ["first"]
    assert await keyed(sql) == []


@pytest.mark.parametrize("mode", [REPLACE, PRESERVE])
async def test_a_job_that_waits_for_its_retry_begins_anew(
    add: Add, sql: "Sql", make_runner: "MakeRunner", ran: Ran, mode: JobKeyMode
) -> None:
    """C-013, R-25: same id, attempts 0, no error, due at once, in either mode."""
    ran.fails.add("old")
    runner = await make_runner(ran.task)
    first = (await add("old", JobSpec(job_key="k"))).unwrap()
    await runner.process_available_jobs()
    await sql.run("update graphile_worker._private_jobs set run_at = now() + interval '1 day'")
    assert await keyed(sql) == [('"old"', 1, 0, "k")]
    second = (await add("new", JobSpec(job_key="k", job_key_mode=mode))).unwrap()
    assert (second.id, second.attempts, second.last_error) == (first.id, 0, None)
    await runner.process_available_jobs()
    assert ran.payloads == ["old", "new"]


async def test_unsafe_dedupe_leaves_a_job_that_waits_for_its_retry(
    add: Add, sql: "Sql", make_runner: "MakeRunner", ran: Ran
) -> None:
    """C-013 in the mode unsafe_dedupe: it only counts."""
    ran.fails.add("old")
    first = (await add("old", JobSpec(job_key="k"))).unwrap()
    await (await make_runner(ran.task)).process_available_jobs()
    before = await sql.row("select * from graphile_worker._private_jobs where key = 'k'")
    second = (await add("new", JobSpec(job_key="k", job_key_mode=DEDUPE, run_at=LATER))).unwrap()
    assert (second.id, second.payload, second.attempts, second.revision) == (first.id, "old", 1, 1)
    after = await sql.row("select * from graphile_worker._private_jobs where key = 'k'")
    assert dict(after) == dict(before) | {"revision": 1, "updated_at": after["updated_at"]}


@pytest.mark.parametrize("mode", [REPLACE, PRESERVE])
async def test_a_used_up_job_stays_without_its_key(add: Add, sql: "Sql", mode: JobKeyMode) -> None:
    """X-08."""
    first = (await add("old", JobSpec(job_key="k"))).unwrap()
    await sql.run("update graphile_worker._private_jobs set attempts = max_attempts where id = $1", first.id)
    second = (await add("new", JobSpec(job_key="k", job_key_mode=mode))).unwrap()
    assert (second.id != first.id, second.revision, second.payload) == (True, 0, "new")
    old, new = await keyed(sql)
    assert (old[0], old[3], new[0], new[3]) == ('"old"', None, '"new"', "k")


async def test_four_adds_of_one_key_are_one_row(add: Add, sql: "Sql") -> None:
    """C-031, C-034."""
    jobs = [(await add(n, JobSpec(job_key="k"))).unwrap() for n in range(4)]
    assert len({job.id for job in jobs}) == 1
    assert [job.revision for job in jobs] == [0, 1, 2, 3]
    assert await keyed(sql) == [("3", 0, 3, "k")]


async def test_what_each_mode_changes(add: Add, sql: "Sql") -> None:
    """C-032, C-034, R-27: replace takes the new time, preserve and unsafe keep the old; each counts the revision."""
    seen = []
    for number, (mode, run_at) in enumerate(
        [(REPLACE, LATER), (PRESERVE, MUCH_LATER), (DEDUPE, MUCH_LATER), (REPLACE, MUCH_LATER)]
    ):
        job = (await add(number, JobSpec(job_key="k", run_at=run_at, job_key_mode=mode))).unwrap()
        seen.append((job.revision, job.run_at, job.payload))
    assert seen == [(0, LATER, 0), (1, LATER, 1), (2, LATER, 1), (3, MUCH_LATER, 3)]
    assert len(await keyed(sql)) == 1


async def test_a_single_add_needs_no_preparations(empty_db: "Database") -> None:
    """C-033: nothing is installed yet, and afterwards nothing is left open."""
    async with BackfillClient(empty_db.dsn, schema="jobs") as client:
        job = (await client.enqueue("task", {"a": 1}, JobSpec(run_at=LATER))).unwrap()
    connection = await empty_db.connect()
    assert await connection.fetchval("select run_at from jobs.jobs where id = $1", job.id) == LATER


async def test_six_jobs_of_one_batch_are_all_there(client: BackfillClient) -> None:
    """C-034, R-29: several tasks, one spec for two of them, priorities and times of their own, payloads as given."""
    shared = JobSpec(priority=3, queue="q")
    batch: list[Any] = [
        ("a", {"n": 1}, shared),
        ("b", [1, "zwei", None], shared),
        ("a", None, JobSpec(priority=-7)),
        ("c", 4.5, JobSpec(run_at=LATER)),
        ("a", "text", JobSpec(job_key="k")),
        ("a", {"ünï": {"x": [True]}}),
    ]
    outcomes = await client.enqueue_many(batch)
    jobs = [await client.get_job(outcome.unwrap().id) for outcome in outcomes]
    found = [(job.task_identifier, job.payload, int(job.priority), job.queue_name) for job in jobs if job]
    assert found == [
        ("a", {"n": 1}, 3, "q"),
        ("b", [1, "zwei", None], 3, "q"),
        ("a", None, -7, None),
        ("c", 4.5, 0, None),
        ("a", "text", 0, None),
        ("a", {"ünï": {"x": [True]}}, 0, None),
    ]
    assert jobs[3] is not None
    assert jobs[3].run_at == LATER


async def test_many_jobs_over_several_queues(client: BackfillClient, sql: "Sql") -> None:
    """R-30: two batches of 512 at once; and an empty one, which is nothing."""
    specs = [JobSpec(queue=f"q{n}") for n in range(4)]
    batches = [[("task", n, specs[n % 4]) for n in range(512)] for _ in range(2)]
    outcomes = await asyncio.gather(*(client.enqueue_many(batch) for batch in batches))
    assert [len(each) for each in outcomes] == [512, 512]
    assert await sql.count() == 1024
    assert await client.enqueue_many([]) == []
    assert await sql.count() == 1024


async def test_a_later_batch_updates_the_rows_of_its_keys(client: BackfillClient, sql: "Sql") -> None:
    """R-31; unlike the Rust port, unsafe_dedupe is possible in a batch."""
    first = await client.enqueue_many([("task", n, JobSpec(job_key=f"k{n}")) for n in range(3)])
    second = await client.enqueue_many([("task", 10 + n, JobSpec(job_key=f"k{n}")) for n in (2, 0)])
    assert [(outcome.unwrap().key, outcome.unwrap().payload) for outcome in second] == [("k2", 12), ("k0", 10)]
    assert [outcome.unwrap().id for outcome in second] == [first[n].unwrap().id for n in (2, 0)]
    assert await keyed(sql) == [("10", 0, 1, "k0"), ("1", 0, 0, "k1"), ("12", 0, 1, "k2")]
    (third,) = await client.enqueue_many([("task", 99, JobSpec(job_key="k1", job_key_mode=DEDUPE))])
    assert third.unwrap().payload == 1


@pytest.mark.parametrize("mode", [REPLACE, PRESERVE])
async def test_two_batches_at_once_replace_a_locked_job(client: BackfillClient, sql: "Sql", mode: JobKeyMode) -> None:
    """R-28: both succeed, one row holds the key, and the original has none and is not retried."""
    first = (await client.enqueue("task", 0, JobSpec(job_key="k"))).unwrap()
    await sql.run("update graphile_worker._private_jobs set locked_at = now(), locked_by = 'w', attempts = 1")
    spec = JobSpec(job_key="k", job_key_mode=mode)
    both = await asyncio.gather(*(client.enqueue_many([("task", n, spec)]) for n in (1, 2)))
    assert len({outcome.unwrap().id for (outcome,) in both}) == 1
    old, new = await keyed(sql)
    assert old == ("0", first.max_attempts, 0, None)
    assert (new[0] in ("1", "2"), new[2:]) == (True, (1, "k"))
    assert await sql.value("select locked_by from graphile_worker._private_jobs where id = $1", first.id) == "w"


async def test_a_waiting_job_is_removed_by_its_key(client: BackfillClient, sql: "Sql") -> None:
    """C-015, R-26."""
    job = (await client.enqueue("task", 1, JobSpec(job_key="k"))).unwrap()
    removed = await client.remove_job("k")
    assert removed is not None
    assert (removed.id, removed.locked_by) == (job.id, None)
    assert await sql.count() == 0
    assert await client.remove_job("k") is None


async def test_a_running_job_is_not_removed_and_completes(
    client: BackfillClient, sql: "Sql", run_worker: "RunWorker", ran: Ran, until: "Until"
) -> None:
    """C-016, R-26: but it has lost its key, and would not be retried."""
    ran.holds.add(1)
    async with run_worker(ran.task) as running:
        job = (await client.enqueue("task", 1, JobSpec(job_key="k", queue="q"))).unwrap()
        await ran.started.wait()
        removed = await client.remove_job("k")
        assert isinstance(removed, Job)
        assert (removed.id, removed.key, removed.attempts, removed.locked_by is None) == (job.id, None, 8, False)
        ran.may_end.set()
        await until(lambda: not running.worker.releaser.held, "it has ended")
    assert ran.payloads == [1]
    assert (await sql.count(), await sql.dead(), await sql.locks()) == (0, [], (0, 0))


async def test_a_handler_can_do_all_that_a_client_can(sql: "Sql", make_runner: "MakeRunner", db: "Database") -> None:
    """R-32: singly, in bulk, and managing, on the context's pool."""
    done: list[Any] = []

    @task("task")
    async def parent(ctx: WorkerContext) -> None:
        await ctx.enqueue("child", 1)
        async with BackfillClient(ctx.pool, schema=db.schema, install=False) as client:
            await client.enqueue_many([("child", 2), ("child", 3, JobSpec(job_key="gone"))])
            await client.remove_job("gone")
            later = (await client.enqueue("child", 4, JobSpec(run_at=LATER))).unwrap()
            await client.complete_jobs([later.id])

    @task("child")
    async def child(payload: int) -> None:
        done.append(payload)

    await sql.add()
    assert await (await make_runner(parent, child)).process_available_jobs() == 3
    assert sorted(done) == [1, 2]
    assert await sql.count() == 0


async def test_no_payload_is_lost_between_adders_and_a_real_worker(
    client: BackfillClient, sql: "Sql", run_worker: "RunWorker", until: "Until"
) -> None:
    """Each version of a job is run, or a later add of its key replaced it, while runs fail, are retried and end anyhow."""
    added: set[tuple[int, int]] = set()
    seen: set[tuple[int, int]] = set()

    @task("task", retry_policy=RetryPolicy(30, 0.0, 0.0, 1.0, 0.0))
    async def note(ctx: WorkerContext, payload: int) -> None:
        seen.add((ctx.job.id, ctx.job.revision))
        await asyncio.sleep(0)
        if payload % 3 == 0 and ctx.attempt < 3:
            raise RuntimeError("again")

    async def adder(who: int) -> None:
        for turn in range(60):
            keys = [f"k{(who + turn + n) % 4}" for n in range(1 + turn % 3)]
            mode = (REPLACE, PRESERVE, REPLACE)[turn % 3]
            batch: list[Any] = [
                ("task", turn, JobSpec(job_key=key, job_key_mode=mode, max_attempts=30)) for key in keys
            ]
            outcomes = [await client.enqueue(*batch[0])] if len(batch) == 1 else await client.enqueue_many(batch)
            added.update((job.id, job.revision) for job in (outcome.unwrap() for outcome in outcomes))

    async with run_worker(note), run_worker(note):
        await asyncio.gather(*(adder(who) for who in range(4)))
        await until(lambda: nothing_waits(sql), "nothing waits")
    lost = {(job_id, revision) for job_id, revision in added - seen if (job_id, revision + 1) not in added}
    assert lost == set()
    assert len(seen) > 4
