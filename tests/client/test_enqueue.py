"""Adding one job."""

import asyncio
import dataclasses
import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import asyncpg
import msgspec
import pytest

from backfill import BackfillClient, Enqueued, JobSpec, Priority, Queue, RetryPolicy, TaskHandler, task
from backfill.client import build_enqueue
from backfill.client.batch import JobTuple
from backfill.errors import ConfigurationError, DatabaseError, InvalidJob
from backfill.sql import text

if TYPE_CHECKING:
    from tests.client.conftest import Raw, Session
    from tests.conftest import Database

Queries = Callable[[Any], list[str]]


@task("patient", retry_policy=RetryPolicy.conservative(), timeout=timedelta(seconds=30))
async def patient(payload: dict[str, int]) -> None: ...


@dataclasses.dataclass
class Resize(TaskHandler):
    IDENTIFIER = "resize"
    MAX_ATTEMPTS = 3

    width: int
    name: str = "ä"

    async def run(self, ctx: Any) -> None: ...


async def test_a_job_with_defaults(client: BackfillClient, raw: "Raw") -> None:
    outcome = await client.enqueue("send_email", {"to": "a@example.com"})
    assert isinstance(outcome, Enqueued)
    row = await raw.job(outcome.job.id)
    assert (row["task"], row["queue"], row["payload"]) == ("send_email", None, '{"to":"a@example.com"}')
    assert (row["priority"], row["attempts"], row["max_attempts"], row["flags"], row["key"]) == (0, 0, 8, None, None)
    assert row["at_once"]
    assert outcome.job.run_at == row["run_at"] == outcome.job.created_at
    assert outcome.job.payload == {"to": "a@example.com"}


async def test_all_of_a_spec_is_stored_and_read_back(client: BackfillClient, raw: "Raw") -> None:
    run_at = datetime(2031, 5, 6, 7, 8, 9, 123456, tzinfo=UTC)
    deadline = run_at + timedelta(days=1)
    spec = JobSpec(
        run_at=run_at,
        priority=Priority.EMERGENCY,
        queue=Queue.serial("mail"),
        max_attempts=7,
        retry_policy=RetryPolicy.fast(),
        flags={"eu", 'odd "name"'},
        timeout=timedelta(seconds=1.5),
        deadline=deadline,
    )
    made = (await client.enqueue("t", [1, None], spec)).unwrap()
    row = await raw.job(made.id)
    assert (row["queue"], row["priority"], row["max_attempts"], row["run_at"]) == ("mail", -20, 7, run_at)
    assert json.loads(row["flags"]) == dict.fromkeys(
        [
            "eu",
            'odd "name"',
            "backfill:retry=fast",
            "backfill:timeout=1.5",
            f"backfill:deadline={deadline.isoformat()}",
        ],
        True,
    )
    read = await client.get_job(made.id)
    assert read is not None
    assert msgspec.structs.replace(read, state=None) == made
    assert made.flags == {"eu", 'odd "name"'}
    assert made.extras.timeout == timedelta(seconds=1.5)


@pytest.mark.parametrize("key", [None, "k"])
async def test_a_payload_left_out_is_an_empty_object_and_none_is_null(
    client: BackfillClient, raw: "Raw", key: str | None
) -> None:
    left_out = (await client.enqueue("t", spec=JobSpec(job_key=key))).unwrap()
    assert (await raw.job(left_out.id))["payload"] == "{}" == left_out.payload_text
    null = (await client.enqueue("t", None, JobSpec(job_key=key))).unwrap()
    assert (await raw.job(null.id))["payload"] == "null" == null.payload_text


@pytest.mark.parametrize("payload", [0, "", "x", [], False, 1.5, {"a": {"b": [None]}}, "\N{SNOWMAN}"])
async def test_any_json_value_is_a_payload(client: BackfillClient, raw: "Raw", payload: object) -> None:
    made = (await client.enqueue("t", payload)).unwrap()
    assert json.loads((await raw.job(made.id))["payload"]) == payload == made.payload


async def test_a_task_gives_its_policy_and_its_limits(client: BackfillClient, raw: "Raw") -> None:
    made = (await client.enqueue(patient, {"n": 1})).unwrap()
    row = await raw.job(made.id)
    assert (row["task"], row["max_attempts"]) == ("patient", 5)
    assert json.loads(row["flags"]) == {"backfill:retry=conservative": True, "backfill:timeout=30": True}


