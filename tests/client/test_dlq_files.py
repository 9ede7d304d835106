"""The dead letter queue as lines of JSON: out, and back in."""

import json
from collections.abc import AsyncIterator
from contextlib import aclosing
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest

from backfill import BackfillClient, DlqEdit, DlqFilter, JobSpec
from backfill.errors import InvalidJob

if TYPE_CHECKING:
    from tests.client.conftest import Raw

PAYLOADS = [
    '{"backfill:json": "mine"}',
    '{"backfill:json": {"backfill:json": "\\u0000"}}',
    "1e400000",
    f"1{'0' * 6_000}",
    '{"a": "\\u0000", "a":  1}',
    '"\\ud800"',
    "123456789012345678901234567890.10",
    '"line\\nbreak \u2028 \U0001f600"',
    "null",
    "{}",
]
ALL = "select to_jsonb(entries)::text from graphile_worker.backfill_dlq as entries order by id"


@pytest.fixture(autouse=True)
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that every test has several."""
    monkeypatch.setattr("backfill.client.dlq_files._MOST_LINES", 3)


async def bury(client: BackfillClient, raw: "Raw", payloads: list[str], **spec: Any) -> list[int]:
    """Entries of these payloads."""
    ids: list[int] = []
    key = spec.pop("job_key", None)
    for n, payload in enumerate(payloads):
        job = (await client.enqueue("t", None, JobSpec(job_key=key and f"{key}{n}", **spec))).unwrap()
        await raw.run(
            "update graphile_worker._private_jobs set payload = $2::text::json where id = $1", job.id, payload
        )
        ids += (await client.fail_jobs([job.id], "broken")).values()
    return ids


async def exported(client: BackfillClient, **chosen: Any) -> list[str]:
    return [line async for line in client.export_dlq_jobs(DlqFilter(**chosen))]


async def stored(raw: "Raw") -> list[str]:
    return [row[0] for row in await raw.rows(ALL)]


async def test_what_is_exported_comes_back_as_it_was(client: BackfillClient, raw: "Raw") -> None:
    """With columns, constraints and triggers of users; and a requeue gives every payload byte for byte."""
    await raw.run(
        "alter table graphile_worker.backfill_dlq add column team text not null default 'us',"
        " add column size int generated always as (length(task_identifier)) stored,"
        ' add column "odd ""name" json, add column tags text[], add column raw bytea, add column times int default 7'
    )
    await raw.run("create unique index on graphile_worker.backfill_dlq (id, team)")
    ids = await bury(client, raw, PAYLOADS)
    again = await client.requeue_dlq_job(ids[9], "noted")
    await client.fail_jobs([again.id], "again")
    await raw.run(
        "update graphile_worker.backfill_dlq set team = 'them', tags = '{a,\"b c\",null}', raw = '\\xdeadbeef', times = null,"
        ' "odd ""name" = $2::text::json where id = $1',
        ids[0],
        '{"b": 1,\n "a": 2}',
    )
    before = await stored(raw)
    lines = await exported(client)
    assert len(lines) == len(PAYLOADS)
    assert not any("\n" in line for line in lines)
    await raw.run("delete from graphile_worker.backfill_dlq")
    assert await client.import_dlq_jobs(lines) == (10, 0, 0)
    assert await stored(raw) == before
    assert await client.requeue_dlq_jobs(DlqFilter()) == (10, 0)
    assert [row["payload"] for row in await raw.jobs()] == PAYLOADS


async def test_importing_again_changes_nothing(client: BackfillClient, raw: "Raw") -> None:
    await bury(client, raw, ["1", "2", "3", "4"])
    await bury(client, raw, ["5"], job_key="k")
    lines = await exported(client)
    await client.delete_dlq_job(2)
    await client.edit_dlq_job(3, DlqEdit(notes="newer than the file"))
    assert await client.import_dlq_jobs(lines) == (1, 4, 0)
    assert await client.import_dlq_jobs(lines) == (0, 5, 0)
    notes = {entry.id: entry.notes for entry in await client.page_dlq_jobs()}
    assert notes == {1: None, 2: None, 3: "newer than the file", 4: None, 5: None}


async def test_new_entries_get_ids_above_those_imported(client: BackfillClient, raw: "Raw") -> None:
    line = json.dumps({"id": 1_000, "task_identifier": "t", "payload": 1, "failure_reason": "x"})
    assert await client.import_dlq_jobs([line, line.replace("1000", "5")]) == (2, 0, 0)
    (entry_id,) = await bury(client, raw, ["1"])
    assert entry_id == 1_001


async def test_a_key_that_another_entry_has_is_left_out(client: BackfillClient, raw: "Raw") -> None:
    await bury(client, raw, ["1"], job_key="k")
    lines = await exported(client)
    await client.delete_dlq_job(1)
    await bury(client, raw, ['"newer"'], job_key="k")
    assert await client.import_dlq_jobs([*lines, *lines]) == (0, 0, 2)
    assert await client.import_dlq_jobs(lines, new_ids=True) == (0, 0, 1)
    (entry,) = await client.page_dlq_jobs()
    assert entry.payload == "newer"


async def test_an_id_that_another_entry_has_is_refused_unless_ids_are_new(client: BackfillClient, raw: "Raw") -> None:
    await bury(client, raw, ["1", "2", "3", "4", "5"])
    before = await stored(raw)
    lines = [
        json.dumps({"id": entry_id, "task_identifier": "other", "payload": 1, "failure_reason": "x", "job_key": key})
        for entry_id, key in ((11, None), (12, None), (13, None), (14, None), (2, "k"))
    ]
    with pytest.raises(InvalidJob, match=r"line 5: id 2 is that of another entry.*nothing was imported"):
        await client.import_dlq_jobs(lines)
    assert await stored(raw) == before
    assert await client.import_dlq_jobs(lines, new_ids=True) == (5, 0, 0)
    assert [entry.job_key for entry in await client.page_dlq_jobs(DlqFilter(task_identifier="other"))] == [None] * 4 + [
        "k"
    ]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b"{", "truncated"),
        (b"[1]", "object"),
        (b"\xff", "utf-8"),
        ({"task_identifier": None}, r"\$\.task_identifier"),
        ({"task_identifier": ""}, "task identifier"),
        ({"task_identifier": "t" * 129}, "128"),
        ({"job_key": "k\0"}, "NUL"),
        ({"priority": 40_000}, r"\$\.priority"),
        ({"max_attempts": 0}, r"\$\.max_attempts"),
        ({"failure_count": 0}, r"\$\.failure_count"),
        ({"id": 2**62 + 1}, r"\$\.id"),
        ({"failed_at": "2026-01-01T00:00:00"}, "timezone"),
        ({"teem": 1}, "no column teem"),
        ({"payload": "\0"}, "u0000"),
        ({"team": None}, "null value"),
        ({"times": "many"}, "integer"),
        ({"times": 13}, "no_thirteen"),
    ],
)
async def test_a_line_that_cannot_be_is_named_and_nothing_is_imported(
    client: BackfillClient, raw: "Raw", line: Any, said: str
) -> None:
    await raw.run(
        "alter table graphile_worker.backfill_dlq add column team text not null default 'us', add column times int,"
        " add constraint no_thirteen check (times <> 13)"
    )
    good = {"task_identifier": "t", "payload": 1, "failure_reason": "x"}
    bad = line if isinstance(line, bytes) else json.dumps({**good, **line})
    lines = [*[json.dumps(good)] * 4, "\n", bad, json.dumps(good)]
    with pytest.raises(InvalidJob, match=f"^line 6: .*{said}"):
        await client.import_dlq_jobs(lines)
    assert await stored(raw) == []


async def test_what_a_line_does_not_say_gets_its_default(client: BackfillClient, raw: "Raw") -> None:
    await raw.run("alter table graphile_worker.backfill_dlq add column team text not null default 'us'")

    async def lines() -> AsyncIterator[str | bytes]:
        yield b'{"task_identifier": "t", "payload": {"a": 1}, "failure_reason": "x"}\n'
        yield '{"task_identifier": "t", "payload": 2, "failure_reason": "x", "team": "them", "queue_name": ""}\r\n'

    assert await client.import_dlq_jobs(lines()) == (2, 0, 0)
    first, second = [json.loads(row) for row in await stored(raw)]
    assert (first["team"], first["queue_name"], first["failure_count"]) == ("us", "default", 1)
    assert (second["team"], second["queue_name"]) == ("them", "")
    assert datetime.fromisoformat(first["failed_at"]) <= datetime.now(UTC)


async def test_an_entry_that_was_out_is_tied_to_its_job_or_here(client: BackfillClient, raw: "Raw") -> None:
    await bury(client, raw, ["1", "2"])
    jobs = [await client.requeue_dlq_job(entry_id) for entry_id in (1, 2)]
    lines = await exported(client, requeued=True)
    assert len(lines) == 2
    await client.complete_jobs([jobs[1].id])
    await raw.run("delete from graphile_worker.backfill_dlq")
    assert await client.import_dlq_jobs(lines) == (2, 0, 0)
    assert [entry.requeued_job_id for entry in await client.page_dlq_jobs()] == [jobs[0].id, None]
    assert await client.import_dlq_jobs(lines, new_ids=True) == (2, 0, 0)
    assert [entry.requeued_job_id for entry in await client.page_dlq_jobs()] == [jobs[0].id, None, None, None]
    await raw.run("delete from graphile_worker.backfill_dlq")
    await raw.run("update graphile_worker._private_jobs set created_at = created_at - interval '1 day'")
    await client.import_dlq_jobs(lines)  # as where another job has that number
    assert [entry.requeued_job_id for entry in await client.page_dlq_jobs()] == [None, None]


async def test_a_dry_run_leaves_nothing(client: BackfillClient, raw: "Raw") -> None:
    await bury(client, raw, ["1", "2"])
    lines = await exported(client)
    await client.delete_dlq_job(1)
    lines.append(json.dumps({"id": 1_000, "task_identifier": "t", "payload": 1, "failure_reason": "x"}))
    assert await client.import_dlq_jobs(lines, dry_run=True) == (2, 1, 0)
    assert [entry.id for entry in await client.page_dlq_jobs()] == [2]
    assert await bury(client, raw, ["3"]) == [3]


async def test_a_row_that_a_trigger_swallows_is_no_success(client: BackfillClient, raw: "Raw") -> None:
    await bury(client, raw, ["1"])
    lines = await exported(client)
    await raw.run("delete from graphile_worker.backfill_dlq")
    await raw.run(
        "create function graphile_worker.swallow() returns trigger language plpgsql as $body$ begin return null; end $body$"
    )
    await raw.run(
        "create trigger swallow before insert on graphile_worker.backfill_dlq"
        " for each row execute function graphile_worker.swallow()"
    )
    with pytest.raises(InvalidJob, match="line 1: the entry was not stored"):
        await client.import_dlq_jobs(lines)


async def test_an_export_gives_what_was_there_when_it_began(client: BackfillClient, raw: "Raw") -> None:
    await bury(client, raw, [str(n) for n in range(25)])
    found = []
    async with aclosing(client.export_dlq_jobs(DlqFilter(task_identifier="t"), after=2)) as lines:  # type: ignore[type-var] # it is a generator
        async for line in lines:
            found.append(json.loads(line)["id"])
            if len(found) == 1:
                await bury(client, raw, ["1"])
                await client.delete_dlq_job(20)
    assert found == [n for n in range(3, 26) if n != 20]
    with pytest.raises(InvalidJob, match="limit= to the call"):
        await exported(client, limit=4)


async def test_long_lines_come_few_at_a_time(
    client: BackfillClient, raw: "Raw", monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("backfill.client.dlq_files._MOST_TEXT", 2_000)
    await bury(client, raw, [f'"{"x" * 3_000}"'] * 15)
    lines = await exported(client)
    assert len(lines) == 15
    await raw.run("delete from graphile_worker.backfill_dlq")
    assert (await client.import_dlq_jobs(lines)).imported == 15
