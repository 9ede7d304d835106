"""Hooks before jobs are added: whichever way a client adds them."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest

from backfill import BackfillClient, JobSpec, RetryPolicy, TaskHandler, enqueue_bulk, task
from backfill.errors import InvalidJob, JobScheduleFailed, JobScheduleSkipped
from backfill.hooks import BeforeJobSchedule, Continue, Fail, HookRegistry, Skip

if TYPE_CHECKING:
    from tests.conftest import Database


class Stamp:
    """Adds a tenant to each payload that is an object, and refuses some."""

    def __init__(self) -> None:
        self.seen: list[BeforeJobSchedule] = []

    def register(self, registry: HookRegistry) -> None:
        registry.on(BeforeJobSchedule, self.stamp)

    async def stamp(self, event: BeforeJobSchedule) -> Continue | Skip | Fail | None:
        self.seen.append(event)
        if event.payload == "skip":
            return Skip()
        if event.payload == "fail":
            return Fail("no such tenant")
        if event.payload == "raise":
            raise PermissionError("not this one")
        return Continue({**event.payload, "tenant": 7}) if isinstance(event.payload, dict) else None


@dataclass
class Mail(TaskHandler):
    IDENTIFIER = "mail"
    to: str
    copies: int = 1

    async def run(self, ctx: Any) -> None: ...


@task("patient", retry_policy=RetryPolicy.aggressive(), timeout=timedelta(seconds=5))
async def patient(payload: Any) -> None: ...


@pytest.fixture
def stamp() -> Stamp:
    return Stamp()


@pytest.fixture
async def hooked(db: "Database", stamp: Stamp) -> AsyncIterator[BackfillClient]:
    async with BackfillClient(db.dsn, schema=db.schema, install=False, plugins=[stamp]) as opened:
        yield opened


async def stored(client: BackfillClient) -> list[tuple[str, Any]]:
    return sorted(((job.task_identifier, job.payload) for job in await client.list_jobs()), key=repr)


async def test_every_way_to_add_a_job_asks(hooked: BackfillClient, stamp: Stamp) -> None:
    """R-48."""
    await hooked.enqueue("single", {"n": 1})
    await hooked.enqueue("none_given")
    await hooked.enqueue("keyed", {"n": 2}, JobSpec(job_key="k"))
    await hooked.enqueue_task(Mail("ada"))
    await hooked.enqueue_many([("many", {"n": 3}), ("many", {"n": 4}, JobSpec(job_key="m")), ("bare",)])
    assert await hooked.enqueue_stream(("stream", {"n": n}) for n in (5, 6)) == 2
    async with hooked.pool.acquire() as connection, connection.transaction():
        await hooked.enqueue("yours", {"n": 7}, connection=connection)
        await hooked.enqueue_many([("yours", {"n": 8})], connection=connection)
    await enqueue_bulk(hooked, "bulk", {"n": 9})
    assert await stored(hooked) == [
        ("bare", {"tenant": 7}),
        ("bulk", {"n": 9, "tenant": 7}),
        ("keyed", {"n": 2, "tenant": 7}),
        ("mail", {"to": "ada", "copies": 1, "tenant": 7}),
        ("many", {"n": 3, "tenant": 7}),
        ("many", {"n": 4, "tenant": 7}),
        ("none_given", {"tenant": 7}),
        ("single", {"n": 1, "tenant": 7}),
        ("stream", {"n": 5, "tenant": 7}),
        ("stream", {"n": 6, "tenant": 7}),
        ("yours", {"n": 7, "tenant": 7}),
        ("yours", {"n": 8, "tenant": 7}),
    ]
    assert len(stamp.seen) == 12


async def test_a_handler_sees_the_settings_that_will_be_stored(hooked: BackfillClient, stamp: Stamp) -> None:
    """R-48."""
    await hooked.enqueue(patient, [1, "two"], JobSpec(queue="q", priority=-3))
    (event,) = stamp.seen
    assert (event.identifier, event.payload) == ("patient", [1, "two"])
    assert (event.spec.queue.name, event.spec.priority, event.spec.timeout) == ("q", -3, timedelta(seconds=5))
    assert event.spec.max_attempts == RetryPolicy.aggressive().max_attempts
    (job,) = await hooked.list_jobs()
    assert job.payload == [1, "two"]
    assert job.extras.timeout == timedelta(seconds=5)


@pytest.mark.parametrize(
    ("payload", "error", "says"),
    [
        ("skip", JobScheduleSkipped, "skipped a job of 'x'"),
        ("fail", JobScheduleFailed, "no such tenant"),
        ("raise", JobScheduleFailed, "Stamp.stamp raised PermissionError: not this one"),
    ],
)
async def test_what_is_kept_out_is_an_error_and_nothing_is_written(
    payload: str, error: type[Exception], says: str, hooked: BackfillClient
) -> None:
    """R-48."""
    with pytest.raises(error, match=says) as raised:
        await hooked.enqueue("x", payload)
    assert isinstance(raised.value.__cause__, PermissionError) is (payload == "raise")
    for spec in (None, JobSpec(job_key="k")):
        with pytest.raises(error, match=says) as raised:
            await hooked.enqueue_many([("a", 1), ("x", payload, spec), ("b", 2)])
        assert raised.value.__notes__ == ["it was job 2 of a batch; no job was added"]
    async with hooked.pool.acquire() as connection, connection.transaction():
        with pytest.raises(error):
            await hooked.enqueue_many([("a", 1), ("x", payload)], connection=connection)
        assert await connection.fetchval("select 1") == 1  # the transaction goes on
    with pytest.raises(error) as raised:
        await hooked.enqueue_stream([("s", 1), ("s", 2), ("x", payload), ("s", 3)], batch_size=2)
    assert raised.value.__notes__[-1] == "2 jobs of earlier batches have been added"
    assert await stored(hooked) == [("s", 1), ("s", 2)]


async def test_the_payload_that_was_given_stays_as_it_was(db: "Database") -> None:
    hooks, given = HookRegistry(), {"list": [1]}

    @hooks.on(BeforeJobSchedule)
    def change(event: BeforeJobSchedule) -> None:
        event.payload["list"].append(2)

    async with BackfillClient(db.dsn, schema=db.schema, install=False, hooks=hooks) as client:
        assert client.hooks is hooks
        await client.enqueue("x", given)
        assert await stored(client) == [("x", {"list": [1, 2]})]
    assert given == {"list": [1]}


async def test_a_bad_job_and_a_bad_answer_are_refused_by_name(hooked: BackfillClient) -> None:
    with pytest.raises(InvalidJob, match="job 2 of the batch: payload has nan"):
        await hooked.enqueue_many([("a", 1), ("b", float("nan"))])
    with pytest.raises(InvalidJob, match=r"job 1 of the batch: write \(task, payload, spec\)"):
        await hooked.enqueue_many(["a"])  # type: ignore[list-item] # that is the point
    hooked.hooks.on(BeforeJobSchedule, lambda _: Continue(float("inf")))
    with pytest.raises(InvalidJob, match="payload has inf"):
        await hooked.enqueue("a", 1)
    assert await stored(hooked) == []


@pytest.mark.parametrize("answer", [{"to": "ada"}, []], ids=["an object", "no items"])
async def test_a_batch_job_must_come_back_with_items(answer: Any, client: BackfillClient) -> None:
    """R-40."""

    @task("letters", batch=True)
    async def letters(items: list[str]) -> None: ...

    client.hooks.on(BeforeJobSchedule, lambda _: Continue(answer))
    with pytest.raises(InvalidJob, match="letters is a batch task"):
        await client.enqueue(letters, ["ada"])
    with pytest.raises(InvalidJob, match="is a batch task"):
        await client.enqueue_many([(letters, ["ada"]), (letters, ["bob"], JobSpec(job_key="k"))])
    assert await stored(client) == []


async def test_what_is_registered_later_counts_too(client: BackfillClient) -> None:
    await client.enqueue("x", 1)
    client.hooks.on(BeforeJobSchedule, lambda _: Continue(2))
    await client.enqueue("x", 1)
    assert await stored(client) == [("x", 1), ("x", 2)]
