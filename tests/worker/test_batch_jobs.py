"""Batch tasks: items of one job that fail by themselves (C-028 to C-030, R-37 to R-41)."""

import asyncio
import dataclasses
import json
from collections.abc import Awaitable, Callable, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import pytest

from backfill.client.enqueuer import Enqueuer
from backfill.errors import ConfigurationError, InvalidInput, InvalidJob, MalformedData
from backfill.hooks import BeforeJobSchedule, Continue, HookRegistry
from backfill.model import JobKeyMode, JobSpec, RetryPolicy, Task, task
from backfill.worker import WorkerContext
from backfill.worker.batch import BatchResultError, ItemsFailedError, items_decoder, settle_items, split_items
from backfill.worker.handler import make_handler

if TYPE_CHECKING:
    from tests.worker.conftest import MakeRunner, RunWorker, Sql, Until

    from backfill.client import BackfillClient

KEYED = JobSpec(job_key="k")
ODD_ITEMS = [
    '{"b": 1.10, "a":   []}',
    "12345678901234567890123456789012345678901234567890",
    '"a\\u0000b"',
    "1e400000",
    '"\\ud800"',
    '{"a": 1, "a": 2}',
    '"ü𐍈, ] and \\" [ "',
    "null",
]


@dataclasses.dataclass
class Mail:
    to: str


class Batch:
    """A batch task whose items fail when they are in ``bad``; what it was given is noted."""

    def __init__(self, *bad: Any, error: type[Exception] = OSError) -> None:
        self.bad = set(bad)
        self.given: list[list[Any]] = []

        @task("batch", batch=True)
        async def batch(items: list[Any]) -> list[Exception | None]:
            self.given.append(items)
            return [error(f"no {item}") if item in self.bad else None for item in items]

        self.task: Task[Any] = batch


async def the_row(sql: "Sql") -> Any:
    return await sql.row("select *, payload::text as text from graphile_worker._private_jobs")


async def texts(sql: "Sql") -> list[str]:
    rows = await sql.rows("select payload::text as text from graphile_worker._private_jobs order by id")
    return [row["text"] for row in rows]


async def make_due(sql: "Sql") -> None:
    await sql.run("update graphile_worker._private_jobs set run_at = now() - interval '1 s'")


# -- enqueueing ---------------------------------------------------------------------------------


async def test_arrays_under_one_key_are_joined_in_the_order_of_the_calls(sql: "Sql", client: "BackfillClient") -> None:
    """C-028, R-37."""
    for item in (1, 2):
        await client.enqueue("batch", [{"n": item}], KEYED)
    await client.enqueue_many([("batch", [{"n": 3}, {"n": 4}], KEYED), ("batch", [0], JobSpec(job_key="other"))])
    row = await sql.row("select * from graphile_worker._private_jobs where key = 'k'")
    assert json.loads(row["payload"]) == [{"n": 1}, {"n": 2}, {"n": 3}, {"n": 4}]
    assert (row["attempts"], row["revision"]) == (0, 2)
    later = dataclasses.replace(KEYED, job_key_mode=JobKeyMode.PRESERVE_RUN_AT)
    outcome = await client.enqueue("batch", [5], later)
    assert outcome.unwrap().payload == [{"n": 1}, {"n": 2}, {"n": 3}, {"n": 4}, 5]


@pytest.mark.parametrize("payload", [[], {}, {"a": 1}, "text", None, msgspec.UNSET])
async def test_a_batch_task_is_enqueued_with_items_only(sql: "Sql", client: "BackfillClient", payload: Any) -> None:
    """R-37."""
    batch = Batch().task
    with pytest.raises(InvalidJob, match="batch is a batch task: its payload must be a list of at least one item"):
        await client.enqueue(batch, payload)
    with pytest.raises(InvalidJob, match="job 2 of the batch: batch is a batch task"):
        await client.enqueue_many([(batch, [1]), (batch, payload)])
    assert await sql.count() == 0


