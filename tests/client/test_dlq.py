"""The dead letter queue, entry by entry."""

import asyncio
import json
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest

from backfill import BackfillClient, DlqEdit, DlqFilter, DlqJob, Job, JobSpec, Priority, RetryPolicy
from backfill.errors import DatabaseError, DlqEntryNotFound, InvalidJob, KeyInUse

if TYPE_CHECKING:
    from tests.client.conftest import Heard, Raw
    from tests.conftest import Database

ODD = [
    '{"a": "\\u0000"}',
    "1e400000",
    '[1e400000, "\\ud800"]',
    '{"backfill:json": "mine"}',
    '{"backfill:json": {"backfill:json": "\\u0000"}}',
    ' { "b" : "\\u0000",\t"b":1 } ',
]
PLAIN = ['{"a": 1}', "[1, 2]", "null", '"text"', "1.50", "{}"]


async def dead(client: BackfillClient, payload: Any = 1, **spec: Any) -> DlqJob:
    """An entry of the dead letter queue; its job's notification has been sent."""
    (outcome,) = await client.enqueue_many([("t", payload, JobSpec(**spec))])
    (entry_id,) = (await client.fail_jobs([outcome.unwrap().id], "broken")).values()
    return await entry_of(client, entry_id)


async def entry_of(client: BackfillClient, entry_id: int) -> DlqJob:
    entry = await client.get_dlq_job(entry_id)
    assert entry is not None
    return entry


async def fail_again(client: BackfillClient, job: Job, reason: str = "again") -> None:
    assert await client.fail_jobs([job.id], reason) != {}


async def test_an_entry_has_all_of_its_job(client: BackfillClient, raw: "Raw") -> None:
    run_at = datetime(2090, 1, 2, 3, 4, 5, tzinfo=UTC)
    spec = JobSpec(
        run_at=run_at,
        priority=Priority.FAST_HIGH,
        queue="q",
        job_key="k",
        max_attempts=4,
        retry_policy=RetryPolicy.fast(),
        flags={"f"},
        timeout=timedelta(seconds=9),
    )
    job = (await client.enqueue("t", {"a": [1]}, spec)).unwrap()
    await raw.exhaust(job.id, "last words")
    (entry_id,) = (await client.fail_jobs([job.id], "why")).values()
    entry = await entry_of(client, entry_id)
    assert (entry.task_identifier, entry.queue_name, entry.priority, entry.job_key) == ("t", "q", -10, "k")
    assert (entry.payload, entry.max_attempts, entry.failure_reason, entry.failure_count) == ({"a": [1]}, 4, "why", 1)
    assert (entry.original_job_id, entry.original_created_at, entry.original_run_at) == (job.id, job.created_at, run_at)
    assert entry.last_error == {"message": "last words"}
    assert (entry.flags, entry.extras) == (job.flags, job.extras)
    assert (entry.requeued_count, entry.requeued_job_id, entry.is_out, entry.notes) == (0, None, False, None)


async def test_no_such_entry(client: BackfillClient) -> None:
    assert await client.get_dlq_job(1) is None
    assert not await client.delete_dlq_job(1)
    with pytest.raises(DlqEntryNotFound, match="no entry 1"):
        await client.requeue_dlq_job(1)