async def test_the_spec_goes_before_the_task(client: BackfillClient, raw: "Raw") -> None:
    spec = JobSpec(retry_policy=RetryPolicy.fast(), timeout=timedelta(seconds=1))
    row = await raw.job((await client.enqueue(patient, {"n": 1}, spec)).unwrap().id)
    assert row["max_attempts"] == 3
    assert json.loads(row["flags"]) == {"backfill:retry=fast": True, "backfill:timeout=1": True}
    row = await raw.job((await client.enqueue(patient, {"n": 1}, JobSpec(max_attempts=2))).unwrap().id)
    assert row["max_attempts"] == 2


async def test_a_task_handler_is_its_own_payload(client: BackfillClient, raw: "Raw") -> None:
    row = await raw.job((await client.enqueue_task(Resize(5), JobSpec(priority=3))).unwrap().id)
    assert (row["task"], row["max_attempts"], row["priority"]) == ("resize", 3, 3)
    assert json.loads(row["payload"]) == {"width": 5, "name": "ä"}
    by_class = await raw.job((await client.enqueue(Resize, {"width": 6})).unwrap().id)
    assert (by_class["task"], by_class["payload"]) == ("resize", '{"width":6}')


@pytest.mark.parametrize(
    ("name", "payload", "words"),
    [
        ("", {}, "task identifier must not be empty"),
        ("x" * 129, {}, "128"),
        ("a\x00b", {}, "NUL"),
        ("t", {"price": float("nan")}, r"\$\.price"),
        ("t", {"price": [float("-inf")]}, r"\$\.price\[0\]"),
        ("t", "nul \x00", "NUL"),
        ("t", {"n": 2**63}, "64 bits"),
        ("t", object(), "cannot be written"),
    ],
)
async def test_what_cannot_be_is_refused_before_anything_is_sent(
    client: BackfillClient, raw: "Raw", name: str, payload: Any, words: str
) -> None:
    with pytest.raises(InvalidJob, match=words):
        await client.enqueue(name, payload)
    assert await raw.value("select count(*) from graphile_worker._private_jobs") == 0
    assert await raw.value("select count(*) from graphile_worker._private_tasks") == 0


async def test_something_that_is_no_task_is_refused(client: BackfillClient) -> None:
    with pytest.raises(ConfigurationError, match="no task"):
        await client.enqueue(len, {})  # type: ignore[arg-type] # the point


async def test_something_that_is_no_spec_is_refused(client: BackfillClient) -> None:
    with pytest.raises(InvalidJob, match="spec must be a JobSpec, not"):
        await client.enqueue("t", {}, Priority.FAST_DEFAULT)  # type: ignore[arg-type] # the point
    with pytest.raises(InvalidJob, match="job 1 of the batch: spec must be a JobSpec"):
        await client.enqueue_many([("t", {}, {"priority": 3})])  # type: ignore[list-item] # the point


async def test_a_known_task_takes_one_statement(client: BackfillClient, raw: "Raw", queries: Queries) -> None:
    await client.enqueue("t", 1, JobSpec(queue="q"))
    connection = raw.connection
    sent = queries(connection)
    await client.enqueue("t", 2, JobSpec(queue="q"), connection=connection)
    await client.enqueue("t", 3, connection=connection)
    await connection.execute("select 'the log is a step behind'")
    assert sent[:2] == [text("insert_job", client.schema)] * 2
    assert len(sent) <= 3


async def test_a_job_arrives_though_its_names_were_collected_between_two_adds(
    client: BackfillClient, raw: "Raw"
) -> None:
    spec = JobSpec(queue="q")
    for payload in range(3):
        await client.enqueue("t", payload, spec)
        await raw.run("delete from graphile_worker._private_jobs where payload::text::int4 < 2")
        await raw.run(
            "delete from graphile_worker._private_tasks where not exists (select from graphile_worker._private_jobs)"
        )
        await raw.run(
            "delete from graphile_worker._private_job_queues where not exists (select from graphile_worker._private_jobs)"
        )
    (job,) = await raw.jobs()
    assert (job["task"], job["queue"], job["payload"]) == ("t", "q", "2")


