import asyncio
import json
import os
import pty
import sys

import pytest
from tests.cli.conftest import INT, TERM, CommandLine, Rows

from backfill import BackfillClient, DlqFilter, JobSpec


async def bury(client: BackfillClient, *names: str) -> None:
    """Have a dead job for each name, of the task of that name."""
    for name in names:
        job = (await client.enqueue(name, {"is": name}, JobSpec(job_key=f"key {name}"))).unwrap()
        await client.fail_jobs([job.id], f"no luck with {name}")


async def until_requeued(client: BackfillClient, count: int) -> None:
    """Wait until so many entries are out."""
    async with asyncio.timeout(60):
        while (await client.list_dlq_jobs(DlqFilter(requeued=True))).total != count:
            pass


async def test_list_show_and_stats(cli: CommandLine, client: BackfillClient, rows: Rows) -> None:
    assert (await cli("dlq", "list")).out == "no entries\n"
    await bury(client, "a", "b", "c")
    await rows("update graphile_worker.backfill_dlq set failed_at = now() - interval '3 hours' where id = 1")
    done = await cli("dlq", "list", "--limit", 2)
    assert [line.split()[:2] for line in done.out.splitlines()[1:3]] == [["3", "c"], ["2", "b"]]
    assert "2 of 3 in all; the next page: --offset 2" in done.out
    for options, ids in (
        (("--task", "b"), [2]),
        (("--key", "key c"), [3]),
        (("--queue", "nobody"), []),
        (("--failed-after", "-2h"), [3, 2]),
        (("--failed-before", "-2h"), [1]),
        (("--out",), []),
        (("--here",), [3, 2, 1]),
        (("--offset", "1"), [2, 1]),
    ):
        document = (await cli("dlq", "list", *options, "--json")).document
        assert [entry["id"] for entry in document["jobs"]] == ids, options
    assert document["total"] == 3
    done = await cli("dlq", "show", 2)
    assert "no luck with b" in done.out
    assert '{"is": "b"}' in done.out
    document = (await cli("dlq", "show", 2, "--json")).document
    assert (document["task_identifier"], document["payload"], document["job_key"]) == ("b", {"is": "b"}, "key b")
    assert "has no entry 9" in (await cli("dlq", "show", 9, code=1)).err
    assert "total jobs" in (await cli("dlq", "stats")).out
    document = (await cli("dlq", "stats", "--json")).document
    assert (document["total_jobs"], document["task_breakdown"]) == (3, {"a": 1, "b": 1, "c": 1})


async def test_requeue_by_id(cli: CommandLine, client: BackfillClient) -> None:
    await bury(client, "a", "b")
    done = await cli("dlq", "requeue", 1, "--payload", '{"mended": true}', "--notes", "try this")
    assert done.out == "entry 1 requeued as job 3 (a)\n"
    job = await client.get_job(3)
    assert job is not None
    assert job.payload == {"mended": True}
    entry = await client.get_dlq_job(1)
    assert entry is not None
    assert (entry.requeued_job_id, entry.notes) == (3, "try this")
    done = await cli("dlq", "requeue", 1, 2, 9, "--json", code=1)
    assert (done.document["requeued"], done.document["skipped"]) == (1, 2)
    entries = {entry["id"]: entry for entry in done.document["entries"]}
    assert entries[2]["job"]["payload"] == {"is": "b"}
    assert "already requeued as job 3" in entries[1]["reason"]
    assert "has no entry 9" in entries[9]["reason"]


async def test_a_key_in_use_is_refused_unless_forced(cli: CommandLine, client: BackfillClient) -> None:
    await bury(client, "a")
    await client.enqueue("a", "newer", JobSpec(job_key="key a"))
    done = await cli("dlq", "requeue", 1, code=1)
    assert "job key 'key a' is in use by job 2" in done.out
    done = await cli("dlq", "requeue", 1, "--force")
    assert "requeued as job" in done.out
    assert await client.get_job(2) is None


