"""Changing entries of the dead letter queue, before a requeue or on the way."""

import math
from typing import TYPE_CHECKING, Any

import pytest

from backfill import BackfillClient, DlqEdit, DlqFilter, DlqJob, JobSpec, Priority, Queue
from backfill.errors import DlqEntryNotFound, InvalidJob, KeyInUse

if TYPE_CHECKING:
    from tests.client.conftest import Raw

ALL = DlqEdit(payload={"right": [1]}, task_identifier="better", queue="q2", priority=Priority.EMERGENCY, max_attempts=3)


async def dead(client: BackfillClient, payload: Any = 1, **spec: Any) -> DlqJob:
    job = (await client.enqueue("t", payload, JobSpec(**spec))).unwrap()
    (entry_id,) = (await client.fail_jobs([job.id], "broken")).values()
    return await entry_of(client, entry_id)


async def entry_of(client: BackfillClient, entry_id: int) -> DlqJob:
    entry = await client.get_dlq_job(entry_id)
    assert entry is not None
    return entry


async def test_an_edit_changes_what_it_names_and_keeps_the_old_and_the_new(client: BackfillClient) -> None:
    entry = await dead(client, {"wrong": 1}, queue="q1", job_key="k")
    edited = await client.edit_dlq_job(entry.id, DlqEdit(priority=4))
    assert edited.priority == 4
    edited = await client.edit_dlq_job(entry.id, ALL)
    assert edited == await entry_of(client, entry.id)
    assert (edited.payload, edited.task_identifier, edited.queue_name) == ({"right": [1]}, "better", "q2")
    assert (edited.priority, edited.max_attempts, edited.job_key, edited.is_out) == (-20, 3, "k", False)
    first, second = edited.history
    assert first.pop("edited_at") < second.pop("edited_at")
    assert first == {"priority": 0, "new": {"priority": 4}}
    old = {"payload": {"wrong": 1}, "task_identifier": "t", "queue_name": "q1", "priority": 4, "max_attempts": 8}
    new = {
        "payload": {"right": [1]},
        "task_identifier": "better",
        "queue_name": "q2",
        "priority": -20,
        "max_attempts": 3,
    }
    assert second == {**old, "new": new}
    again = await client.edit_dlq_job(entry.id, ALL)
    assert len(again.history) == 2  # nothing was changed


async def test_an_edited_entry_runs_as_it_is_now(client: BackfillClient, raw: "Raw") -> None:
    entry = await dead(client, queue="q1")
    row = await raw.job((await client.requeue_dlq_job(entry.id, "now", edit=ALL)).id)
    assert (row["task"], row["payload"], row["queue"]) == ("better", '{"right": [1]}', "q2")
    assert (row["priority"], row["max_attempts"]) == (-20, 3)
    out = await entry_of(client, entry.id)
    assert (out.task_identifier, out.notes, len(out.history)) == ("better", "now", 1)


@pytest.mark.parametrize("queue", ["", Queue.PARALLEL])
async def test_an_edit_to_the_parallel_queue_and_to_null(client: BackfillClient, raw: "Raw", queue: Any) -> None:
    entry = await dead(client, queue="q1")
    row = await raw.job((await client.requeue_dlq_job(entry.id, edit=DlqEdit(queue=queue, payload=None))).id)
    assert (row["queue"], row["payload"]) == (None, "null")


async def test_notes_are_replaced_or_added_to_without_a_requeue(client: BackfillClient, raw: "Raw") -> None:
    entry = await dead(client)
    assert (await client.edit_dlq_job(entry.id, DlqEdit(add_note="first"))).notes == "first"
    assert (await client.edit_dlq_job(entry.id, DlqEdit(add_note="second"))).notes == "first\nsecond"
    assert (await client.edit_dlq_job(entry.id, DlqEdit(notes="only this"))).notes == "only this"
    await client.requeue_dlq_job(entry.id)
    out = await client.edit_dlq_job(entry.id, DlqEdit(add_note="while it runs"))
    assert (out.notes, out.is_out, out.history) == ("only this\nwhile it runs", True, None)
    assert (await client.edit_dlq_job(entry.id, DlqEdit(notes=""))).notes is None
    assert len(await raw.jobs()) == 1


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"payload": {"a": math.nan}}, r"\$\.a"),
        ({"payload": ["\0"]}, "NUL"),
        ({"payload": 2**63}, "64 bits"),
        ({"task_identifier": ""}, "task identifier"),
        ({"task_identifier": "t" * 129}, "128"),
        ({"queue": "q" * 129}, "128"),
        ({"priority": 40_000}, "priority"),
        ({"max_attempts": 0}, "max_attempts"),
        ({"notes": "\0"}, "notes"),
        ({"add_note": ""}, "add_note"),
        ({"notes": "a", "add_note": "b"}, "contradict"),
        ({}, "nothing to change"),
    ],
)
def test_what_cannot_be_is_refused_when_it_is_said(values: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidJob, match=said):
        DlqEdit(**values)