@pytest.mark.parametrize("changed", [{"an": "object"}, []])
async def test_a_hook_cannot_make_something_else_of_a_batch(sql: "Sql", client: "BackfillClient", changed: Any) -> None:
    """R-40."""
    hooks = HookRegistry()
    hooks.on(BeforeJobSchedule, lambda _: Continue(changed))
    enqueuer = Enqueuer(client.pool, sql.schema, hooks)
    with pytest.raises(InvalidJob, match="batch is a batch task"):
        await enqueuer.enqueue(Batch().task, [1])
    await enqueuer.close()
    assert await sql.count() == 0


async def test_batches_can_be_enqueued_from_a_handler(sql: "Sql", make_runner: "MakeRunner") -> None:
    """R-41."""
    batch = Batch()

    @task("first")
    async def first(ctx: WorkerContext) -> None:
        await ctx.enqueue(batch.task, ["a", "b"])

    await sql.add("first")
    runner = await make_runner(batch.task, first)
    assert await runner.process_available_jobs() == 2
    assert batch.given == [["a", "b"]]


# -- how runs end -------------------------------------------------------------------------------


async def later(value: Any) -> Any:
    await asyncio.sleep(0)
    if isinstance(value, Exception):
        raise value
    return value


@pytest.mark.parametrize(
    "give",
    [
        lambda _: None,
        lambda items: [None for _ in items],
        tuple,
        lambda items: [True, False, 0][: len(items)],
        lambda items: [later(item) for item in items],
        lambda items: [later(items[0]), None, asyncio.ensure_future(later(1))],
    ],
    ids=["none", "a list of none", "a tuple", "values", "coroutines", "some awaitables"],
)
async def test_a_batch_that_ended_well_is_gone(
    sql: "Sql", client: "BackfillClient", make_runner: "MakeRunner", give: Callable[[list[int]], Any]
) -> None:
    """C-029, R-37."""

    @task(batch=True)
    async def batch(items: list[int]) -> Any:
        return give(items)

    await client.enqueue(batch, [1, 2, 3])
    runner = await make_runner(batch)
    assert await runner.process_available_jobs() == 1
    assert await sql.count() == 0
    assert await sql.dead() == []


async def test_without_items_there_is_nothing_to_do(sql: "Sql", make_runner: "MakeRunner") -> None:
    batch = Batch()
    await sql.rows("select (graphile_worker.add_job('batch', ' [ ] '::json)).id")
    runner = await make_runner(batch.task)
    assert await runner.process_available_jobs() == 1
    assert batch.given == []
    assert await sql.count() == 0


async def gather_them(items: list[int]) -> list[Any]:
    return await asyncio.gather(*(later(OSError(f"no {i}") if i % 2 else i) for i in items), return_exceptions=True)


async def return_awaitables(items: list[int]) -> list[Awaitable[Any] | None]:
    return [later(OSError(f"no {i}")) if i % 2 else None for i in items]


def return_errors(items: list[int]) -> list[Any]:
    return [OSError(f"no {i}") if i % 2 else None for i in items]


def return_awaitables_from_a_thread(items: list[int]) -> list[Any]:
    return [later(OSError(f"no {i}")) if i % 2 else later(i) for i in items]


@pytest.mark.parametrize(
    "batch",
    [
        *(task("batch", batch=True)(one) for one in (gather_them, return_awaitables, return_errors)),
        task("batch", batch=True)(return_awaitables_from_a_thread),
    ],
    ids=["gathered", "awaitables", "in a thread", "awaitables from a thread"],
)
async def test_only_items_that_failed_stay_in_their_order(
    sql: "Sql", client: "BackfillClient", make_runner: "MakeRunner", batch: Task[Any]
) -> None:
    """C-030, R-38."""
    spec = JobSpec(queue="q", max_attempts=3, retry_policy=RetryPolicy(3, 60, 60, jitter_factor=0))
    await client.enqueue("batch", [1, 2, 3, 4, 5], spec)
    runner = await make_runner(batch)
    assert await runner.process_available_jobs() == 1
    row = await the_row(sql)
    assert row["text"] == "[1,3,5]"
    assert (row["attempts"], row["locked_by"], row["locked_at"]) == (1, None, None)
    assert row["last_error"] == (
        "ItemsFailedError: 3 of 5 items failed: [0] OSError: no 1; [2] OSError: no 3; [4] OSError: no 5"
    )
    wait = await sql.value("select extract(epoch from run_at - now())::int from graphile_worker._private_jobs")
    assert 50 <= wait <= 60
    assert await sql.locks() == (0, 0)