@pytest.mark.parametrize(
    "jobs",
    [
        [("t", 1)],
        [("t", 1, JobSpec(job_key="k"))],
        [("t", 1), ("u", 2)],
        [("t", 1, JobSpec(job_key="k")), ("u", 2, JobSpec(job_key="l"))],
        [("t", 1, JobSpec(job_key="k")), ("u", 2, JobSpec(job_key="l", job_key_mode="unsafe_dedupe"))],
    ],
)
async def test_an_open_transaction_keeps_its_task_from_our_collection(
    client: BackfillClient, raw: "Raw", other: "Raw", jobs: list[JobTuple]
) -> None:
    await client.enqueue_many([("t",), ("u",)])
    await raw.run("delete from graphile_worker._private_jobs")
    transaction = raw.connection.transaction()
    await transaction.start()
    if len(jobs) == 1:
        await client.enqueue(*jobs[0], connection=raw.connection)
    else:
        await client.enqueue_many(jobs, connection=raw.connection)
    collected = await client.cleanup(["GC_TASK_IDENTIFIERS"])
    await transaction.commit()
    assert list(collected.values()) == [2 - len(jobs)]
    assert [job["task"] for job in await other.jobs()] == ["t", "u"][: len(jobs)]


async def test_twenty_first_adders_at_once(db: "Database", raw: "Raw") -> None:
    clients = [BackfillClient(db.dsn, schema=db.schema, install=False) for _ in range(20)]
    await asyncio.gather(*(client.open() for client in clients))
    try:
        outcomes = await asyncio.gather(
            *(client.enqueue("first", n, JobSpec(queue=f"q{n % 2}")) for n, client in enumerate(clients))
        )
    finally:
        await asyncio.gather(*(client.close() for client in clients))
    assert sorted(json.loads(job["payload"]) for job in await raw.jobs()) == list(range(20))
    assert len({outcome.unwrap().id for outcome in outcomes}) == 20
    assert {job["task"] for job in await raw.jobs()} == {"first"}
    assert {job["queue"] for job in await raw.jobs()} == {"q0", "q1"}
    assert await raw.value("select count(*) from graphile_worker._private_tasks") == 1


async def test_the_codecs_of_a_users_pool_do_not_change_payloads(db: "Database", raw: "Raw") -> None:
    async def odd(connection: asyncpg.Connection) -> None:
        for name in ("json", "jsonb"):
            await connection.set_type_codec(
                name,
                encoder=lambda value: json.dumps({"wrapped": value}),
                decoder=lambda stored: {"unwrapped": stored},
                schema="pg_catalog",
            )

    payload = {"b": 1.0, "a": [1, None], "text": "ä"}
    async with asyncpg.create_pool(db.dsn, init=odd, min_size=1, max_size=2) as pool:
        async with BackfillClient(pool, schema=db.schema, install=False) as client:
            specs = [None, JobSpec(flags={"f"}), JobSpec(job_key="k", flags={"f"})]
            made = [(await client.enqueue("t", payload, spec)).unwrap() for spec in specs]
            made += [
                outcome.unwrap() for outcome in await client.enqueue_many([("t", payload, spec) for spec in specs])
            ]
            for job in made:
                read = await client.get_job(job.id)
                assert read is not None
                assert read.payload == payload == job.payload
                assert read.flags == job.flags
            (entry_id,) = (await client.fail_jobs([made[0].id], "codecs")).values()
            entry = await client.get_dlq_job(entry_id)
            assert entry is not None
            assert entry.payload == payload
            assert (await client.requeue_dlq_job(entry_id)).payload == payload
        assert await pool.fetchval("select 1") == 1, "a pool that was given stays open"
    stored = {json.dumps(json.loads(job["payload"]), sort_keys=True) for job in await raw.jobs()}
    assert stored == {json.dumps(payload, sort_keys=True)}


@pytest.mark.parametrize("key", [None, "k"])
@pytest.mark.parametrize("ending", ["commit", "rollback"])
async def test_a_job_shares_the_fate_of_the_callers_transaction(
    client: BackfillClient, raw: "Raw", other: "Raw", key: str | None, ending: str
) -> None:
    transaction = raw.connection.transaction()
    await transaction.start()
    spec = JobSpec(job_key=key, queue="new queue")
    made = (await client.enqueue("new task", 1, spec, connection=raw.connection)).unwrap()
    assert await other.jobs() == [], "nobody sees it before the commit"
    await (transaction.commit() if ending == "commit" else transaction.rollback())
    assert [job["id"] for job in await other.jobs()] == ([made.id] if ending == "commit" else [])


