from tests.cli.conftest import CommandLine, Rows

from backfill import BackfillClient, JobSpec


async def bury(client: BackfillClient, *names: str) -> None:
    """Have a dead job for each name, of the task of that name."""
    for name in names:
        job = (await client.enqueue(name, {"is": name}, JobSpec(job_key=f"key {name}"))).unwrap()
        await client.fail_jobs([job.id], f"no luck with {name}")


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
    await bury(client, "a", "b", "c")
    done = await cli("dlq", "requeue", "--task", "a", "--dry-run")
    assert done.out == "1 entry would be requeued\n"
    assert await rows("select id from graphile_worker._private_jobs") == []
    assert (await cli("dlq", "requeue", "--all", "--limit", "2")).out == "2 entries requeued\n"
    done = await cli("dlq", "requeue", "--failed-after", "-1h", "--json")
    assert done.document == {"requeued": 1, "skipped": 0, "dry_run": False}
    assert await rows("select count(*) from graphile_worker._private_jobs") == [(3,)]


async def test_delete(cli: CommandLine, client: BackfillClient, rows: Rows) -> None:
    await bury(client, "a", "b", "c", "d")
    assert (await cli("dlq", "delete", 1)).out == "entry 1 deleted\n"
    done = await cli("dlq", "delete", 1, 2, "--json", code=1)
    assert (done.document["deleted"], done.document["skipped"]) == (1, 1)
    assert (await cli("dlq", "delete", "--all", "--dry-run")).out == "2 entries would be deleted\n"
    assert (await cli("dlq", "delete", "--key", "key c", "--json")).document["deleted"] == 1
    assert await rows("select task_identifier from graphile_worker.backfill_dlq") == [("d",)]


async def test_never_all_by_mistake(cli: CommandLine, client: BackfillClient, rows: Rows) -> None:
    await bury(client, "a")
    for command in ("requeue", "delete"):
        assert "which entries?" in (await cli("dlq", command, code=2)).err
        assert "not both" in (await cli("dlq", command, 1, "--task", "a", code=2)).err
        assert "contradict" in (await cli("dlq", command, "--all", "--task", "a", code=2)).err
    assert "exactly one ID" in (await cli("dlq", "requeue", "--all", "--payload", "1", code=2)).err
    assert "goes with IDs" in (await cli("dlq", "requeue", "--all", "--force", code=2)).err
    assert await rows("select id from graphile_worker.backfill_dlq") == [(1,)]
