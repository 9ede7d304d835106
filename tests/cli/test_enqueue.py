from datetime import UTC, datetime, timedelta

from tests.cli.conftest import CommandLine, Rows

JOB = """
select tasks.identifier, jobs.payload::text, queues.queue_name, jobs.priority, jobs.max_attempts, jobs.key, jobs.flags::text
  from graphile_worker._private_jobs as jobs
  join graphile_worker._private_tasks as tasks on tasks.id = jobs.task_id
  left join graphile_worker._private_job_queues as queues on queues.id = jobs.job_queue_id
 order by jobs.id
"""


async def test_every_option_reaches_the_row(cli: CommandLine, rows: Rows) -> None:
    options = (
        "--priority",
        "fast_high",
        "--queue",
        "q",
        "--key",
        "k",
        "--max-attempts",
        5,
        "--retry",
        "0.5/60/1.5/0.2",
    )
    done = await cli("enqueue", "greet", '{"name": "Ada"}', *options, "--timeout", "1m", "--flag", "a", "--flag", "b")
    assert done.out == "job 1 added: greet\n"
    flags = '{"a": true, "b": true, "backfill:timeout=60": true, "backfill:retry=0.5/60/1.5/0.2": true}'
    assert await rows(JOB) == [("greet", '{"name":"Ada"}', "q", -10, 5, "k", flags)]


async def test_a_job_as_json(cli: CommandLine) -> None:
    done = await cli("enqueue", "greet", "[1.50, 2]", "--retry", "fast", "--json")
    assert done.document["outcome"] == "enqueued"
    job = done.document["job"]
    assert job["id"] == 1
    assert job["payload"] == [1.5, 2]
    assert (job["max_attempts"], job["retry_policy"], job["priority"], job["queue_name"]) == (3, "fast", 0, None)
    assert datetime.fromisoformat(job["run_at"]).utcoffset() is not None


async def test_where_a_payload_comes_from(cli: CommandLine, rows: Rows) -> None:
    (cli.folder / "payload.json").write_text('{"from": "file"}')
    await cli("enqueue", "greet")
    await cli("enqueue", "greet", "null")
    await cli("enqueue", "greet", "@payload.json")
    await cli("enqueue", "greet", "-", stdin='{"from": "stdin"}')
    payloads = [row[1] for row in await rows(JOB)]
    assert payloads == ["{}", "null", '{"from":"file"}', '{"from":"stdin"}']


async def test_times_count_from_the_databases_clock(cli: CommandLine, rows: Rows) -> None:
    before = (await rows("select now()"))[0][0]
    await cli("enqueue", "greet", "--run-at", "+2h")
    await cli("enqueue", "greet", "--run-at", "2030-01-31T09:00:00+01:00")
    await cli("enqueue", "greet", "--run-at", "now")
    after = (await rows("select now()"))[0][0]
    found = [row[0] for row in await rows("select run_at from graphile_worker._private_jobs order by id")]
    assert before <= found[0] - timedelta(hours=2) <= after
    assert found[1] == datetime(2030, 1, 31, 8, tzinfo=UTC)
    assert before <= found[2] <= after


async def test_a_key_replaces_and_a_running_one_can_refuse(cli: CommandLine, rows: Rows) -> None:
    await cli("enqueue", "greet", "1", "--key", "k")
    await cli("enqueue", "greet", "2", "--key", "k")
    assert [row[1] for row in await rows(JOB)] == ["2"]
    await rows("update graphile_worker._private_jobs set locked_at = now(), locked_by = 'somebody'")
    done = await cli("enqueue", "greet", "3", "--key", "k", "--key-mode", "unsafe_dedupe")
    assert done.out == "nothing added: the job with key k is running\n"
    done = await cli("enqueue", "greet", "3", "--key", "k", "--key-mode", "unsafe_dedupe", "--json")
    assert done.document == {"outcome": "already_in_progress", "job_key": "k", "job": None}


async def test_wrong_values_are_usage_errors(cli: CommandLine, rows: Rows) -> None:
    done = await cli("enqueue", "greet", "{oops", "--json", code=2)
    assert "must be JSON" in done.err
    assert "must be JSON" in done.document["error"]["message"]
    done = await cli("enqueue", "greet", "--run-at", "2030-01-31T09:00:00", code=2)
    assert "has no offset" in done.err
    done = await cli("enqueue", "greet", "--key-mode", "replace", code=2)
    assert "--key too" in done.err
    assert await rows(JOB) == []


async def test_a_value_that_cannot_be_is_told_in_a_line(cli: CommandLine) -> None:
    done = await cli("enqueue", "x" * 129, code=1)
    assert done.err.startswith("backfill: task identifier has 129 characters, at most 128 are allowed")
    assert done.err.count("\n") == 1
