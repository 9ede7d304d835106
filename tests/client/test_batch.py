"""Adding many jobs at once."""

import asyncio
import gc
import json
import random
import weakref
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import asyncpg
import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backfill import AlreadyInProgress, BackfillClient, JobKeyMode, JobSpec, Queue, RetryPolicy, task
from backfill.client.batch import CHUNK_CHARACTERS, CHUNK_JOBS, JobTuple, prepare
from backfill.client.stream import batches
from backfill.errors import DatabaseError, InvalidJob

if TYPE_CHECKING:
    from tests.client.conftest import Raw, Session
    from tests.conftest import Database

REPLACE, PRESERVE, DEDUPE = JobKeyMode.REPLACE, JobKeyMode.PRESERVE_RUN_AT, JobKeyMode.UNSAFE_DEDUPE
SOON = datetime(2090, 1, 1, tzinfo=UTC)


@task("quick", retry_policy=RetryPolicy.fast())
async def quick(payload: int) -> None: ...


async def test_outcomes_and_ids_are_in_the_order_of_the_jobs(client: BackfillClient, raw: "Raw") -> None:
    jobs: list[JobTuple] = [
        (f"t{n % 3}", n, JobSpec(queue=f"q{n % 5}" if n % 2 else None, priority=n % 7)) for n in range(1000)
    ]
    outcomes = await client.enqueue_many(jobs)
    ids = [outcome.unwrap().id for outcome in outcomes]
    assert ids == sorted(set(ids))
    rows = {row["id"]: row for row in await raw.jobs()}
    assert len(rows) == 1000
    for n, outcome in enumerate(outcomes):
        job, row = outcome.unwrap(), rows[ids[n]]
        queue = f"q{n % 5}" if n % 2 else None
        assert (row["payload"], row["task"], row["queue"], row["priority"]) == (str(n), f"t{n % 3}", queue, n % 7)
        assert (job.payload, job.task_identifier, job.queue_name, job.priority) == (n, f"t{n % 3}", queue, n % 7)
        assert job.run_at == row["run_at"]


async def test_what_may_be_left_out(client: BackfillClient, raw: "Raw") -> None:
    await client.enqueue_many([("a",), ("b", None), ("c", 1, None), (quick, 2)])
    assert [(job["task"], job["payload"], job["max_attempts"], job["flags"]) for job in await raw.jobs()] == [
        ("a", "{}", 8, None),
        ("b", "null", 8, None),
        ("c", "1", 8, None),
        ("quick", "2", 3, '{"backfill:retry=fast": true}'),
    ]


async def test_a_batch_reads_back_as_its_outcomes_say(client: BackfillClient) -> None:
    specs = [
        JobSpec(run_at=SOON, flags={"f", "g"}, timeout=timedelta(seconds=3)),
        JobSpec(job_key="a", run_at=SOON, queue="q", max_attempts=2, flags={"f"}),
        JobSpec(job_key="b", job_key_mode=PRESERVE),
        JobSpec(job_key="c", job_key_mode=DEDUPE, retry_policy=RetryPolicy.fast()),
        None,
    ]
    outcomes = await client.enqueue_many([("t", n, spec) for n, spec in enumerate(specs)])
    for n, outcome in enumerate(outcomes):
        job = outcome.unwrap()
        read = await client.get_job(job.id)
        assert read is not None
        assert read.payload == n == job.payload
        for field in (
            "task_identifier",
            "queue_name",
            "run_at",
            "max_attempts",
            "key",
            "flags",
            "extras",
            "created_at",
        ):
            assert getattr(read, field) == getattr(job, field)


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (("t", float("nan")), r"job 3 of the batch: payload has nan.*; no job was added"),
        (("", 1), "job 3 of the batch: task identifier must not be empty"),
        ("t", "job 3 of the batch: write"),
        (("t", 1, None, None), "job 3 of the batch: write"),
        ((), "job 3 of the batch: write"),
    ],
)
async def test_everything_is_checked_before_anything_is_sent(
    client: BackfillClient, raw: "Raw", bad: Any, words: str
) -> None:
    with pytest.raises(InvalidJob, match=words):
        await client.enqueue_many([("t", 1), ("t", 1, JobSpec(job_key="k")), bad])
    assert await raw.value("select count(*) from graphile_worker._private_tasks") == 0