async def test_a_requeued_job_is_as_it_was(client: BackfillClient, raw: "Raw", heard: "Heard") -> None:
    spec = JobSpec(
        run_at=datetime(2090, 1, 1, tzinfo=UTC),
        priority=-7,
        queue="q",
        job_key="k",
        max_attempts=4,
        retry_policy=RetryPolicy.fast(),
        flags={"f"},
        timeout=timedelta(seconds=9),
    )
    entry = await dead(client, {"a": 1}, **{field: getattr(spec, field) for field in spec.__dataclass_fields__})
    await heard()
    job = await client.requeue_dlq_job(entry.id, "looked at it")
    assert [told["count"] for told in await heard()] == [1]
    row = await raw.job(job.id)
    assert (row["task"], row["queue"], row["priority"], row["key"], row["max_attempts"]) == ("t", "q", -7, "k", 4)
    assert (row["attempts"], row["payload"], row["at_once"], row["last_error"]) == (0, '{"a": 1}', True, None)
    assert json.loads(row["flags"]) == dict.fromkeys(
        ["f", "backfill:retry=fast", "backfill:timeout=9", "backfill:dlq"], True
    )
    assert (job.payload, job.extras.dlq, job.state) == ({"a": 1}, True, "ready")
    out = await entry_of(client, entry.id)
    assert (out.requeued_job_id, out.requeued_count, out.notes) == (job.id, 1, "looked at it")
    assert out.last_requeued_at == job.created_at
    assert out.history is None


async def test_a_requeue_of_the_parallel_queue_and_without_a_key(client: BackfillClient, raw: "Raw") -> None:
    entry = await dead(client)
    row = await raw.job((await client.requeue_dlq_job(entry.id)).id)
    assert (row["queue"], row["key"], row["max_attempts"], row["flags"]) == (None, None, 8, '{"backfill:dlq": true}')


async def test_a_queue_called_default_is_a_real_one(client: BackfillClient, raw: "Raw") -> None:
    entry = await dead(client, queue="default")
    assert (await raw.job((await client.requeue_dlq_job(entry.id)).id))["queue"] == "default"


@pytest.mark.parametrize("text", ODD + PLAIN)
async def test_payloads_come_back_as_they_were(client: BackfillClient, raw: "Raw", text: str) -> None:
    """Byte for byte where jsonb would not take them."""
    job = (await client.enqueue("t")).unwrap()
    await raw.run("update graphile_worker._private_jobs set payload = $2::text::json where id = $1", job.id, text)
    (entry_id,) = (await client.fail_jobs([job.id], "odd")).values()
    assert (await entry_of(client, entry_id)).payload_text == text
    again = await client.requeue_dlq_job(entry_id)
    assert again.payload_text == text
    assert (await raw.job(again.id))["payload"] == text
    await fail_again(client, again)
    assert (await entry_of(client, entry_id)).payload_text == text
    assert len((await client.list_dlq_jobs()).jobs) == 1


async def test_the_longest_names_come_back(client: BackfillClient, raw: "Raw") -> None:
    task, queue, key = "ä" * 128, "ö" * 128, "ü" * 512
    job = (await client.enqueue(task, 1, JobSpec(queue=queue, job_key=key))).unwrap()
    (entry_id,) = (await client.fail_jobs([job.id], "long")).values()
    row = await raw.job((await client.requeue_dlq_job(entry_id)).id)
    assert (row["task"], row["queue"], row["key"]) == (task, queue, key)


async def test_a_requeue_makes_names_that_were_collected(client: BackfillClient, raw: "Raw") -> None:
    entry = await dead(client, queue="q")
    await client.cleanup(["GC_TASK_IDENTIFIERS", "GC_JOB_QUEUES"])
    row = await raw.job((await client.requeue_dlq_job(entry.id)).id)
    assert (row["task"], row["queue"]) == ("t", "q")


async def test_a_requeue_whose_queue_vanishes_at_that_moment_makes_it_again(client: BackfillClient, raw: "Raw") -> None:
    """It must not end up in the parallel queue."""
    entry = await dead(client, queue="q")
    await client.cleanup(["GC_JOB_QUEUES"])
    await raw.run("create sequence public.tries")
    await raw.run(
        "create function public.vanish() returns trigger language plpgsql as"
        " $$begin if nextval('public.tries') = 1 then return null; end if; return new; end$$"
    )
    await raw.run(
        "create trigger vanish before insert on graphile_worker._private_job_queues for each row execute function vanish()"
    )
    assert (await raw.job((await client.requeue_dlq_job(entry.id)).id))["queue"] == "q"