async def test_the_items_as_they_were_written(sql: "Sql", make_runner: "MakeRunner") -> None:
    @task("batch", batch=True)
    async def batch(items: list[Any]) -> list[Any]:
        return [OSError("all but the first") if index else None for index, _ in enumerate(items)]

    for items in (["0", *ODD_ITEMS], ["0", *ODD_ITEMS[:3]]):
        await sql.rows("select (graphile_worker.add_job('batch', $1::text::json)).id", f" [ {' , '.join(items)} ]")
    runner = await make_runner(batch)
    await runner.process_available_jobs()
    assert await texts(sql) == [f"[{','.join(ODD_ITEMS)}]", f"[{','.join(ODD_ITEMS[:3])}]"]


@pytest.mark.parametrize("text", ["[]", " [ 1 , [2, [3]] ,{} ]", f"[{','.join(ODD_ITEMS)}]", '["\\ud800"]'])
def test_items_are_parts_of_the_text(text: str) -> None:
    items = split_items(text)
    assert f"[{','.join(items)}]" == f"[{','.join(item.strip() for item in split_items(text))}]"
    assert json.loads(f"[{','.join(items)}]") == json.loads(text)


@pytest.mark.parametrize("text", ["{}", '"\\ud800"', " 1e400000", "null", '{"a": "\\ud800"}'])
def test_what_is_no_array_has_no_items(text: str) -> None:
    with pytest.raises(MalformedData, match="must be a JSON array of items"):
        split_items(text)


async def test_a_handler_that_raises_keeps_all_items(
    sql: "Sql", client: "BackfillClient", make_runner: "MakeRunner"
) -> None:
    """C-029, R-39."""

    @task("batch", batch=True)
    async def batch(items: list[int]) -> None:
        raise OSError("the whole of it")

    await client.enqueue(batch, [1, 2])
    runner = await make_runner(batch)
    await runner.process_available_jobs()
    row = await the_row(sql)
    assert (row["text"], row["attempts"], row["last_error"]) == ("[1,2]", 1, "OSError: the whole of it")


async def test_a_batch_over_its_time_limit_keeps_all_items(
    sql: "Sql", client: "BackfillClient", make_runner: "MakeRunner"
) -> None:
    ended = 0

    async def hang() -> None:
        nonlocal ended
        try:
            await asyncio.Event().wait()
        finally:
            ended += 1

    @task("batch", batch=True, timeout=timedelta(milliseconds=50))
    async def batch(items: list[int]) -> list[Any]:
        return [hang() for _ in items]

    await client.enqueue(batch, [1, 2])
    runner = await make_runner(batch)
    await runner.process_available_jobs()
    row = await the_row(sql)
    assert row["text"] == "[1,2]"
    assert "time limit" in row["last_error"]
    assert ended == 2, "what was awaited has ended before the job was released"


@pytest.mark.parametrize(
    ("result", "words"),
    [
        ([None], r"returned 1 results for 2 items"),
        ([None] * 3, r"returned 3 results for 2 items"),
        ({0: "done"}, r"returned \{0: 'done'\} \(dict\) for 2 items"),
        (True, r"returned True \(bool\) for 2 items"),
    ],
)
async def test_a_result_that_does_not_say_which_failed_fails_the_whole_for_good(
    sql: "Sql", client: "BackfillClient", make_runner: "MakeRunner", result: Any, words: str
) -> None:
    """R-39."""

    @task("batch", batch=True)
    async def batch(items: list[int]) -> Any:
        return [later(one) for one in result] if isinstance(result, list) else result

    await client.enqueue(batch, [1, 2])
    runner = await make_runner(batch)
    await runner.process_available_jobs()
    (entry,) = await sql.dead()
    assert json.loads(entry["payload"]) == [1, 2]
    with pytest.raises(AssertionError, match=words):
        raise AssertionError(entry["failure_reason"])