async def test_requeue_by_filter(cli: CommandLine, client: BackfillClient, rows: Rows) -> None:
    await bury(client, "a", "b", "c", "d")
    done = await cli("dlq", "requeue", "--task", "a", "--dry-run")
    assert done.out.startswith("1 entry would be requeued\n\nthe first of them:\n")
    assert "no luck with a" in done.out
    done = await cli("dlq", "requeue", "--all", "--dry-run", "--after", 1, "--limit", 2, "--json")
    assert [entry["id"] for entry in done.document.pop("sample")] == [2, 3]
    assert done.document["requeued"] == 2
    assert await rows("select id from graphile_worker._private_jobs") == []
    assert (await cli("dlq", "requeue", "--all", "--limit", "2", "--rate", "1000")).out == "2 entries requeued\n"
    await client.enqueue("c", "newer", JobSpec(job_key="key c"))
    done = await cli("dlq", "requeue", "--failed-after", "-1h", "--set-queue", "q", "--set-priority", "-3")
    assert done.out.splitlines()[0] == "1 entry requeued"
    assert "1 skipped: a job with their key is queued or running, or somebody else was faster (3)" in done.out
    (job,) = await client.list_jobs(queue="q")
    assert (job.task_identifier, job.priority) == ("d", -3)
    done = await cli("dlq", "requeue", "--all", "--json")
    assert done.document == {"requeued": 0, "skipped": 1, "dry_run": False, "skipped_ids": [3]}
    assert (await cli("dlq", "requeue", "--all", "--force")).out == "1 entry requeued\n"


async def test_delete(cli: CommandLine, client: BackfillClient, rows: Rows) -> None:
    await bury(client, "a", "b", "c", "d")
    assert (await cli("dlq", "delete", 1)).out == "entry 1 deleted\n"
    done = await cli("dlq", "delete", 1, 2, "--json", code=1)
    assert (done.document["deleted"], done.document["skipped"]) == (1, 1)
    assert (await cli("dlq", "delete", "--all", "--dry-run")).out.startswith("2 entries would be deleted\n")
    assert (await cli("dlq", "delete", "--key", "key c", "--json")).document["deleted"] == 1
    assert await rows("select task_identifier from graphile_worker.backfill_dlq") == [("d",)]


async def test_prune(cli: CommandLine, client: BackfillClient, rows: Rows) -> None:
    await bury(client, "a", "b", "c")
    await rows("update graphile_worker.backfill_dlq set failed_at = now() - interval '8 days' where id > 1")
    assert "--older-than" in (await cli("dlq", "prune", code=2)).err
    done = await cli("dlq", "prune", "--older-than", "1w", "--dry-run")
    assert done.out.startswith("2 entries would be deleted\n")
    assert (await cli("dlq", "prune", "--older-than", "1w", "--task", "b")).out == "1 entry deleted\n"
    done = await cli("dlq", "prune", "--older-than", "1w", "--json")
    assert done.document == {"deleted": 1, "skipped": 0, "dry_run": False}
    assert [entry.id for entry in await client.page_dlq_jobs()] == [1]


async def test_edit_and_notes(cli: CommandLine, client: BackfillClient) -> None:
    await bury(client, "a")
    assert (await cli("dlq", "edit", 1, "--notes", "seen", "--payload", "null")).out == "entry 1 changed\n"
    done = await cli(
        "dlq", "edit", 1, "--add-note", "twice", "--task", "z", "--queue", "", "--max-attempts", 2, "--json"
    )
    assert (done.document["task_identifier"], done.document["max_attempts"]) == ("z", 2)
    entry = await client.get_dlq_job(1)
    assert entry is not None
    assert (entry.payload, entry.notes, len(entry.history)) == (None, "seen\ntwice", 2)
    assert "seen twice" in (await cli("dlq", "list")).out
    assert "twice" in (await cli("dlq", "show", 1)).out
    assert "what is to be changed" in (await cli("dlq", "edit", 1, code=2)).err
    assert "contradict" in (await cli("dlq", "edit", 1, "--notes", "a", "--add-note", "b", code=2)).err
    assert "task identifier" in (await cli("dlq", "edit", 1, "--task", "t" * 200, code=2)).err
    assert "no entry 2" in (await cli("dlq", "edit", 2, "--notes", "x", code=1)).err
    await client.requeue_dlq_job(1)
    assert "already requeued" in (await cli("dlq", "edit", 1, "--task", "x", code=1)).err


async def test_pages_in_the_order_of_ids(cli: CommandLine, client: BackfillClient) -> None:
    await bury(client, "a", "b", "c")
    done = await cli("dlq", "list", "--after", 0, "--limit", 2)
    assert [line.split()[0] for line in done.out.splitlines()[1:3]] == ["1", "2"]
    assert "2 of 3 in all; the next page: --after 2" in done.out
    document = (await cli("dlq", "list", "--after", 2, "--json")).document
    assert [entry["id"] for entry in document["jobs"]] == [3]
    assert "contradict" in (await cli("dlq", "list", "--after", 2, "--offset", 1, code=2)).err


