"""What a job costs: one statement, with nothing before or after it."""

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest

from backfill import BackfillClient, JobSpec
from backfill.db import Session

if TYPE_CHECKING:
    from tests.conftest import Database


@pytest.fixture
async def client(db: "Database") -> AsyncIterator[BackfillClient]:
    """A client whose pool has but one connection, which is therefore not kept between two calls."""
    async with (
        asyncpg.create_pool(db.dsn, min_size=1, max_size=1, connection_class=Session) as pool,
        BackfillClient(pool, db.schema) as client,
    ):
        yield client


async def sent_by(client: BackfillClient, what: Any) -> list[str]:
    """Every query that the client's pool sends while `what` is awaited."""
    sent: list[str] = []

    def note(query: Any) -> None:
        sent.append(query.query)

    async with client.pool.acquire() as connection:
        connection.add_query_logger(note)
    sent.clear()
    await what
    async with client.pool.acquire() as connection:
        connection.remove_query_logger(note)
    return sent


async def test_a_job_without_a_key_is_one_statement(client: BackfillClient) -> None:
    await client.enqueue("known", {})
    assert len(await sent_by(client, client.enqueue("known", {"n": 1}))) == 1


async def test_a_job_with_a_key_is_one_statement(client: BackfillClient) -> None:
    await client.enqueue("known", {})
    sent = await sent_by(client, client.enqueue("known", {"n": 1}, JobSpec(job_key="k")))
    assert len(sent) == 1


async def test_a_session_that_a_user_changed_is_reset_all_the_same(client: BackfillClient) -> None:
    async with client.pool.acquire() as connection:
        await connection.execute("set application_name = 'changed'")
        pid = connection.get_server_pid()
    async with client.pool.acquire() as connection:
        assert connection.get_server_pid() == pid
        assert await connection.fetchval("show application_name") != "changed"


async def test_a_batch_of_five_thousand_is_one_statement(client: BackfillClient) -> None:
    await client.enqueue("known", {})
    jobs = [("known", {"n": number}) for number in range(5000)]
    await client.enqueue_many(jobs)
    sent = await sent_by(client, client.enqueue_many(jobs))
    assert len(sent) == 1


@pytest.mark.parametrize("spec", [None, JobSpec(job_key="k"), JobSpec(job_key="k", job_key_mode="preserve_run_at")])
async def test_a_job_in_the_callers_transaction_is_one_statement(
    db: "Database", client: BackfillClient, spec: JobSpec | None
) -> None:
    connection = await db.connect()
    await client.enqueue("known", {}, spec, connection=connection)
    async with connection.transaction():
        sent: list[str] = []
        with connection.query_logger(lambda query: sent.append(query.query)):
            await client.enqueue("known", {"n": 1}, spec, connection=connection)
    assert len(sent) == 1
