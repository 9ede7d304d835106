"""The two plugins that come with backfill switch what the release of a job does."""

from typing import TYPE_CHECKING, Any

import pytest

from backfill import DlqCleanupPlugin, PermanentFailurePlugin
from backfill.hooks import Plugin
from backfill.model import task
from backfill.worker import WorkerRunner

if TYPE_CHECKING:
    from tests.worker.conftest import Sql


@task("task")
async def picky(payload: Any) -> None:
    if payload == "bad":
        raise ValueError("no such thing")


@pytest.fixture
def build(make_config: Any) -> Any:
    """A function that builds a runner with plugins."""

    async def make(*plugins: Plugin, **settings: Any) -> WorkerRunner:
        builder = WorkerRunner.builder(make_config(**settings)).define_job(picky)
        for plugin in plugins:
            builder.add_plugin(plugin)
        return await builder.build()

    return make


@pytest.mark.parametrize("plugins", [[], [PermanentFailurePlugin()]], ids=["default", "added"])
async def test_an_error_that_is_not_retried_ends_its_job(plugins: list[Plugin], build: Any, sql: "Sql") -> None:
    await sql.add(payload="bad")
    async with await build(*plugins) as runner:
        await runner.process_available_jobs()
    assert await sql.count() == 0
    (dead,) = await sql.dead()
    assert "not retried" in dead["failure_reason"]


@pytest.mark.parametrize("settings", [{}, {"dlq_processor_interval": None}], ids=["dead letters", "none"])
async def test_switched_off_it_is_tried_again_until_its_attempts_are_used_up(
    settings: dict[str, Any], build: Any, sql: "Sql"
) -> None:
    job_id = await sql.add(payload="bad", max_attempts=2)
    async with await build(PermanentFailurePlugin(enabled=False), **settings) as runner:
        await runner.process_available_jobs()
        job = await sql.job(job_id)
        assert job is not None
        assert (job["attempts"], job["locked_at"]) == (1, None)
        await sql.run("update graphile_worker._private_jobs set run_at = now()")
        await runner.process_available_jobs()
    assert [row["failure_reason"] for row in await sql.dead()] == (
        [] if settings else ["Job exceeded maximum retry attempts (2/2)"]
    )
    assert await sql.count("attempts = 2") == len(settings)


async def test_a_deadline_that_has_passed_is_no_error_that_could_be_retried(build: Any, sql: "Sql") -> None:
    await sql.add(flags=["backfill:deadline=2020-01-01T00:00:00Z"])
    async with await build(PermanentFailurePlugin(enabled=False)) as runner:
        await runner.process_available_jobs()
    assert await sql.count() == 0
    assert len(await sql.dead()) == 1


@pytest.mark.parametrize(
    ("plugins", "left"),
    [([], 0), ([DlqCleanupPlugin()], 0), ([DlqCleanupPlugin(enabled=False)], 1)],
    ids=["default", "added", "off"],
)
@pytest.mark.parametrize("key", [None, "k"])
async def test_a_requeued_job_that_is_done_takes_its_dead_letter_with_it_unless_that_is_off(
    plugins: list[Plugin], left: int, key: str | None, build: Any, sql: "Sql"
) -> None:
    await sql.add(payload="bad", job_key=key)
    async with await build(*plugins) as runner:
        await runner.process_available_jobs()
        (dead,) = await sql.dead()
        await runner.client.requeue_dlq_job(dead["id"], payload="good")
        await runner.process_available_jobs()
        assert await sql.count() == 0
        assert runner.worker is not None
        scanner = runner.worker.upkeep.scanner
        assert scanner is not None
        await scanner.run_once()  # which settles what other workers have completed
        entries = await sql.dead()
        assert len(entries) == left
        assert all(entry["requeued_job_id"] is not None for entry in entries)
