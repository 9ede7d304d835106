"""`executor="process"`: what happens in there is the job's own affair, and nothing goes on running that should not."""

import asyncio
import json
import logging
import os
import sys
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.support.until import until
from tests.worker import process_tasks as tasks

from backfill.errors import ConfigurationError
from backfill.model import Job, task
from backfill.worker import WorkerConfig, WorkerRunner
from backfill.worker.lease import boot_time
from backfill.worker.processes import Processes
from backfill.worker.wire import Run

if TYPE_CHECKING:
    from tests.worker.conftest import RunWorker, Sql

NEVER = timedelta(hours=1)


def ended(pid: int) -> bool:
    """Whether a process has ended; one that nobody has waited for yet counts as ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


async def pids_in(file: Path, count: int) -> list[int]:
    """The process ids that a handler writes into a file."""

    def written() -> list[int]:
        found = [int(part) for part in file.read_text().split()] if file.exists() else []
        return found if len(found) == count else []

    found: list[int] = await until(written, f"{file.name} has {count} process ids")
    return found


async def test_runs_elsewhere_with_the_job_and_its_log_comes_here(
    run_worker: "RunWorker", sql: "Sql", tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "out"
    with caplog.at_level(logging.INFO):
        async with run_worker(tasks.write, tasks.write_async) as running:
            job = await sql.add("p_write", {"file": str(file), "text": "grüße"})
            await until(sql_empty(sql), "the job is done")
            pid, text, attempt, worker = file.read_text().split()
            assert (text, attempt, worker) == ("grüße", "1", running.worker.id)
            assert int(pid) != os.getpid()

            await sql.add("p_async", {"file": str(file)})
            await until(sql_empty(sql), "the second job is done")
            assert file.read_text() == pid  # the same process ran it
    assert ended(int(pid))
    (record,) = [record for record in caplog.records if record.name == "of.a.handler"]
    assert record.getMessage() == f"job {job} writes"
    assert vars(record)["shelf"] == 7


def sql_empty(sql: "Sql"):  # type: ignore[no-untyped-def] # a coroutine function
    async def empty() -> bool:
        return await sql.count() == 0

    return empty


async def test_what_it_raises_is_classified_and_kept(run_worker: "RunWorker", sql: "Sql") -> None:
    async with run_worker(tasks.raise_error):
        retried = await sql.add("p_raise", "os")
        await sql.add("p_raise", "value")
        (entry,) = await until(sql.dead, "one is a dead letter")
        await until(lambda: sql.value("select attempts from graphile_worker._private_jobs"), "the other has run")
    error = json.loads(entry["last_error"])
    assert (error["type"], error["message"], error["attempt"]) == ("ValueError", "as  told", 1)
    assert "process_tasks.py" in error["traceback"]
    row = await sql.job(retried)
    assert row is not None
    assert row["last_error"] == "OSError: as  told"
    assert row["locked_by"] is None


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("segfault", "killed by SIGSEGV"),
        ("memory", "killed by SIGKILL, perhaps for lack of memory"),
        ("exit", "status 3"),
    ],
)
async def test_its_end_fails_its_own_job_alone(
    run_worker: "RunWorker", sql: "Sql", tmp_path: Path, how: str, said: str
) -> None:
    file = tmp_path / "pids"
    async with run_worker(tasks.die, tasks.hang, tasks.write, shutdown_timeout=timedelta(seconds=4)):
        neighbour = await sql.add("p_hang", {"file": str(file)})
        pid, _ = await pids_in(file, 2)
        await sql.add("p_die", how, max_attempts=1)
        (entry,) = await until(sql.dead, "it is a dead letter")
        assert said in json.loads(entry["last_error"])["message"]
        assert json.loads(entry["last_error"])["retryable"]
        assert not ended(pid)
        row = await sql.job(neighbour)
        assert row is not None
        assert row["locked_by"] is not None

        await sql.add("p_write", {"file": str(tmp_path / "out"), "text": "still"})
        await until((tmp_path / "out").exists, "others go on")


async def test_time_limit_kills_all_of_it_before_the_job_is_released(
    run_worker: "RunWorker", sql: "Sql", tmp_path: Path
) -> None:
    file = tmp_path / "pids"
    flags = ["backfill:timeout=1.5"]
    async with run_worker(tasks.hang):
        await sql.add("p_hang", {"file": str(file)}, flags=flags, max_attempts=1)
        (entry,) = await until(sql.dead, "it is a dead letter")
        assert "time limit of 1.5 s" in json.loads(entry["last_error"])["message"]
        assert all(ended(pid) for pid in await pids_in(file, 2))


async def test_stop_kills_it_and_hands_the_job_back(run_worker: "RunWorker", sql: "Sql", tmp_path: Path) -> None:
    file = tmp_path / "pids"
    async with run_worker(tasks.hang, shutdown_timeout=timedelta(seconds=2)) as running:
        job = await sql.add("p_hang", {"file": str(file)})
        pids = await pids_in(file, 2)
        assert await running.end() == 0
    assert all(ended(pid) for pid in pids)
    row = await sql.job(job)
    assert row is not None
    assert (row["locked_by"], row["attempts"]) == (None, 0)


async def test_context_says_what_it_has_not(run_worker: "RunWorker", sql: "Sql") -> None:
    async with run_worker(tasks.use_context):
        await sql.add("p_context", "pool", max_attempts=1)
        await sql.add("p_context", "enqueue", max_attempts=1)
        entries = await until(lambda: two(sql), "both are dead letters")
    said = sorted(json.loads(entry["last_error"])["message"] for entry in entries)
    assert said[0].startswith("ctx.enqueue is not to be had in a handler with executor='process'")
    assert said[1].startswith("ctx.pool is not to be had in a handler with executor='process'")


async def two(sql: "Sql") -> list[object]:
    found = await sql.dead()
    return list(found) if len(found) == 2 else []


def order(file: Path) -> Run:
    """A job for `hang`, as a slot gives it."""
    from datetime import UTC, datetime

    now = datetime.now(UTC)
    job = Job(
        id=1,
        task_identifier="p_hang",
        payload_text=json.dumps({"file": str(file)}),
        priority=0,
        run_at=now,
        attempts=1,
        max_attempts=1,
        created_at=now,
        updated_at=now,
    )
    return Run("tests.worker.process_tasks", "hang", job, "backfill-test")


async def test_it_ends_itself_when_the_deadline_has_passed(tmp_path: Path) -> None:
    processes = Processes()
    processes.extend(boot_time() + 3600)
    run = asyncio.create_task(processes.run(order(tmp_path / "pids")))
    pids = await pids_in(tmp_path / "pids", 2)
    processes.extend(boot_time())
    with pytest.raises(Exception, match="killed by SIGKILL"):
        await run
    await until(lambda: all(ended(pid) for pid in pids), "the process and its child have ended")
    await processes.close()


WORKER = """
import asyncio, pathlib, sys
from backfill.worker.processes import Processes
from tests.worker.test_processes import order
asyncio.run(Processes().run(order(pathlib.Path(sys.argv[1]))))
"""


async def test_it_ends_with_a_worker_that_is_killed(tmp_path: Path) -> None:
    worker = await asyncio.create_subprocess_exec(sys.executable, "-c", WORKER, str(tmp_path / "pids"))
    pid, _ = await pids_in(tmp_path / "pids", 2)
    worker.kill()
    await worker.wait()
    await until(lambda: ended(pid), "it has ended")


async def test_it_does_not_hear_the_terminal(tmp_path: Path) -> None:
    processes = Processes()
    run = asyncio.create_task(processes.run(order(tmp_path / "pids")))
    pid, _ = await pids_in(tmp_path / "pids", 2)
    assert os.getpgid(pid) != os.getpgid(0)
    run.cancel()
    with pytest.raises(asyncio.CancelledError):
        await run
    assert ended(pid)
    await processes.close()


def test_task_that_no_process_could_import_is_refused(make_config) -> None:  # type: ignore[no-untyped-def] # a fixture
    @task("local", executor="process")
    def local() -> None: ...

    config: WorkerConfig = make_config()
    with pytest.raises(ConfigurationError, match=r"another process can import, and .*local.* is not"):
        WorkerRunner.builder(config).define_job(local)


def test_other_executors_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="executor is 'process' or left out, not 'thread'"):
        task("odd", executor="thread")(print)  # type: ignore[call-overload] # that is what is refused