async def test_an_edit_of_what_is_out_or_gone_is_refused_whole(client: BackfillClient) -> None:
    entry = await dead(client)
    job = await client.requeue_dlq_job(entry.id)
    before = await entry_of(client, entry.id)
    for edit in (ALL, DlqEdit(payload=2, notes="n")):
        with pytest.raises(DlqEntryNotFound, match=f"as job {job.id}"):
            await client.edit_dlq_job(entry.id, edit)
        with pytest.raises(DlqEntryNotFound, match=f"as job {job.id}"):
            await client.requeue_dlq_job(entry.id, edit=edit, force=True)
    assert await entry_of(client, entry.id) == before
    with pytest.raises(DlqEntryNotFound, match="no entry"):
        await client.edit_dlq_job(entry.id + 1, ALL)


async def test_a_refused_requeue_leaves_the_entry_unedited(client: BackfillClient) -> None:
    entry = await dead(client, job_key="k")
    await client.enqueue("t", "newer", JobSpec(job_key="k"))
    with pytest.raises(KeyInUse):
        await client.requeue_dlq_job(entry.id, "noted", edit=ALL)
    assert await entry_of(client, entry.id) == entry
    with pytest.raises(InvalidJob, match="not both"):
        await client.requeue_dlq_job(entry.id, payload=1, edit=ALL)


async def test_an_edit_of_all_that_are_requeued_leaves_the_others(client: BackfillClient, raw: "Raw") -> None:
    entries = [await dead(client, n, job_key=f"k{n}") for n in range(4)]
    newer = (await client.enqueue("t", "newer", JobSpec(job_key="k1"))).unwrap()
    result = await client.requeue_dlq_jobs(DlqFilter(task_identifier="t"), edit=ALL, notes="moved")
    assert result == (3, 1)
    rows = [row for row in await raw.jobs() if row["id"] != newer.id]
    assert {(row["task"], row["queue"], row["payload"]) for row in rows} == {("better", "q2", '{"right": [1]}')}
    assert await entry_of(client, entries[1].id) == entries[1]
    assert (await entry_of(client, entries[2].id)).history[0]["payload"] == 2


async def test_what_replaced_an_edit_is_in_the_history_too(client: BackfillClient) -> None:
    """An edited job that fails again: payloads before and after the edit are all to be found."""
    entry = await dead(client, "first")
    job = await client.requeue_dlq_job(entry.id, payload="second")
    await client.fail_jobs([job.id], "again")
    back = await entry_of(client, entry.id)
    assert (back.payload, back.failure_count) == ("second", 2)
    assert [was.get("payload") for was in back.history] == ["first", None]


async def test_an_edit_is_undone_when_the_key_is_taken_just_then(client: BackfillClient, raw: "Raw") -> None:
    """As if somebody added a job of the key between the look at it, which finds it free, and the requeue."""
    await raw.run(
        "create function graphile_worker.take() returns trigger language plpgsql as $body$ begin"
        " if new.job_key = 'k1' then perform graphile_worker.add_job('other', job_key => 'k1'); end if;"
        " return new; end $body$"
    )
    entries = [await dead(client, n, job_key=f"k{n}") for n in range(3)]
    await raw.run(
        "create trigger take before update of payload on graphile_worker.backfill_dlq"
        " for each row execute function graphile_worker.take()"
    )
    assert (await client.requeue_dlq_jobs(DlqFilter(), edit=ALL)).requeued == 0  # a page is edited whole or not at all
    assert await client.page_dlq_jobs() == entries
    assert await raw.jobs() == []
    with pytest.raises(KeyInUse):
        await client.requeue_dlq_job(entries[1].id, edit=ALL)
    assert await client.page_dlq_jobs() == entries