@pytest.mark.parametrize(
    ("payload", "words"),
    [
        ('{"to": "a"}', "must be a JSON array of items"),
        ('"text"', "must be a JSON array of items"),
        ("null", "must be a JSON array of items"),
        ('[{"to": "a"}, {"to": 7}, {}]', "item [1] of 3: payload does not fit Mail"),
        ('[{"to": "\\ud800"}, {"to": 7}]', "item [1] of 2: payload does not fit Mail"),
    ],
)
async def test_what_is_no_list_of_items_fails_for_good_unchanged(
    sql: "Sql", make_runner: "MakeRunner", payload: str, words: str
) -> None:
    """R-39."""

    @task("batch", batch=True)
    async def batch(items: list[Mail]) -> None:
        raise AssertionError("must not be called")

    await sql.rows("select (graphile_worker.add_job('batch', $1::text::json)).id", payload)
    runner = await make_runner(batch)
    await runner.process_available_jobs()
    (entry,) = await sql.dead()
    assert words in entry["failure_reason"]
    if "ud800" not in payload:
        assert json.loads(entry["payload"]) == json.loads(payload)


@pytest.mark.parametrize("bury", [True, False])
async def test_after_the_last_attempt_just_the_failed_items_are_left(
    sql: "Sql", client: "BackfillClient", make_runner: "MakeRunner", bury: bool
) -> None:
    batch = Batch(2, 3)
    settings = {} if bury else {"dlq_processor_interval": None}
    await client.enqueue(
        "batch", [1, 2, 3, 4], JobSpec(max_attempts=2, retry_policy=RetryPolicy(2, 60, 60, jitter_factor=0))
    )
    runner = await make_runner(batch.task, **settings)
    await runner.process_available_jobs()
    batch.bad = {3}
    await make_due(sql)
    await runner.process_available_jobs()
    assert batch.given == [[1, 2, 3, 4], [2, 3]]
    if not bury:
        row = await the_row(sql)
        assert (row["text"], row["attempts"]) == ("[3]", 2)
        return
    assert await sql.count() == 0
    (entry,) = await sql.dead()
    assert json.loads(entry["payload"]) == [3]
    assert "(2/2)" in entry["failure_reason"]
    error = json.loads(entry["last_error"])
    assert error["message"] == "1 of 2 items failed: [1] OSError: no 3"
    assert "OSError: no 3" in error["traceback"]
    batch.bad = set()
    await client.requeue_dlq_job(entry["id"])
    await runner.process_available_jobs()
    assert (batch.given[-1], await sql.dead(), await sql.count()) == ([3], [], 0)


async def test_a_batch_is_worth_another_try_if_one_of_its_failures_is(
    sql: "Sql", client: "BackfillClient", make_runner: "MakeRunner"
) -> None:
    @task("batch", batch=True)
    async def batch(items: list[str]) -> list[Exception]:
        return [InvalidInput(item) if item == "bad" else OSError(item) for item in items]

    await client.enqueue(batch, ["bad"] * 30 + ["down"])
    await client.enqueue(batch, ["bad", "bad"])
    runner = await make_runner(batch)
    await runner.process_available_jobs()
    row = await the_row(sql)
    assert json.loads(row["text"]) == ["bad"] * 30 + ["down"]
    assert row["last_error"].count("InvalidInput") == 20
    assert row["last_error"].endswith("; and 11 more")
    (entry,) = await sql.dead()
    assert json.loads(entry["payload"]) == ["bad", "bad"]


async def test_a_cancelled_item_is_an_item_that_failed() -> None:
    async def cancelled() -> None:
        raise asyncio.CancelledError

    with pytest.raises(
        ItemsFailedError, match=r"1 of 2 items failed: \[1\] JobFailed: the item was ended by Cancelled"
    ):
        await settle_items("[1, 2]", [None, cancelled()])


async def test_a_batch_in_a_process(sql: "Sql", make_runner: "MakeRunner") -> None:
    from tests.worker.process_tasks import in_batches

    await sql.add("p_batch", ["fine", "bad", {"x": 1}, "bad"])
    await sql.add("p_batch", ["fine"])
    await sql.rows("select (graphile_worker.add_job('p_batch', '[]')).id")
    runner = await make_runner(in_batches)
    assert await runner.process_available_jobs() == 3
    row = await the_row(sql)
    assert row["text"] == '["bad","bad"]'
    assert row["last_error"] == "ItemsFailedError: 2 of 4 items failed: [1] OSError: bad; [3] OSError: bad"


