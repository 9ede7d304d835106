"""The life of a job by the command line alone, and what it refuses."""

import pytest
from tests.cli.conftest import CommandLine, Rows, cli, rows

__all__ = ["cli", "rows"]

JOBS = "select count(*) from graphile_worker._private_jobs"


async def test_the_whole_life_of_a_job(cli: CommandLine, rows: Rows) -> None:
    """R-72."""
    await cli("schema", "check")
    added = (await cli("enqueue", "greet", '{"to": "a"}', "--key", "k", "--queue", "q", "--json")).document
    job_id = added["job"]["id"]
    assert [job["id"] for job in (await cli("jobs", "list", "--json")).document["jobs"]] == [job_id]
    assert (await cli("jobs", "show", job_id, "--json")).document["key"] == "k"
    await cli("jobs", "reschedule", job_id, "--run-at", "+1h", "--priority", 3)
    assert "1" not in (await cli("worker", "mytasks", "--once")).out.split("greeted")
    await cli("jobs", "reschedule", job_id, "--run-at", "now")
    assert "greeted {'to': 'a'}" in (await cli("worker", "mytasks", "--once")).out
    assert await rows(JOBS) == [(0,)]

    await cli("enqueue", "refuse", "1")
    await cli("worker", "mytasks", "--once")
    (entry,) = (await cli("dlq", "list", "--json")).document["jobs"]
    await cli("dlq", "requeue", entry["id"])
    await cli("worker", "mytasks", "--once")
    await cli("dlq", "delete", entry["id"])
    gone = (await cli("enqueue", "greet", "2", "--json")).document["job"]["id"]
    await cli("jobs", "cancel", gone)
    assert await rows(JOBS) == [(0,)]
    assert (await cli("dlq", "list", "--json")).document["total"] == 0


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (("enqueue", "greet", "--key-mode", "replace"), "--key too"),
        (("jobs", "reschedule", 1), "nothing to change"),
        (("jobs", "list", "--limit", -1), "--limit"),
        (("dlq", "list", "--limit", -1), "--limit"),
        (("dlq", "list", "--offset", -1), "--offset"),
    ],
)
async def test_what_is_refused(cli: CommandLine, command: tuple[object, ...], words: str) -> None:
    """R-72."""
    assert words in (await cli(*command, code=2)).err