async def test_two_transactions_that_create_the_same_names_in_other_orders_do_not_wait(
    client: BackfillClient, session: "Session"
) -> None:
    for number, key in enumerate([None, "k"]):
        names = [f"a{number}", f"b{number}"]
        one, two = await session(), await session()
        async with asyncio.timeout(30), one.connection.transaction(), two.connection.transaction():
            for first, second in (names, names[::-1]):
                for sender, name in ((one, first), (two, second)):
                    job_key = key and f"{key} {name} {sender.connection.get_server_pid()}"
                    spec = JobSpec(queue=name, job_key=job_key)
                    await client.enqueue(name, 1, spec, connection=sender.connection)
        assert await one.value("select count(*) from graphile_worker._private_jobs") == 4 * (number + 1)


@pytest.mark.parametrize("key", [None, "k"])
async def test_transactions_that_hold_all_connections_of_the_pool_do_not_wait(
    db: "Database", raw: "Raw", key: str | None
) -> None:
    async with (
        asyncio.timeout(30),
        asyncpg.create_pool(db.dsn, min_size=1, max_size=1) as pool,
        BackfillClient(pool, schema=db.schema, install=False) as client,
        pool.acquire() as connection,
        connection.transaction(),
    ):
        await client.enqueue("new", 1, JobSpec(job_key=key), connection=connection)
        await client.enqueue_many([("newer", 2, JobSpec(queue="q"))], connection=connection)
    assert [job["task"] for job in await raw.jobs()] == ["new", "newer"]


async def test_a_name_that_the_callers_transaction_has_created_is_no_trap(client: BackfillClient, raw: "Raw") -> None:
    """Another connection would wait for this transaction, which waits for it."""
    async with asyncio.timeout(30), raw.connection.transaction():
        await raw.run("insert into graphile_worker._private_tasks (identifier) values ('mine')")
        await client.enqueue("mine", 1, JobSpec(queue="new"), connection=raw.connection)
        await client.enqueue("mine", 2, JobSpec(queue="new", job_key="k"), connection=raw.connection)
    assert [job["task"] for job in await raw.jobs()] == ["mine", "mine"]


async def test_a_serializable_transaction_is_told_to_run_again(client: BackfillClient, raw: "Raw") -> None:
    async def attempt() -> None:
        async with raw.connection.transaction(isolation="repeatable_read"):
            await raw.value("select 1")
            await client.enqueue("unseen", 1, connection=raw.connection)

    with pytest.raises(asyncpg.SerializationError):
        await attempt()
    await attempt()
    assert [job["task"] for job in await raw.jobs()] == ["unseen"]


async def test_a_connection_without_a_transaction_adds_at_once(
    client: BackfillClient, raw: "Raw", other: "Raw"
) -> None:
    await client.enqueue("new", 1, JobSpec(queue="new"), connection=raw.connection)
    assert len(await other.jobs()) == 1


async def test_what_vanishes_each_time_is_told(client: BackfillClient, raw: "Raw") -> None:
    await raw.run("create function public.nothing() returns trigger language plpgsql as 'begin return null; end'")
    await raw.run(
        "create trigger nothing before insert on graphile_worker._private_tasks for each row execute function nothing()"
    )
    with pytest.raises(DatabaseError, match=r"'t'.*vanish"):
        await client.enqueue("t")
    with pytest.raises(DatabaseError, match=r"'t'.*vanish"):
        await client.enqueue_many([("t",)])


async def test_the_database_s_refusal_is_a_database_error_of_ours(client: BackfillClient, raw: "Raw") -> None:
    await raw.run("alter table graphile_worker._private_jobs add constraint no_foes check (priority <> 13)")
    with pytest.raises(DatabaseError, match=r"cannot enqueue t: .*no_foes") as failed:
        await client.enqueue("t", 1, JobSpec(priority=13))
    assert isinstance(failed.value.__cause__, asyncpg.CheckViolationError)
    with pytest.raises(DatabaseError, match=r"batch of 1 jobs: .*no_foes"):
        await client.enqueue_many([("t", 1, JobSpec(priority=13))])


async def test_build_enqueue_sends_nothing_and_anything_can_send_it(raw: "Raw") -> None:
    await raw.run("insert into graphile_worker._private_tasks (identifier) values ('patient')")
    for spec in (None, JobSpec(job_key="k")):
        sql, args = build_enqueue(raw.schema, patient, {"n": 1}, spec)
        assert await raw.connection.fetchval(sql, *args) is not None
    assert [(job["task"], job["max_attempts"], job["key"]) for job in await raw.jobs()] == [
        ("patient", 5, None),
        ("patient", 5, "k"),
    ]