# -- what is added while it runs ----------------------------------------------------------------


class Waiting:
    """A batch task that waits, once, until the test lets it go on."""

    def __init__(self, *bad: int) -> None:
        self.running, self.go_on = asyncio.Event(), asyncio.Event()
        self.given: list[list[int]] = []
        self.bad = set(bad)

        @task("batch", batch=True, retry_policy=RetryPolicy(8, 0.001, 0.001, jitter_factor=0))
        async def batch(items: list[int]) -> list[Exception | None]:
            self.given.append(items)
            if not self.running.is_set():
                self.running.set()
                await self.go_on.wait()
            return [OSError(f"no {item}") if item in self.bad else None for item in items]

        self.task = batch


async def test_items_that_fail_are_tried_again_though_others_were_added_meanwhile(
    sql: "Sql", client: "BackfillClient", run_worker: "RunWorker", until: "Until"
) -> None:
    waiting = Waiting(2)
    await client.enqueue("batch", [1, 2], KEYED)
    async with run_worker(waiting.task, ready=False):
        await waiting.running.wait()
        await client.enqueue("batch", [3], dataclasses.replace(KEYED, run_at=await in_an_hour(sql)))
        waiting.go_on.set()
        await until(lambda: len(waiting.given) >= 3, "what failed runs again")
        waiting.bad.clear()
        await until(lambda: only_one(sql), "it is done")
    assert waiting.given[:3] == [[1, 2], [2], [2]]
    row = await the_row(sql)
    assert (row["text"], row["key"], row["attempts"]) == ("[3]", "k", 0)
    assert await sql.dead() == []


async def in_an_hour(sql: "Sql") -> Any:
    return await sql.value("select now() + interval '1 h'")


async def only_one(sql: "Sql") -> bool:
    return await sql.count() == 1


async def test_their_attempts_are_counted_on(
    sql: "Sql", client: "BackfillClient", run_worker: "RunWorker", until: "Until"
) -> None:
    waiting = Waiting(2)
    spec = dataclasses.replace(KEYED, max_attempts=3)
    await client.enqueue("batch", [1, 2], spec)
    async with run_worker(waiting.task, ready=False):
        await waiting.running.wait()
        await client.enqueue("batch", [3], dataclasses.replace(spec, run_at=await in_an_hour(sql)))
        waiting.go_on.set()
        await until(sql.dead, "it is a dead letter")
    assert waiting.given == [[1, 2], [2], [2]]
    (entry,) = await sql.dead()
    assert json.loads(entry["payload"]) == [2]
    assert "(3/3)" in entry["failure_reason"]


@pytest.mark.parametrize("replacement", [None, {"not": "a list"}], ids=["removed", "replaced"])
async def test_a_batch_that_was_removed_or_replaced_meanwhile_is_not_tried_again(
    sql: "Sql", client: "BackfillClient", run_worker: "RunWorker", until: "Until", replacement: Any
) -> None:
    waiting = Waiting(2)
    await client.enqueue("batch", [1, 2], KEYED)
    async with run_worker(waiting.task, ready=False):
        await waiting.running.wait()
        if replacement is None:
            await client.remove_job("k")
        else:
            await client.enqueue("batch", replacement, dataclasses.replace(KEYED, run_at=await in_an_hour(sql)))
        waiting.go_on.set()
        await until(sql.dead, "it is a dead letter")
    (entry,) = await sql.dead()
    assert json.loads(entry["payload"]) == [2]
    assert "superseded" in entry["failure_reason"]
    assert waiting.given == [[1, 2]]