@pytest.mark.parametrize("command", ["requeue", "delete"])
async def test_an_interrupted_command_says_how_to_go_on_and_does(
    cli: CommandLine, client: BackfillClient, command: str
) -> None:
    await bury(client, "a", "b", "c", "d")
    word = f"{command.rstrip('e')}ed"
    async with cli.running("dlq", command, "--all", "--rate", "0.4") as process:
        await process.said(f" of 4 {word}, up to entry ")
        process.signal(INT)
        assert await process.ended() == 130
        assert any("the same command goes on; with --after " in line for line in process.logs)
        assert "Traceback" not in "".join(process.logs)
    (said,) = process.lines
    number = int(said.split()[0])
    assert 1 <= number < 4
    assert (await cli("dlq", command, "--all", "--json")).document == {
        word: 4 - number,
        "skipped": 0,
        "dry_run": False,
    }


async def test_a_signal_does_not_wait_for_the_rate(cli: CommandLine, client: BackfillClient) -> None:
    await bury(client, "a", "b")
    async with cli.running("dlq", "requeue", "--all", "--rate", "0.001", "--json") as process:
        await until_requeued(client, 1)
        process.signal(TERM)
        assert await process.ended() == 130
    document = json.loads("".join(process.lines))
    assert document == {"requeued": 1, "skipped": 0, "dry_run": False, "interrupted": True, "last_id": 1}


async def test_a_bar_on_a_terminal(cli: CommandLine, client: BackfillClient) -> None:
    await bury(client, "a", "b")
    terminal, end = pty.openpty()
    try:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "backfill", "dlq", "requeue", "--all",
            cwd=cli.folder, env=cli.environment, stderr=end, stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        out, _ = await process.communicate()
        assert out == b"2 entries requeued\n"
        assert b"2/2" in os.read(terminal, 100_000)
    finally:
        os.close(terminal)
        os.close(end)


async def test_never_all_by_mistake(cli: CommandLine, client: BackfillClient, rows: Rows) -> None:
    await bury(client, "a")
    for command in ("requeue", "delete"):
        assert "which entries?" in (await cli("dlq", command, code=2)).err
        assert "not both" in (await cli("dlq", command, 1, "--task", "a", code=2)).err
        assert "contradict" in (await cli("dlq", command, "--all", "--task", "a", code=2)).err
        assert "not both" in (await cli("dlq", command, 1, "--rate", "1", code=2)).err
    assert await rows("select id from graphile_worker.backfill_dlq") == [(1,)]


async def test_export_and_import(cli: CommandLine, client: BackfillClient, rows: Rows) -> None:
    await bury(client, "a", "b", "c")
    everything = "select to_jsonb(entries)::text from graphile_worker.backfill_dlq as entries order by id"
    before = await rows(everything)
    lines = (await cli("dlq", "export", "--task", "b")).out.splitlines()
    assert [json.loads(line)["id"] for line in lines] == [2]
    assert (await cli("dlq", "export", "-o", "x.jsonl")).out == "3 entries exported to x.jsonl\n"
    assert [path.name for path in cli.folder.iterdir() if "jsonl" in path.name] == ["x.jsonl"]
    assert (await cli("dlq", "delete", "--all")).out == "3 entries deleted\n"
    assert (await cli("dlq", "import", "x.jsonl", "--dry-run")).out == "3 entries would be imported\n"
    assert (await cli("dlq", "import", "-", stdin=lines[0])).out == "1 entry imported\n"
    assert (await cli("dlq", "import", "x.jsonl")).out == "2 entries imported\n1 there already\n"
    assert await rows(everything) == before
    done = await cli("dlq", "import", "x.jsonl", "--new-ids", "--json")
    assert done.document == {"imported": 0, "present": 0, "key_taken": 3, "dry_run": False}
    (cli.folder / "x.jsonl").write_text("{}\n")
    assert "line 1:" in (await cli("dlq", "import", "x.jsonl", code=1)).err
    done = await cli("dlq", "export", "--output", "x.jsonl", "--out", "--json")
    assert done.document == {"exported": 0, "file": "x.jsonl"}
    assert (cli.folder / "x.jsonl").read_text() == ""
    assert "--output FILE" in (await cli("dlq", "export", "--json", code=2)).err


async def test_an_export_that_fails_leaves_the_file_that_was_there(cli: CommandLine) -> None:
    (cli.folder / "x.jsonl").write_text("old")
    await cli("dlq", "export", "-o", "x.jsonl", "--schema", "nobody", code=1)
    assert (cli.folder / "x.jsonl").read_text() == "old"
    assert [path.name for path in cli.folder.iterdir() if "jsonl" in path.name] == ["x.jsonl"]
