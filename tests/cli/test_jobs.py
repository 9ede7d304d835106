from datetime import timedelta

from tests.cli.conftest import CommandLine, Rows

from backfill import BackfillClient, JobSpec, Queue


async def test_list_pages_and_filters(cli: CommandLine, client: BackfillClient, rows: Rows) -> None:
    assert (await cli("jobs", "list")).out == "no jobs\n"
    await client.enqueue_many([("a", number) for number in range(3)])
    spec = JobSpec(queue=Queue.serial("q"), job_key="k", priority=-7, max_attempts=2)
    await client.enqueue("b", {"text": "[red]\x1b[31m\nnext"}, spec)
    await rows("update graphile_worker._private_jobs set attempts = 2, last_error = E'two\nlines \x1b[2J' where id = 4")
    done = await cli("jobs", "list", "--limit", 2)
    assert done.out.splitlines()[0].split() == [
        "id",
        "task",
        "state",
        "queue",
        "priority",
        "run",
        "at",
        "attempts",
        "key",
        "last",
        "error",
    ]
    assert "2 of 4 in all; the next page: --after 2" in done.out
    done = await cli("jobs", "list", "--after", 2)
    assert "2 of 4 in all\n" in done.out
    line = done.out.splitlines()[2].split()
    assert line[:5] == ["4", "b", "dead", "q", "-7"]
    assert "two lines \\x1b[2J" in done.out
    assert "\x1b" not in done.out
    for option, value in (("--state", "dead"), ("--task", "b"), ("--queue", "q"), ("--key", "k")):
        document = (await cli("jobs", "list", option, value, "--json")).document
        assert ([job["id"] for job in document["jobs"]], document["total"], document["next"]) == ([4], 1, None)
    document = (await cli("jobs", "list", "--queue", "", "--limit", 3, "--json")).document
    assert ([job["id"] for job in document["jobs"]], document["next"]) == ([1, 2, 3], 3)


async def test_show(cli: CommandLine, client: BackfillClient, rows: Rows) -> None:
    await client.enqueue("a", {"n": 1}, JobSpec(timeout=timedelta(seconds=90), flags={"x", "y"}))
    await rows('update graphile_worker._private_jobs set payload = \'{"big": 1e400000, "exact": 0.10}\'')
    done = await cli("jobs", "show", 1)
    fields = dict(line.split(maxsplit=1) for line in done.out.splitlines())
    assert fields["id"].strip() == "1"
    assert fields["state"].strip() == "ready"
    assert fields["attempts"].strip() == "0 of 8"
    assert fields["flags"].strip() == "x, y"
    assert fields["payload"].strip() == '{"big": 1e400000, "exact": 0.10}'
    done = await cli("jobs", "show", 1, "--json")
    assert "1e400000" in done.out
    assert "0.10" in done.out
    document = done.document
    assert (document["id"], document["timeout"], document["flags"], document["state"]) == (1, 90.0, ["x", "y"], "ready")
    done = await cli("jobs", "show", 2, "--json", code=1)
    assert "there is no job 2" in done.err
    assert "there is no job 2" in done.document["error"]["message"]


async def test_cancel_takes_out_what_waits_and_tells_the_workers_of_what_runs(
    cli: CommandLine, client: BackfillClient, rows: Rows
) -> None:
    await client.enqueue_many([("a", number) for number in range(3)])
    await rows("update graphile_worker._private_jobs set locked_at = now(), locked_by = 'backfill-a/1' where id = 2")
    done = await cli("jobs", "cancel", 1, 2, 9, code=1)
    assert done.out.splitlines() == [
        "job 1 (a) cancelled",
        "job 2 (a) is running: worker backfill-a has been told to end it",
        "job 9 was not cancelled: there is no such job",
    ]
    done = await cli("jobs", "cancel", 3, "--json")
    assert [job["id"] for job in done.document["cancelled"]] == [3]
    assert done.document["skipped"] == done.document["requested"] == []
    await rows("update graphile_worker._private_jobs set locked_by = 'worker1' where id = 2")
    done = await cli("jobs", "cancel", 2)
    assert "worker1 is not a worker of backfill's and can't be told" in done.out
    assert "--reason is for dead letters" in (await cli("jobs", "cancel", 2, "--reason", "x", code=2)).err
    assert await rows("select id from graphile_worker._private_jobs") == [(2,)]


async def test_retry_begins_anew(cli: CommandLine, client: BackfillClient, rows: Rows) -> None:
    await client.enqueue("a")
    await rows("update graphile_worker._private_jobs set attempts = 8, run_at = now() + interval '1 day'")
    assert (await cli("jobs", "retry", 1)).out == "job 1 (a) retried\n"
    assert await rows("select attempts, run_at <= now() from graphile_worker._private_jobs") == [(0, True)]


async def test_reschedule(cli: CommandLine, client: BackfillClient, rows: Rows) -> None:
    await client.enqueue("a")
    options = ("--run-at", "2030-01-31T09:00:00Z", "--priority", "bulk_low", "--attempts", 1, "--max-attempts", 4)
    done = await cli("jobs", "reschedule", 1, *options)
    assert done.out == "job 1 (a) rescheduled, due 2030-01-31 09:00:00Z\n"
    found = await rows("select run_at::text, priority, attempts, max_attempts from graphile_worker._private_jobs")
    assert found == [("2030-01-31 09:00:00+00", 5, 1, 4)]
    await cli("jobs", "reschedule", 1, "--run-at", "now")
    assert await rows("select run_at <= now() from graphile_worker._private_jobs") == [(True,)]
    assert "nothing to change" in (await cli("jobs", "reschedule", 1, code=2)).err
