"""A worker that is declared dead while its claim is at work gets nothing of it, whichever statement claims."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any

import pytest

from backfill.sql import text

if TYPE_CHECKING:
    from tests.worker.conftest import Claims, Sql, Until

GATE = 7  # of the advisory lock that claims wait for when they have begun to look at jobs
LOOKS = "task_id = any($2::int4[])"
PASSES = f"pg_advisory_xact_lock_shared({GATE})::text is not null"
Take = Callable[["Claims"], Coroutine[Any, Any, list[Any]]]


async def take_next(claims: "Claims") -> list[Any]:
    at = await claims.sql.value("select now()")
    queue = await claims.sql.value("select id from graphile_worker._private_job_queues")
    return await claims.take_next([{"queue_id": queue, "priority": 0, "run_at": at, "id": 0}])  # type: ignore[list-item]  # as a record


CLAIMS: dict[str, tuple[str | None, Take]] = {
    "claim_jobs": ("q", lambda claims: claims.take()),
    "claim_free_jobs": (None, lambda claims: claims.take_free()),
    "claim_queue_head": ("q", lambda claims: claims.take_head("q")),
    "claim_next_of_queues": ("q", take_next),
}


@pytest.mark.parametrize("how", ["declared", "being declared", "swept", "alive"])
@pytest.mark.parametrize("statement", CLAIMS)
async def test_declared_dead_after_the_claim_has_begun_to_look(  # noqa: PLR0917 - fixtures
    sql: "Sql",
    other: "Sql",
    claims: "Claims",
    until: "Until",
    monkeypatch: pytest.MonkeyPatch,
    statement: str,
    how: str,
) -> None:
    """Its snapshot still shows the worker alive."""

    def with_gate(name: str, schema: str) -> str:
        whole = text(name, schema)
        if name != statement:
            return whole
        gated = whole.replace(" and jobs." + LOOKS, f" and jobs.{LOOKS} and {PASSES}")
        gated = gated.replace(" and front." + LOOKS, f" and front.{LOOKS} and {PASSES}")
        assert gated != whole
        return gated

    queue, take = CLAIMS[statement]
    await sql.add(queue_name=queue)
    beat = await sql.value(
        "update graphile_worker.backfill_workers set heartbeat_at = now() - interval '2 hours' returning heartbeat_at"
    )
    await sql.value("select pg_advisory_lock($1)", GATE)
    monkeypatch.setattr("tests.worker.conftest.text", with_gate)
    claim = asyncio.create_task(take(claims))
    waits = (
        "select count(*) from pg_locks where locktype = 'advisory' and not granted"
        " and database = (select oid from pg_database where datname = current_database())"
    )
    await until(lambda: sql.value(waits), "the claim looks at jobs")
    transaction = other.connection.transaction()
    await transaction.start()
    if how != "alive":
        assert len(await other.named("mark_dead", [claims.worker], [beat])) == 1
    if how == "swept":
        assert len(await other.named("remove_dead", [claims.worker])) == 1
    if how != "being declared":
        await transaction.commit()
    await sql.value("select pg_advisory_unlock($1)", GATE)
    got = await claim
    assert len(got) == (how == "alive")
    assert await sql.locks() == ((0, 0) if how != "alive" else (1, int(queue is not None)))
    if how == "being declared":
        await transaction.rollback()