async def test_a_key_twice_is_refused_by_name(client: BackfillClient, raw: "Raw") -> None:
    spec = JobSpec(job_key="twice")
    with pytest.raises(InvalidJob, match="jobs 1 and 3 of the batch have the same job_key 'twice'"):
        await client.enqueue_many([("t", 1, spec), ("t", 2), ("t", 3, spec)])
    assert await raw.jobs() == []


@pytest.mark.parametrize("keyed", [False, True])
async def test_all_or_nothing(client: BackfillClient, raw: "Raw", monkeypatch: pytest.MonkeyPatch, keyed: bool) -> None:
    monkeypatch.setattr("backfill.client.batch._JOB_CHARACTERS", CHUNK_CHARACTERS // 2)
    await raw.run("alter table graphile_worker._private_jobs add constraint no_foes check (priority <> 13)")
    jobs: list[JobTuple] = [("t", n, JobSpec(job_key=f"k{n}" if keyed and n else None)) for n in range(5)]
    with pytest.raises(DatabaseError, match="no_foes"):
        await client.enqueue_many([*jobs, ("t", 6, JobSpec(priority=13, job_key="z" if keyed else None))])
    assert await raw.jobs() == []
    assert len(await client.enqueue_many(jobs)) == 5


async def test_an_empty_batch_is_nothing(client: BackfillClient) -> None:
    assert await client.enqueue_many([]) == []
    assert await client.enqueue_stream([]) == 0


async def test_keyed_jobs_of_all_modes_in_one_batch(client: BackfillClient, raw: "Raw") -> None:
    keys = ["replaced", "preserved", "deduped", "running"]
    before = await client.enqueue_many([("t", "old", JobSpec(job_key=key, run_at=SOON)) for key in keys])
    await raw.claim(before[3].unwrap().id)
    modes = [REPLACE, PRESERVE, DEDUPE, DEDUPE]
    outcomes = await client.enqueue_many(
        [
            ("t", "plain"),
            *(("t", "new", JobSpec(job_key=key, job_key_mode=mode)) for key, mode in zip(keys, modes, strict=True)),
            ("t", "plain"),
        ]
    )
    assert outcomes[4] == AlreadyInProgress("running")
    for n in range(3):
        assert outcomes[n + 1].unwrap().id == before[n].unwrap().id
    by_key = {job["key"]: (job["payload"], job["run_at"] == SOON) for job in await raw.jobs() if job["key"]}
    assert by_key == {
        "replaced": ('"new"', False),
        "preserved": ('"new"', True),
        "deduped": ('"old"', True),
        "running": ('"old"', True),
    }
    assert [outcomes[n].unwrap().payload for n in (0, 5)] == ["plain", "plain"]


@pytest.mark.parametrize("mode", [REPLACE, DEDUPE])
@pytest.mark.parametrize("alike", [True, False])
async def test_keyed_jobs_read_back_as_their_outcomes_say_whether_alike_or_not(
    client: BackfillClient, mode: JobKeyMode, alike: bool
) -> None:
    """What jobs have in common is sent once: of the first job, which here has less, or more, than the others."""
    for first in (0, 1):
        jobs: list[tuple[str, int, JobSpec]] = []
        for number in range(6):
            kind = 1 if alike else (number + first) % 2
            spec = JobSpec(
                job_key=f"{mode}-{first}-{number}",
                job_key_mode=mode,
                priority=kind * 5,
                queue="q" if kind else None,
                run_at=SOON if kind else None,
                max_attempts=3 + kind,
                flags={"f"} if kind else set(),
            )
            jobs.append((f"t{kind}", number, spec))
        again = await client.enqueue_many(jobs) and await client.enqueue_many(jobs)
        for (task_name, number, spec), outcome in zip(jobs, again, strict=True):
            job = outcome.unwrap()
            read = await client.get_job(job.id)
            assert read is not None
            assert msgspec.structs.replace(read, state=None) == job
            assert (job.task_identifier, job.payload, job.revision) == (task_name, number, 1)
            assert (job.priority, job.queue_name, job.max_attempts) == (
                spec.priority,
                spec.queue.name,
                spec.max_attempts,
            )
            assert job.flags == spec.flags
            assert job.run_at == (spec.run_at or job.run_at)
            assert job.key == spec.job_key


async def test_names_that_vanish_between_two_batches_are_made_again(client: BackfillClient, raw: "Raw") -> None:
    jobs: list[JobTuple] = [("t", 1, JobSpec(queue="q")), ("u", 2), ("t", 3, JobSpec(job_key="k"))]
    await client.enqueue_many(jobs)
    for table in ("jobs", "tasks", "job_queues"):
        await raw.run(f"delete from graphile_worker._private_{table}")
    await client.enqueue_many(jobs)
    async with raw.connection.transaction():
        for table in ("jobs", "tasks", "job_queues"):
            await raw.run(f"delete from graphile_worker._private_{table}")
    async with raw.connection.transaction():
        await client.enqueue_many(jobs, connection=raw.connection)
    assert [(job["task"], job["queue"]) for job in await raw.jobs()] == [("t", "q"), ("u", None), ("t", None)]


async def test_one_name_that_vanished_leaves_out_no_job(client: BackfillClient, raw: "Raw") -> None:
    jobs: list[JobTuple] = [("t", 1, JobSpec(queue="q")), ("u", 2), ("t", 3, JobSpec(queue="r"))]
    await client.enqueue_many(jobs)
    for table, column, name in [("tasks", "identifier", "u"), ("job_queues", "queue_name", "r")]:
        await raw.run("delete from graphile_worker._private_jobs")
        await raw.run(f"delete from graphile_worker._private_{table} where {column} = $1", name)
        await client.enqueue_many(jobs)
        assert [(job["task"], job["queue"]) for job in await raw.jobs()] == [("t", "q"), ("u", None), ("t", "r")]


async def test_twenty_first_batches_at_once(db: "Database", raw: "Raw") -> None:
    batches: list[list[JobTuple]] = [
        [(f"t{(n + k) % 10}", n, JobSpec(queue=f"q{(n + k) % 10}")) for k in range(10)] for n in range(20)
    ]
    async with (
        asyncpg.create_pool(db.dsn, min_size=20, max_size=20) as pool,
        BackfillClient(pool, schema=db.schema, install=False) as client,
    ):
        await asyncio.gather(*(client.enqueue_many(batch) for batch in batches))
    assert len(await raw.jobs()) == 200


@pytest.mark.parametrize("ending", ["commit", "rollback"])
async def test_a_batch_in_the_callers_transaction(
    client: BackfillClient, raw: "Raw", other: "Raw", ending: str
) -> None:
    transaction = raw.connection.transaction()
    await transaction.start()
    await client.enqueue_many([("t", 1), ("t", 2, JobSpec(job_key="k", queue="q"))], connection=raw.connection)
    assert await other.jobs() == []
    await (transaction.commit() if ending == "commit" else transaction.rollback())
    assert len(await other.jobs()) == (2 if ending == "commit" else 0)


async def test_a_batch_that_fails_leaves_the_callers_transaction_usable(client: BackfillClient, raw: "Raw") -> None:
    await raw.run("alter table graphile_worker._private_jobs add constraint no_foes check (priority <> 13)")
    async with raw.connection.transaction():
        await client.enqueue("t", "before", connection=raw.connection)
        with pytest.raises(asyncpg.CheckViolationError):
            await client.enqueue_many([("t", 1), ("t", 2, JobSpec(priority=13))], connection=raw.connection)
        await client.enqueue("t", "after", connection=raw.connection)
    assert [job["payload"] for job in await raw.jobs()] == ['"before"', '"after"']


async def test_batches_of_the_same_keys_in_other_orders_do_not_fail(client: BackfillClient, raw: "Raw") -> None:
    dice = random.Random(3)
    keys = [f"k{n}" for n in range(40)]

    async def adder(who: int) -> None:
        for _ in range(15):
            chosen = dice.sample(keys, 20)
            modes = [dice.choice([REPLACE, PRESERVE, DEDUPE]) for _ in chosen]
            await client.enqueue_many(
                [
                    ("t", who, JobSpec(job_key=key, job_key_mode=mode, queue=f"q{dice.randint(0, 3)}"))
                    for key, mode in zip(chosen, modes, strict=True)
                ]
            )

    await asyncio.gather(*(adder(who) for who in range(8)))
    assert sorted(job["key"] for job in await raw.jobs()) == sorted(keys)


async def test_a_batch_that_postgresql_ends_in_a_deadlock_is_sent_again(
    client: BackfillClient, raw: "Raw", other: "Raw"
) -> None:
    for key in ("a", "z"):
        await client.enqueue("t", "old", JobSpec(job_key=key))
    await raw.run("set deadlock_timeout = '1h'")  # so that it is the batch that PostgreSQL ends
    foreign = raw.connection.transaction()
    await foreign.start()
    lock = "select 1 from graphile_worker._private_jobs where key = $1 for update"
    await raw.rows(lock, "z")
    batch: list[JobTuple] = [("t", "new", JobSpec(job_key=key)) for key in ("a", "z")]
    adding = asyncio.create_task(client.enqueue_many(batch))
    await other.until_blocked()
    await raw.rows(lock, "a")  # returns once the batch has been ended, and holds both
    await foreign.commit()
    assert [outcome.unwrap().payload for outcome in await adding] == ["new", "new"]
    assert [job["payload"] for job in await raw.jobs()] == ['"new"', '"new"']


def test_what_goes_into_one_statement_is_bounded() -> None:
    batch = prepare([("t", n) for n in range(2 * CHUNK_JOBS + 1)])
    assert [len(chunk.jobs) for chunk in batch.chunks] == sorted(
        (len(chunk.jobs) for chunk in batch.chunks), reverse=True
    )
    assert sum(len(chunk.jobs) for chunk in batch.chunks) == 2 * CHUNK_JOBS + 1
    assert max(len(chunk.jobs) for chunk in batch.chunks) <= CHUNK_JOBS
    big = prepare([("t", "x" * (CHUNK_CHARACTERS // 3)) for _ in range(5)])
    assert [len(chunk.jobs) for chunk in big.chunks] == [2, 2, 1]


def test_jobs_of_one_kind_share_it() -> None:
    spec = JobSpec(priority=1)
    (chunk,) = prepare([("t", n, spec) for n in range(100)]).chunks
    assert len(chunk.kinds) == 1
    (chunk,) = prepare([("t", n, JobSpec(priority=n)) for n in range(100)]).chunks
    assert [kind.priority for kind in chunk.kinds] == list(range(100))


@settings(max_examples=200)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["a", "b", quick]),
            st.integers(0, 9),
            st.none() | st.integers(-3, 3),
            st.none() | st.text("xyz"),
        ),
        max_size=40,
    )
)
def test_every_job_is_in_the_batch_once_and_in_its_place(drawn: list[tuple[Any, int, int | None, str | None]]) -> None:
    jobs: list[JobTuple] = []
    keys: set[str] = set()
    for name, payload, priority, key in drawn:
        new_key = key if key and key not in keys else None
        keys.update([new_key] if new_key else [])
        jobs.append((name, payload, None if priority is None else JobSpec(priority=priority, job_key=new_key)))
    batch = prepare(jobs)
    found: dict[int, tuple[str, str, int, str | None]] = {}
    for chunk in batch.chunks:
        for number, encoded, position in chunk.jobs:
            kind = chunk.kinds[number - 1]
            assert found.setdefault(position, (kind.task, encoded, kind.priority, None))[3] is None
    for job in batch.keyed:
        found[job.position] = (job.kind.task, job.payload, job.kind.priority, job.kind.key)
    assert batch.size == len(jobs)
    assert [found[n] for n in range(len(jobs))] == [
        (
            name if isinstance(name, str) else "quick",
            str(payload),
            spec.priority if (spec := added[2] if len(added) == 3 else None) else 0,
            spec.job_key if spec else None,
        )
        for added, (name, payload, _, _) in zip(jobs, drawn, strict=True)
    ]


class Payload(dict[str, int]):
    """A payload whose life can be watched."""

    __hash__ = object.__hash__  # type: ignore[assignment] # a WeakSet needs it


@pytest.mark.parametrize("kind", ["sync", "async"])
async def test_a_stream_adds_all_in_order_with_one_batch_in_memory(
    client: BackfillClient, raw: "Raw", kind: str
) -> None:
    alive: weakref.WeakSet[Payload] = weakref.WeakSet()
    most = 0

    def jobs() -> Iterator[JobTuple]:
        nonlocal most
        for n in range(350):
            payload = Payload(n=n)
            alive.add(payload)
            most = max(most, len(alive))
            yield "t", payload
            del payload
            if n % 100 == 0:
                gc.collect()

    async def jobs_async() -> AsyncIterator[JobTuple]:
        for job in jobs():
            yield job

    assert await client.enqueue_stream(jobs() if kind == "sync" else jobs_async(), batch_size=100) == 350
    assert [json.loads(job["payload"])["n"] for job in await raw.jobs()] == list(range(350))
    assert most <= 2 * 100 + 1


async def test_a_stream_commits_each_batch_and_tells_how_far_it_came(client: BackfillClient, raw: "Raw") -> None:
    def jobs() -> Iterator[JobTuple]:
        for n in range(25):
            yield "t", n
        yield "t", float("inf")

    with pytest.raises(InvalidJob) as failed:
        await client.enqueue_stream(jobs(), batch_size=10)
    assert failed.value.__notes__ == ["20 jobs of earlier batches have been added"]
    assert len(await raw.jobs()) == 20


async def test_a_stream_counts_what_was_added(client: BackfillClient, raw: "Raw") -> None:
    running = (await client.enqueue("t", 1, JobSpec(job_key="k"))).unwrap()
    await raw.claim(running.id)
    jobs: list[JobTuple] = [("t", 2), ("t", 3, JobSpec(job_key="k", job_key_mode=DEDUPE))]
    assert await client.enqueue_stream(jobs) == 1


@pytest.mark.parametrize(
    ("size", "jobs", "sizes"),
    [(5000, 9000, [1000, 2000, 4000, 2000]), (1500, 4000, [1000, 1500, 1500]), (2, 3, [2, 1])],
)
async def test_the_first_batches_of_a_stream_are_smaller(size: int, jobs: int, sizes: list[int]) -> None:
    """So the first is soon being written while the next is made ready."""
    added: list[JobTuple] = [("task", number) for number in range(jobs)]

    async def later() -> AsyncIterator[JobTuple]:
        for job in added:
            yield job

    for kind in (added, later()):
        cut = [batch async for batch in batches(kind, size)]
        assert [len(batch) for batch in cut] == sizes
        assert [job for batch in cut for job in batch] == added


@pytest.mark.parametrize("size", [0, -1, 1.5, True])
async def test_a_batch_size_that_cannot_be_is_refused(client: BackfillClient, size: Any) -> None:
    with pytest.raises(InvalidJob, match="batch_size"):
        await client.enqueue_stream([], batch_size=size)


async def test_a_user_that_holds_a_keyed_row_delays_only_that_batch(
    client: BackfillClient, session: "Session", raw: "Raw"
) -> None:
    await client.enqueue("t", "old", JobSpec(job_key="held"))
    holder = await session()
    transaction = holder.connection.transaction()
    await transaction.start()
    await holder.rows("select 1 from graphile_worker._private_jobs where key = 'held' for update")
    waiting = asyncio.create_task(client.enqueue_many([("t", "new", JobSpec(job_key="held")), ("t", "with it")]))
    await raw.until_blocked()
    await client.enqueue_many([("t", "beside", JobSpec(job_key="free", queue=Queue.serial("q")))])
    await transaction.commit()
    assert [outcome.unwrap().payload for outcome in await waiting] == ["new", "with it"]
