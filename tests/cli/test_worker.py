"""What `backfill worker` runs, and with which settings. How it stops: test_stopping."""

import importlib.util
import json
from pathlib import Path

import pytest
from tests.cli.conftest import INT, TASKS, TERM, CommandLine, Rows
from tests.support.until import until

from backfill import BackfillClient, JobSpec

LEFT = "select priority from graphile_worker._private_jobs order by priority"


async def test_once_runs_what_is_due_and_counts(cli: CommandLine, client: BackfillClient, rows: Rows) -> None:
    await client.enqueue_many([("greet", number) for number in range(3)])
    await client.enqueue("refuse")
    done = await cli("worker", "mytasks", "--once")
    assert done.out.splitlines()[-1] == "4 jobs run"
    assert sorted(done.out.splitlines()[:-1]) == ["greeted 0", "greeted 1", "greeted 2"]
    assert "job 4 (refuse) failed for good" in done.err
    assert await rows("select failure_reason like '%not this one' from graphile_worker.backfill_dlq") == [(True,)]
    assert (await cli("worker", "mytasks", "--once", "--json")).document == {"runs": 0}


async def test_it_runs_until_it_is_told_to_stop(cli: CommandLine, client: BackfillClient) -> None:
    async with cli.running("worker", "mytasks:greet", "--log-jobs") as worker:
        await worker.said("started")
        await client.enqueue("greet", "somebody")
        await worker.said("greeted somebody", "job 1 (greet) done, attempt 1 [job_id=1 task=greet attempt=1]")
        worker.signal(TERM)
        assert await worker.ended() == 0


async def test_json_is_the_last_word(cli: CommandLine, client: BackfillClient) -> None:
    (cli.folder / "silent.py").write_text("from backfill import task\n@task\nasync def greet(payload): ...\n")
    async with cli.running("worker", "silent", "--json", "--log-format", "json", "--log-jobs") as worker:
        await client.enqueue("greet")
        await worker.said("done, attempt 1")
        worker.signal(INT)
        assert await worker.ended() == 0
        assert json.loads("\n".join(worker.lines)) == {"runs": 1, "abandoned": 0}
        logs = [json.loads(line) for line in worker.logs]
    job = next(log for log in logs if "job_id" in log)
    assert (job["level"], job["job_id"], job["task"], job["attempt"]) == ("INFO", 1, "greet", 1)


async def test_a_function_that_makes_the_builder_gets_the_settings(cli: CommandLine, client: BackfillClient) -> None:
    source = """
from backfill import WorkerRunner
from mytasks import greet
def make(config):
    print(config.concurrency, config.shutdown_timeout, config.dlq_processor_interval, config.poll_interval, flush=True)
    return WorkerRunner.builder(config).define_job(greet)
"""
    (cli.folder / "app.py").write_text(source)
    await client.enqueue("greet", "it")
    options = ("--concurrency", 3, "--shutdown-timeout", "2m", "--poll-interval", "50ms", "--no-dlq")
    done = await cli("worker", "app:make", "--once", *options)
    assert done.out.splitlines() == ["3 0:02:00 None 0:00:00.050000", "greeted it", "1 job run"]


async def test_forbidden_flags_by_option_and_by_environment(
    cli: CommandLine, client: BackfillClient, rows: Rows
) -> None:
    await client.enqueue("greet", "slow", JobSpec(flags={"slow"}))
    await client.enqueue("greet", "odd", JobSpec(flags={"odd one"}))
    await client.enqueue("greet", "plain")
    done = await cli("worker", "mytasks", "--once", "--forbid-flag", "slow", "--forbid-flag", "odd one")
    assert done.out.splitlines() == ["greeted plain", "1 job run"]
    done = await cli("worker", "mytasks", "--once", BACKFILL_FORBIDDEN_FLAGS="slow,other")
    assert done.out.splitlines() == ["greeted odd", "1 job run"]
    assert await rows("select attempts from graphile_worker._private_jobs") == [(0,)]