async def test_an_edited_payload_replaces_the_old_one_which_stays_in_the_history(client: BackfillClient) -> None:
    entry = await dead(client, {"wrong": 1})
    job = await client.requeue_dlq_job(entry.id, payload={"right": 2})
    assert job.payload == {"right": 2}
    out = await entry_of(client, entry.id)
    assert out.payload == {"right": 2}
    (edit,) = out.history
    assert edit.pop("edited_at") is not None
    assert edit == {"payload": {"wrong": 1}, "new": {"payload": {"right": 2}}}
    assert (await client.enqueue("t", None)).unwrap().payload is None
    await fail_again(client, job)
    null = await client.requeue_dlq_job(entry.id, payload=None)
    assert null.payload_text == "null"
    assert [item.get("payload") for item in (await entry_of(client, entry.id)).history] == [
        {"wrong": 1},
        None,
        {"right": 2},
    ]


async def test_an_edited_payload_that_cannot_be_changes_nothing(client: BackfillClient, raw: "Raw") -> None:
    entry = await dead(client)
    with pytest.raises(InvalidJob, match="nan"):
        await client.requeue_dlq_job(entry.id, payload=[float("nan")])
    assert await entry_of(client, entry.id) == entry
    assert await raw.jobs() == []


@pytest.mark.parametrize("key", [None, "k"])
async def test_a_second_requeue_is_refused(client: BackfillClient, raw: "Raw", key: str | None) -> None:
    entry = await dead(client, job_key=key)
    job = await client.requeue_dlq_job(entry.id)
    for force in (False, True):
        with pytest.raises(DlqEntryNotFound, match=f"already requeued as job {job.id}"):
            await client.requeue_dlq_job(entry.id, force=force)
    assert [row["id"] for row in await raw.jobs()] == [job.id]


async def test_an_entry_comes_back_when_its_job_fails_again(client: BackfillClient) -> None:
    entry = await dead(client)
    await fail_again(client, await client.requeue_dlq_job(entry.id), "second")
    back = await entry_of(client, entry.id)
    assert (back.failure_count, back.failure_reason, back.is_out, back.requeued_count) == (2, "second", False, 1)
    assert [item["failure_reason"] for item in back.history] == ["broken"]
    assert back.extras.dlq is False
    again = await client.requeue_dlq_job(entry.id)
    assert again.id == (await entry_of(client, entry.id)).requeued_job_id


async def test_an_entry_whose_job_vanished_can_be_forced(client: BackfillClient, raw: "Raw") -> None:
    """A Node worker that did the job knows nothing of the entry."""
    entry = await dead(client, job_key="k")
    job = await client.requeue_dlq_job(entry.id)
    await raw.run("delete from graphile_worker._private_jobs")
    with pytest.raises(DlqEntryNotFound, match=f"already requeued as job {job.id}"):
        await client.requeue_dlq_job(entry.id)
    again = await client.requeue_dlq_job(entry.id, force=True)
    assert (await entry_of(client, entry.id)).requeued_job_id == again.id


@pytest.mark.parametrize("running", [False, True])
async def test_a_key_in_use_refuses_the_requeue_unless_forced(
    client: BackfillClient, raw: "Raw", running: bool
) -> None:
    entry = await dead(client, ["old"], job_key="k")
    newer = (await client.enqueue("t", ["newer"], JobSpec(job_key="k"))).unwrap()
    if running:
        await raw.claim(newer.id)
    with pytest.raises(KeyInUse) as refused:
        await client.requeue_dlq_job(entry.id, "no")
    assert (refused.value.job_key, refused.value.job_id, refused.value.entry_id) == ("k", newer.id, entry.id)
    assert await entry_of(client, entry.id) == entry
    assert [job["payload"] for job in await raw.jobs()] == ['["newer"]']

    forced = await client.requeue_dlq_job(entry.id, "yes", force=True)
    assert forced.payload == ["old"], "as it was, not joined with the newer one"
    rows = {job["id"]: job for job in await raw.jobs()}
    assert rows.pop(forced.id)["key"] == "k"
    assert [(job["id"], job["key"], job["attempts"]) for job in rows.values()] == (
        [(newer.id, None, 8)] if running else []
    )


