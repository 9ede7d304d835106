"""Looking at jobs."""

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest

from backfill import BackfillClient, JobSpec
from backfill.client import inspect
from backfill.errors import InvalidJob
from backfill.model import JobState

if TYPE_CHECKING:
    from tests.client.conftest import Raw

FUTURE = datetime(2100, 1, 1, tzinfo=UTC)


@pytest.fixture
async def ids(client: BackfillClient, raw: "Raw") -> dict[str, int]:
    """A job in each state, by the state's name; the waiting failed one is due, the other is not."""
    found = {}
    for name in ("scheduled", "ready", "running", "failed", "failed later", "dead"):
        spec = JobSpec(
            run_at=FUTURE if name in {"scheduled", "failed later"} else None, queue="q" if "r" in name else None
        )
        found[name] = (await client.enqueue(f"task {name}", {"name": name}, spec)).unwrap().id
    await raw.claim(found["running"])
    for name in ("failed", "failed later"):
        await raw.run("update graphile_worker._private_jobs set attempts = 1 where id = $1", found[name])
    await raw.exhaust(found["dead"])
    return found


async def test_states(client: BackfillClient, ids: dict[str, int]) -> None:
    for name, job_id in ids.items():
        job = await client.get_job(job_id)
        assert job is not None
        assert job.state is JobState(name.split()[0])
        assert job.payload == {"name": name}
    assert {job.id: job.state for job in await client.list_jobs()} == {
        job_id: JobState(name.split()[0]) for name, job_id in ids.items()
    }


@pytest.mark.parametrize("state", list(JobState))
async def test_lists_and_counts_by_state(client: BackfillClient, ids: dict[str, int], state: JobState) -> None:
    wanted = [job_id for name, job_id in ids.items() if name.split()[0] == state]
    assert [job.id for job in await client.list_jobs(state=state)] == wanted
    assert [job.id for job in await client.list_jobs(state=str(state))] == wanted
    assert await client.count_jobs(state=state) == len(wanted)


async def test_lists_and_counts_by_task_queue_and_key(client: BackfillClient, ids: dict[str, int]) -> None:
    keyed = (await client.enqueue("task ready", 1, JobSpec(job_key="k", queue="q"))).unwrap().id
    cases: list[tuple[dict[str, Any], list[int]]] = [
        ({"task": "task ready"}, [ids["ready"], keyed]),
        ({"queue": "q"}, [ids["ready"], ids["running"], ids["failed later"], keyed]),
        ({"queue": ""}, [ids["scheduled"], ids["failed"], ids["dead"]]),
        ({"key": "k"}, [keyed]),
        ({"task": "task ready", "key": "k", "queue": "q"}, [keyed]),
        ({"task": "nothing"}, []),
    ]
    for chosen, wanted in cases:
        assert [job.id for job in await client.list_jobs(**chosen)] == wanted
        assert await client.count_jobs(**chosen) == len(wanted)


async def test_pages_neither_skip_nor_repeat(client: BackfillClient, raw: "Raw") -> None:
    await client.enqueue_many([("t", n) for n in range(25)])
    seen: list[int] = []
    after = 0
    while page := await client.list_jobs(after=after, limit=10):
        seen += [job.payload for job in page]
        after = page[-1].id
        await raw.run("delete from graphile_worker._private_jobs where id = $1", page[0].id)
    assert seen == list(range(25))


async def test_a_job_that_is_gone(client: BackfillClient) -> None:
    assert await client.get_job(10**12) is None


async def test_a_job_whose_task_vanished_is_still_shown(client: BackfillClient, raw: "Raw") -> None:
    job = (await client.enqueue("t")).unwrap()
    await raw.run("delete from graphile_worker._private_tasks")
    shown = await client.get_job(job.id)
    assert shown is not None
    assert shown.task_identifier.startswith("unknown task ")
    assert len(await client.list_jobs()) == 1


async def test_counts_stop_at_ten_thousand(client: BackfillClient, raw: "Raw") -> None:
    await client.enqueue("t")
    insert = (
        "insert into graphile_worker._private_jobs (task_id)"
        " select task_id from graphile_worker._private_jobs, generate_series(1, $1)"
    )
    await raw.run(insert, inspect.MOST_COUNTED - 1)
    assert await client.count_jobs() == 10_000
    await client.enqueue("t")
    assert await client.count_jobs() is None
    assert await client.count_jobs(state="running") == 0


async def test_what_cannot_be_is_refused(client: BackfillClient) -> None:
    with pytest.raises(InvalidJob, match="scheduled, ready, running, failed, dead"):
        await client.list_jobs(state="lost")
    with pytest.raises(InvalidJob, match="state"):
        await client.count_jobs(state="lost")
    with pytest.raises(InvalidJob, match="limit"):
        await client.list_jobs(limit=0)
    with pytest.raises(InvalidJob, match="job_id"):
        await client.get_job(2**63)