def executable(cli: CommandLine, name: str, content: str) -> None:
    path = cli.folder / "scripts" / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/bin/sh\n{content}")
    path.chmod(0o755)


async def test_a_folder_of_executables_is_enough(cli: CommandLine, client: BackfillClient, rows: Rows) -> None:
    executable(cli, "say.sh", "cat; pwd")
    executable(cli, "fail.sh", "echo oh >&2; exit 4")
    await client.enqueue("say", "it")
    await client.enqueue("fail", {}, JobSpec(max_attempts=1))
    await client.enqueue("greet", "too")
    done = await cli("worker", "--task-folder", "scripts", "--once")
    assert done.out.splitlines() == ["2 jobs run"]
    assert f'job 1 (say): {{"payload":"it"}}{cli.folder}' in done.err
    assert "job 2 (fail): oh" in done.err
    assert await rows("select last_error ->> 'message' from graphile_worker.backfill_dlq") == [
        ("exit code 4, and this at the end of its stderr:\noh",)
    ]
    done = await cli("worker", "mytasks", "--task-folder", "scripts", "--once")
    assert done.out.splitlines() == ["greeted too", "1 job run"]


async def test_without_tasks_it_says_how_to_name_some(cli: CommandLine) -> None:
    done = await cli("worker", "--once", code=2)
    assert "name a MODULE that has tasks, or a folder of executable files with --task-folder" in done.err
    done = await cli("worker", "--once", "--task-folder", "nowhere", code=1)
    assert "nowhere does not exist" in done.err


async def test_lanes_say_what_runs(cli: CommandLine, client: BackfillClient, rows: Rows) -> None:
    for priority in (-9, -1, 5):
        await client.enqueue("greet", priority, JobSpec(priority=priority))
    await client.enqueue("greet", "q", JobSpec(queue="q", priority=7))
    done = await cli("worker", "mytasks", "--once", "--lane", "fast=1,priority=..-5")
    assert done.out.splitlines() == ["greeted -9", "1 job run"]
    done = await cli("worker", "mytasks", "--once", "--lane", "q=1,queue=q", "--lane", "fast=2,priority=-4..0")
    assert sorted(done.out.splitlines()) == ["2 jobs run", "greeted -1", "greeted q"]
    assert await rows(LEFT) == [(5,)]


async def test_the_environment_sets_the_lanes(cli: CommandLine, client: BackfillClient) -> None:
    given = {"FAST_QUEUE_CONCURRENCY": "3", "BULK_QUEUE_CONCURRENCY": "2", "DEAD_LETTER_QUEUE_CONCURRENCY": "0"}
    async with cli.running("worker", "mytasks", **given) as worker:
        await worker.said("lane fast (3 for priorities -32768..-1), lane bulk (2 for priorities 0..32767)")
    done = await cli("worker", "mytasks", FAST_QUEUE_CONCURRENCY="many", code=1)
    assert "FAST_QUEUE_CONCURRENCY='many'" in done.err


@pytest.mark.skipif(importlib.util.find_spec("uvloop") is None, reason="uvloop is not installed")
async def test_uvloop_is_used_where_it_is_installed(cli: CommandLine, client: BackfillClient) -> None:
    source = (
        "import asyncio\nfrom backfill import task\n@task\nasync def tell(): print(type(asyncio.get_running_loop()))\n"
    )
    (cli.folder / "loops.py").write_text(source)
    await client.enqueue("tell")
    assert "uvloop" in (await cli("worker", "loops", "--once")).out