async def test_a_requeue_that_meets_an_add_of_its_key(client: BackfillClient, raw: "Raw", other: "Raw") -> None:
    entry = await dead(client, job_key="k")
    adding = raw.connection.transaction()
    await adding.start()
    newer = (await client.enqueue("t", "newer", JobSpec(job_key="k"), connection=raw.connection)).unwrap()
    requeue = asyncio.create_task(client.requeue_dlq_job(entry.id))
    await other.until_blocked()
    await adding.commit()
    with pytest.raises(KeyInUse):
        await requeue
    assert [job["id"] for job in await raw.jobs()] == [newer.id]


async def test_of_two_requeues_at_once_one_wins(client: BackfillClient, raw: "Raw") -> None:
    entry = await dead(client)
    results = await asyncio.gather(*(client.requeue_dlq_job(entry.id) for _ in range(8)), return_exceptions=True)
    assert [type(result) for result in results if not isinstance(result, Job)] == [DlqEntryNotFound] * 7
    assert len(await raw.jobs()) == 1


async def test_a_requeue_is_all_or_nothing(client: BackfillClient, raw: "Raw") -> None:
    entry = await dead(client)
    await raw.run("alter table graphile_worker.backfill_dlq add check (requeued_job_id is null)")
    with pytest.raises(DatabaseError, match="cannot requeue dlq job"):
        await client.requeue_dlq_job(entry.id)
    assert await raw.jobs() == []
    assert await entry_of(client, entry.id) == entry


async def test_deleting_entries(client: BackfillClient, raw: "Raw") -> None:
    entry, keyed = await dead(client), await dead(client, job_key="k")
    await client.requeue_dlq_job(entry.id)
    assert await client.delete_dlq_job(entry.id)
    assert not await client.delete_dlq_job(entry.id)
    assert len(await raw.jobs()) == 1, "the job that the entry was out as stays"
    assert not await client.delete_dlq_by_job_key("nobody")
    assert await client.delete_dlq_by_job_key("k")
    assert await client.get_dlq_job(keyed.id) is None


async def test_a_job_is_put_in_by_hand(client: BackfillClient, raw: "Raw") -> None:
    job = (await client.enqueue("t", {"a": 1}, JobSpec(queue="q", job_key="k", flags={"f"}))).unwrap()
    entry_id = await client.add_to_dlq(job, "by hand", {"code": 7})
    assert await raw.jobs() == [], "in one place only"
    entry = await entry_of(client, entry_id)
    assert (entry.failure_reason, entry.last_error, entry.payload) == ("by hand", {"code": 7}, {"a": 1})
    assert (entry.queue_name, entry.job_key, entry.original_job_id) == ("q", "k", job.id)
    assert entry.flags == {"f"}


async def test_a_job_that_is_not_in_the_queue_any_more_is_put_in_too(client: BackfillClient) -> None:
    job = (await client.enqueue("t", 1)).unwrap()
    await client.complete_jobs([job.id])
    entry = await entry_of(client, await client.add_to_dlq(job, "late"))
    assert (entry.original_job_id, entry.last_error) == (job.id, None)


async def test_a_running_job_is_not_put_in(client: BackfillClient, raw: "Raw") -> None:
    job = (await client.enqueue("t", 1)).unwrap()
    await raw.claim(job.id)
    with pytest.raises(InvalidJob, match=f"job {job.id} is running"):
        await client.add_to_dlq(job, "no")
    assert len(await raw.jobs()) == 1
    assert (await client.list_dlq_jobs()).jobs == []


async def test_a_keyed_job_put_in_again_updates_its_entry(client: BackfillClient) -> None:
    first = await dead(client, {"v": 1}, job_key="k")
    second = await dead(client, {"v": 2}, job_key="k", priority=3)
    assert second.id == first.id
    assert (second.failure_count, second.payload, second.priority) == (2, {"v": 2}, 3)
    assert second.history[0]["payload"] == {"v": 1}


