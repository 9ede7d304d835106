"""One folder of executable files for Node and for us: the same names, and the same told to a program."""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tests.support.graphile import command_line

from backfill import BackfillClient, JobSpec, WorkerConfig, WorkerRunner
from backfill.db import quote_ident

if TYPE_CHECKING:
    from tests.conftest import Database

TELL = f"""#!{sys.executable}
import json, os, sys
told = {{name: value for name, value in os.environ.items() if name.startswith("GRAPHILE_WORKER_JOB")}}
told |= {{name: os.environ.get(name) for name in ("GRAPHILE_WORKER_PAYLOAD_FORMAT", "GRAPHILE_WORKER_TASK_IDENTIFIER")}}
with open(os.environ["TOLD"], "a") as file:
    print(json.dumps([told, sys.stdin.buffer.read().decode(), sys.argv[1:], os.getcwd()]), file=file)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "tasks" / "deep" / "tell.me.py"
    path.parent.mkdir(parents=True)
    path.write_text(TELL)
    path.chmod(0o755)
    return path.parent.parent


async def run_node(database: "Database", folder: Path, told: Path) -> None:
    """Run what is due with Node's command line, whose tasks are in the folder `tasks`."""
    arguments = ("--once", "-c", database.dsn, "-s", database.schema)
    code, printed = await command_line(*arguments, cwd=folder.parent, env={"TOLD": str(told)})
    assert code == 0, printed


def heard(told: Path) -> Mapping[str, Any]:
    environment, stdin, arguments, cwd = json.loads(told.read_text())
    told.unlink()
    return {"environment": environment, "stdin": stdin, "arguments": arguments, "cwd": cwd}


@pytest.fixture
def told(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the script writes; we run in the same folder as Node."""
    monkeypatch.setenv("TOLD", str(folder.parent / "told"))
    monkeypatch.chdir(folder.parent)
    return folder.parent / "told"


@pytest.mark.parametrize("key", [None, "the key"])
@pytest.mark.usefixtures("node_packages")
async def test_node_and_we_tell_a_program_the_same(
    db: "Database", client: BackfillClient, folder: Path, told: Path, key: str | None
) -> None:
    payload = {"ü": [1, 2.5, None, "a\tb"], "b": {}}
    spec = JobSpec(job_key=key, priority=-7, max_attempts=3)
    connection = await db.connect()
    at_one_time = f"update {quote_ident(db.schema)}._private_jobs set run_at = '2026-01-02 03:04:05.6789+00'"

    await client.enqueue("deep/tell", payload, spec)
    await connection.execute(at_one_time)
    await run_node(db, folder, told)
    theirs = heard(told)

    job = (await client.enqueue("deep/tell", payload, spec)).unwrap()
    await connection.execute(at_one_time)
    config = WorkerConfig(database_url=db.dsn, schema=db.schema)
    async with await WorkerRunner.builder(config).define_executables(folder).build() as runner:
        assert await runner.process_available_jobs() == 1
    ours = heard(told)

    assert ours["environment"].pop("GRAPHILE_WORKER_JOB_ID") == str(job.id)
    assert theirs["environment"].pop("GRAPHILE_WORKER_JOB_ID") != str(job.id)
    assert ours == theirs
    assert await connection.fetchval(f"select count(*) from {quote_ident(db.schema)}._private_jobs") == 0
