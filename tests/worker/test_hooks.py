"""Hooks of a worker."""

from typing import TYPE_CHECKING, Any

from backfill.hooks import BeforeJobSchedule, Continue
from backfill.model import task
from backfill.worker import WorkerContext, WorkerRunner

if TYPE_CHECKING:
    from tests.worker.conftest import Sql


async def test_jobs_that_handlers_add_are_asked_about(make_config: Any, sql: "Sql") -> None:
    got: list[Any] = []

    @task("task")
    async def adds(payload: dict[str, Any], ctx: WorkerContext) -> None:
        got.append(payload)
        if payload["n"] < 2:
            await ctx.enqueue("task", {"n": payload["n"] + 1})

    def stamp(event: BeforeJobSchedule) -> Continue:
        return Continue({**event.payload, "stamped": event.identifier})

    await sql.add(payload={"n": 0})
    builder = WorkerRunner.builder(make_config()).define_job(adds).on(BeforeJobSchedule, stamp)
    async with await builder.build() as runner:
        assert await runner.process_available_jobs() == 3
    assert got == [{"n": 0}, {"n": 1, "stamped": "task"}, {"n": 2, "stamped": "task"}]