async def test_lists_are_newest_first_and_totals_respect_the_filter(client: BackfillClient, raw: "Raw") -> None:
    entries = [await dead(client, n, queue="q" if n % 2 else None, job_key=f"k{n}") for n in range(6)]
    for n, entry in enumerate(entries):
        await raw.run(
            "update graphile_worker.backfill_dlq set failed_at = '2026-01-01 00:00Z'::timestamptz + $2 * interval '1 day'"
            " where id = $1",
            entry.id,
            n,
        )
    await client.requeue_dlq_job(entries[0].id)

    def day(n: int) -> datetime:
        return datetime(2026, 1, 1 + n, tzinfo=UTC)

    cases: list[tuple[dict[str, Any], list[int], int]] = [
        ({}, [5, 4, 3, 2, 1, 0], 6),
        ({"queue_name": "q"}, [5, 3, 1], 3),
        ({"queue_name": ""}, [4, 2, 0], 3),
        ({"task_identifier": "t", "limit": 2}, [5, 4], 6),
        ({"task_identifier": "t", "limit": 2, "offset": 4}, [1, 0], 6),
        ({"task_identifier": "other"}, [], 0),
        ({"job_key": "k3"}, [3], 1),
        ({"failed_after": day(2), "failed_before": day(4)}, [3, 2], 2),
        ({"requeued": True}, [0], 1),
        ({"requeued": False, "queue_name": ""}, [4, 2], 2),
    ]
    for chosen, numbers, total in cases:
        found = await client.list_dlq_jobs(DlqFilter(**chosen))
        assert [entry.payload for entry in found.jobs] == numbers
        assert (found.total, found.limit, found.offset) == (total, chosen.get("limit", 50), chosen.get("offset", 0))


async def test_pages_by_id_neither_skip_nor_repeat(client: BackfillClient) -> None:
    ids = [(await dead(client, n)).id for n in range(5)]
    assert [entry.id for entry in await client.page_dlq_jobs()] == ids
    first = await client.page_dlq_jobs(limit=2)
    await client.delete_dlq_job(ids[1])
    ids.append((await dead(client)).id)
    rest = await client.page_dlq_jobs(after=first[-1].id)
    assert [entry.id for entry in first + rest] == ids
    assert await client.page_dlq_jobs(DlqFilter(task_identifier="other")) == []
    with pytest.raises(InvalidJob, match="limit= to the call"):
        await client.page_dlq_jobs(DlqFilter(limit=3))


async def test_totals_stop_at_ten_thousand(client: BackfillClient, raw: "Raw") -> None:
    await raw.run(
        "insert into graphile_worker.backfill_dlq (task_identifier, payload, failure_reason)"
        " select 't', '{}', 'x' from generate_series(1, 10000)"
    )
    assert (await client.list_dlq_jobs()).total == 10_000
    await dead(client)
    assert (await client.list_dlq_jobs()).total is None
    assert (await client.list_dlq_jobs(DlqFilter(queue_name="q"))).total == 0


async def test_stats(client: BackfillClient, raw: "Raw") -> None:
    empty = await client.dlq_stats()
    assert (empty.total_jobs, empty.avg_failure_count, empty.oldest_failure, empty.task_breakdown) == (0, 0, None, {})
    for n in range(12):
        await raw.run(
            "insert into graphile_worker.backfill_dlq (task_identifier, payload, failure_reason, queue_name, failure_count,"
            " failed_at) select $1, '{}', 'x', $2, 2, '2026-01-01Z'::timestamptz + $3 * interval '1 day'"
            " from generate_series(1, $4)",
            f"t{n:02}",
            f"q{n % 3}",
            n,
            n + 1,
        )
    entry = (await client.list_dlq_jobs(DlqFilter(task_identifier="t00"))).jobs[0]
    await fail_again(client, await client.requeue_dlq_job(entry.id))
    await client.requeue_dlq_job(entry.id)
    stats = await client.dlq_stats()
    assert (stats.total_jobs, stats.out_jobs, stats.unique_tasks, stats.unique_queues) == (78, 1, 12, 3)
    assert stats.total_requeued == 2
    assert stats.avg_failure_count == pytest.approx((77 * 2 + 3) / 78)
    assert stats.oldest_failure == datetime(2026, 1, 2, tzinfo=UTC)
    assert stats.newest_failure is not None
    assert list(stats.task_breakdown.items()) == [(f"t{n:02}", n + 1) for n in range(11, 1, -1)]