@pytest.mark.parametrize("meanwhile", ["added", "added and run", "replaced", "removed"])
async def test_a_stop_loses_no_items(
    sql: "Sql", client: "BackfillClient", run_worker: "RunWorker", until: "Until", meanwhile: str
) -> None:
    waiting = Waiting()
    later = dataclasses.replace(KEYED, run_at=await in_an_hour(sql))
    await client.enqueue("batch", [1, 2], KEYED)
    async with run_worker(waiting.task, ready=False) as running:
        await waiting.running.wait()
        if meanwhile == "removed":
            await client.remove_job("k")
        elif meanwhile == "added and run":
            await client.enqueue("batch", [3], KEYED)
            await until(lambda: only_one(sql), "the other batch is done")
        else:
            await client.enqueue("batch", [3] if meanwhile == "added" else {}, later)
        running.runner.hurry()
        await running.end()
    rows = await sql.rows("select payload::text as text, key, attempts from graphile_worker._private_jobs order by id")
    found = [(row["text"], row["key"], row["attempts"]) for row in rows]
    if meanwhile == "added":
        assert found == [("[1,2]", None, 0), ("[3]", "k", 0)]
    elif meanwhile == "replaced":
        assert found == [("{}", "k", 0)]
    else:  # removed, or the key's next job has run: nobody can tell, so it is kept, and not run
        assert found == [("[1,2]", None, 8)]


async def test_a_partial_failure_counts_though_a_stop_cancelled_the_run(
    sql: "Sql", client: "BackfillClient", run_worker: "RunWorker"
) -> None:
    began = asyncio.Event()

    @task("batch", batch=True)
    async def batch(items: list[int]) -> list[Exception | None]:
        began.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            return [None, OSError("not done")]  # swallowed: it knows how far it came
        raise AssertionError

    await client.enqueue(batch, [1, 2])
    async with run_worker(batch, ready=False) as running:
        await began.wait()
        running.runner.hurry()
        await running.end()
    row = await the_row(sql)
    assert (row["text"], row["attempts"]) == ("[2]", 1)


async def test_dead_letters_of_one_key_add_up_as_jobs_do(
    sql: "Sql", client: "BackfillClient", make_runner: "MakeRunner"
) -> None:
    batch = Batch(1, 2, error=InvalidInput)
    runner = await make_runner(batch.task)
    for item in (1, 2):
        await client.enqueue("batch", [item, 3], KEYED)
        await runner.process_available_jobs()
    (entry,) = await sql.dead()
    assert json.loads(entry["payload"]) == [1, 2]
    assert entry["failure_count"] == 2
    assert "payload" not in json.loads(entry["history"])[-1], "nothing was replaced"
    await client.requeue_dlq_job(entry["id"])
    await runner.process_available_jobs()
    (back,) = await sql.dead()
    assert (back["id"], json.loads(back["payload"])) == (entry["id"], [1, 2])


# -- definitions --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("annotation", "expected"),
    [
        (Any, [{"to": "a"}]),
        (list, [{"to": "a"}]),
        (list[Mail], [Mail("a")]),
        (Sequence[Mail], [Mail("a")]),
        (Annotated[list[Mail], msgspec.Meta(max_length=3)], [Mail("a")]),
    ],
)
def test_items_are_of_the_annotated_type(annotation: Any, expected: list[Any]) -> None:
    assert items_decoder(annotation)('[{"to": "a"}]') == expected


def test_a_list_that_is_wrong_as_a_whole_is_malformed() -> None:
    decode = items_decoder(Annotated[list[int], msgspec.Meta(max_length=1)])
    with pytest.raises(MalformedData, match="length <= 1"):
        decode("[1, 2]")


def no_items() -> Any:
    @task(batch=True)
    async def odd() -> None: ...

    return odd


def one_item() -> Any:
    @task(batch=True)
    async def odd(item: Mail) -> None: ...

    return odd


def impossible_items() -> Any:
    @task(batch=True)
    async def odd(items: list[Callable[[], None]]) -> None: ...

    return odd


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (no_items, "a batch task takes its items"),
        (one_item, "annotate its payload as list"),
        (impossible_items, "cannot be a payload's type"),
    ],
)
def test_a_task_that_takes_no_items_is_refused(make: Callable[[], Any], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words) as caught:
        make_handler(make())
    assert f"{__file__}:" in str(caught.value)


def test_a_batch_result_error_is_not_retried() -> None:
    assert BatchResultError.is_retryable is False