@pytest.mark.parametrize("ending", ["raise ValueError('at import')", "raise SystemExit('at import')", "import absent"])
async def test_a_module_that_fails_shows_the_users_code_only(bare_cli: CommandLine, ending: str) -> None:
    (bare_cli.folder / "outer.py").write_text("import inner\n")
    (bare_cli.folder / "inner.py").write_text(f"def fail():\n    {ending}\nfail()\n")
    done = await bare_cli("worker", "outer", code=1)
    lines = done.err.splitlines()
    assert lines[:2] == ["backfill: module outer cannot be imported:", "Traceback (most recent call last):"]
    files = [line.split('"')[1].rsplit("/", 1)[1] for line in lines if line.startswith('  File "')]
    assert files == ["outer.py", "inner.py", "inner.py"]
    assert ending.rsplit(maxsplit=1)[-1].strip("()'") in lines[-1]


async def test_what_is_wrong_is_told_before_anything_starts(cli: CommandLine, bare_cli: CommandLine) -> None:
    (cli.folder / "twice.py").write_text(
        "from mytasks import greet\nfrom backfill import task\n@task('greet')\nasync def other(payload): ...\n"
    )
    done = await cli("worker", "twice", code=1)
    assert "two tasks are called 'greet'" in done.err
    assert f"{cli.folder}/mytasks.py:5" in done.err
    assert f"{cli.folder}/twice.py:3" in done.err
    ready = "from backfill import *\nfrom mytasks import greet\nready = WorkerRunner.builder(WorkerConfig(database_url='x'))\n"
    (cli.folder / "ready.py").write_text(ready)
    done = await cli("worker", "ready:ready", "--concurrency", 3, code=2)
    assert "--concurrency: ready:ready is a builder with its own WorkerConfig" in done.err
    assert "exclude each other" in (await cli("worker", "mytasks", "--concurrency", 1, "--lane", "a=1", code=2)).err
    assert (
        "two lanes have the name 'a'" in (await cli("worker", "mytasks", "--lane", "a=1", "--lane", "a=2", code=1)).err
    )
    assert "leave --processes out" in (await cli("worker", "mytasks", "--once", "--processes", 2, code=2)).err
    assert "no module 'nothing'" in (await cli("worker", "nothing", code=1)).err
    done = await bare_cli("worker", "mytasks", code=1)
    assert "set DATABASE_URL" in done.err


async def test_processes_share_the_work(cli: CommandLine, client: BackfillClient, rows: Rows) -> None:
    source = """
import asyncio, os
from backfill import task
@task
async def who(payload):
    print("ran in", os.getpid(), flush=True)
    await asyncio.sleep(3600)
"""
    (cli.folder / "who.py").write_text(source)
    await client.enqueue_many([("who", number) for number in range(2)])
    async with cli.running("worker", "who", "--processes", 2, "--concurrency", 1, "--json") as parent:
        await parent.printed("ran in", 2)
        pids = {int(line.split()[-1]) for line in parent.lines}
        assert len(pids - {parent.process.pid}) == 2
        parent.signal(TERM)
        await until(lambda: sum("stopping" in line for line in parent.logs) == 2, "both were told")
        parent.signal(TERM)
        assert await parent.ended() == 0
        document = json.loads("\n".join(line for line in parent.lines if "ran in" not in line))
    assert {one["pid"] for one in document["processes"]} == pids
    assert [one["exit_code"] for one in document["processes"]] == [0, 0]
    assert await rows("select attempts, locked_by from graphile_worker._private_jobs") == [(0, None), (0, None)]


async def test_an_embedded_server_for_worker_and_enqueue(bare_cli: CommandLine, folder: Path) -> None:
    (bare_cli.folder / "mytasks.py").write_text(TASKS)
    where = ("--database-url", f"embedded://{folder}/data")
    async with bare_cli.running("worker", "mytasks", *where) as worker:
        await worker.said("other programs reach it as postgresql://", "started")
        url = next(line.split()[-1] for line in worker.logs if "other programs reach it" in line)
        await bare_cli("enqueue", "greet", '"by folder"', *where)
        await bare_cli("enqueue", "greet", '"by url"', "--database-url", url)
        await worker.said("greeted by folder", "greeted by url")
        worker.signal(TERM)
        assert await worker.ended() == 0
    assert (await bare_cli("jobs", "list", *where)).out == "no jobs\n"