async def test_columns_and_indexes_that_users_add_break_nothing(client: BackfillClient, raw: "Raw") -> None:
    await raw.run(
        "alter table graphile_worker.backfill_dlq add column team text not null default 'us', drop column notes"
    )
    await raw.run("alter table graphile_worker.backfill_dlq add column notes text, add column flags2 jsonb")
    await raw.run("create index on graphile_worker.backfill_dlq (team)")
    entry = await dead(client, {"a": 1}, job_key="k")
    await client.requeue_dlq_job(entry.id, "fine")
    (found,) = (await client.list_dlq_jobs()).jobs
    assert (found.payload, found.notes) == ({"a": 1}, "fine")


async def test_generated_columns_and_triggers_of_users_live_through_every_change(
    client: BackfillClient, raw: "Raw"
) -> None:
    await raw.run(
        "alter table graphile_worker.backfill_dlq add column kind text generated always as (task_identifier || '!') stored,"
        " add column seen int not null default 0, add column since timestamptz not null default now()"
    )
    await raw.run("create unique index on graphile_worker.backfill_dlq (kind, id)")
    await raw.run(
        "create function graphile_worker.see() returns trigger language plpgsql as $body$"
        " begin new.seen = new.seen + 1; return new; end $body$"
    )
    await raw.run(
        "create trigger see before insert or update on graphile_worker.backfill_dlq"
        " for each row execute function graphile_worker.see()"
    )
    keyed, plain = await dead(client, 1, job_key="k"), await dead(client, 2)
    since = await raw.rows("select since from graphile_worker.backfill_dlq order by id")
    for entry in (keyed, plain):
        await client.edit_dlq_job(entry.id, DlqEdit(task_identifier="u"))  # seen twice
        await fail_again(client, await client.requeue_dlq_job(entry.id, edit=DlqEdit(payload=3)))  # edited, out, back
    assert (await client.requeue_dlq_jobs(DlqFilter())).requeued == 2
    rows = await raw.rows("select kind, seen, since from graphile_worker.backfill_dlq order by id")
    assert [(row["kind"], row["seen"]) for row in rows] == [("u!", 6), ("u!", 6)]
    assert [row["since"] for row in rows] == [row["since"] for row in since]
    assert await client.delete_dlq_jobs(DlqFilter(requeued=True)) == 2


async def test_a_value_that_python_cannot_hold_hides_no_entry(client: BackfillClient, raw: "Raw") -> None:
    entry = await dead(client)
    huge = "9" * 5000
    await raw.run(
        "update graphile_worker.backfill_dlq set last_error = $2::text::jsonb, history = $2::text::jsonb where id = $1",
        entry.id,
        f"[{huge}]",
    )
    (found,) = (await client.list_dlq_jobs()).jobs
    assert found.last_error == f"[{huge}]" == found.history


async def test_init_dlq_makes_the_table(empty_db: "Database") -> None:
    connection = await empty_db.connect()
    async with BackfillClient(empty_db.dsn, schema="jobs") as client:
        await connection.execute("drop table jobs.backfill_dlq")
        assert await client.init_dlq() != []
        assert await client.init_dlq() == []
        assert (await client.dlq_stats()).total_jobs == 0
        with pytest.raises(asyncpg.NotNullViolationError):
            await connection.execute("insert into jobs.backfill_dlq default values")
