"""A schema at a later revision, or with columns that somebody added: jobs come into it by Graphile Worker's functions alone."""

import logging
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

import asyncpg
import msgspec
import pytest

from backfill.client import BackfillClient
from backfill.model import DlqFilter, EnqueueOutcome, Job, JobSpec
from backfill.schema import is_familiar
from backfill.sql import quote_ident

if TYPE_CHECKING:
    from tests.conftest import Database

CHANGES = {
    "later revision": "insert into {schema}.migrations (id, breaking) values (21, false)",
    "another column": "alter table {schema}._private_jobs add column tenant int",
}

# Who calls is seen in the stack of functions.
GUARD = """
create function public.only_by_functions() returns trigger language plpgsql as $$
declare
    stack text;
begin
    get diagnostics stack = pg_context;
    if stack not like '%.add_job%' then
        raise exception 'this job does not come from add_job';
    end if;
    return new;
end
$$;
create trigger guard before insert on {schema}._private_jobs for each row execute function public.only_by_functions();
"""


async def stored(client: BackfillClient, job: Job) -> Job:
    """The job as the database has it, without what only a look at it tells."""
    found = await client.get_job(job.id)
    assert found is not None
    return msgspec.structs.replace(found, state=None)


@pytest.fixture(params=CHANGES)
async def connection(request: pytest.FixtureRequest, db: "Database") -> asyncpg.Connection:
    connection = await db.connect()
    for statement in (CHANGES[request.param], GUARD):
        await connection.execute(statement.format(schema=quote_ident(db.schema)))
    return connection


@pytest.fixture(params=[True, False], ids=["install", "no install"])
async def careful(
    connection: asyncpg.Connection, db: "Database", request: pytest.FixtureRequest
) -> AsyncIterator[BackfillClient]:
    async with BackfillClient(db.dsn, schema=db.schema, install=request.param) as client:
        yield client


async def test_the_client_says_so_and_adds_by_add_job_alone(
    careful: BackfillClient, connection: asyncpg.Connection, caplog: pytest.LogCaptureFixture
) -> None:
    spec = JobSpec(priority=-3, queue="serial", max_attempts=4, flags=frozenset({"flag"}))
    plain = (await careful.enqueue("one", {"n": 1}, spec)).unwrap()
    assert await stored(careful, plain) == plain
    keyed = (await careful.enqueue("one", [1], JobSpec(job_key="k"))).unwrap()
    many = await careful.enqueue_many([("one", {"n": 2}, spec), ("two", None, JobSpec(job_key="m")), ("three", "x")])
    jobs = [outcome.unwrap() for outcome in many]
    assert [(job.task_identifier, job.payload, job.queue_name) for job in jobs] == [
        ("one", {"n": 2}, "serial"),
        ("two", None, None),
        ("three", "x", None),
    ]
    assert [await stored(careful, job) for job in [keyed, *jobs]] == [keyed, *jobs]
    assert await careful.enqueue_stream(("stream", n) for n in range(5)) == 5
    outcomes: list[EnqueueOutcome] = []
    async with connection.transaction():
        outcomes.append(await careful.enqueue("own", connection=connection))
        outcomes += await careful.enqueue_many([("own", n) for n in range(2)], connection=connection)
    assert await careful.count_jobs(task="own") == len(outcomes) == 3


async def test_it_is_warned_of(
    connection: asyncpg.Connection, db: "Database", caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "backfill"):
        async with BackfillClient(db.dsn, schema=db.schema, install=False):
            pass
    assert caplog.text.count("Jobs are added by add_job alone, one by one") == 1
    assert not await is_familiar(connection, db.schema)


async def test_dead_letters_come_back_by_add_job(careful: BackfillClient, connection: asyncpg.Connection) -> None:
    specs = [JobSpec(queue="serial", flags=frozenset({"flag"})), JobSpec(job_key="a"), JobSpec(job_key="b"), JobSpec()]
    jobs = [(await careful.enqueue("one", {"n": n}, spec)).unwrap() for n, spec in enumerate(specs)]
    await careful.fail_jobs([job.id for job in jobs], "on purpose")
    (await careful.enqueue("one", spec=JobSpec(job_key="b"))).unwrap()
    entries = sorted((await careful.list_dlq_jobs()).jobs, key=lambda entry: entry.id)
    again = await careful.requeue_dlq_job(entries[0].id, payload={"n": 100})
    assert (again.queue_name, again.payload, again.flags) == ("serial", {"n": 100}, frozenset({"flag"}))
    assert await careful.requeue_dlq_jobs(DlqFilter()) == (2, 1)
    out = (await careful.list_dlq_jobs(DlqFilter(requeued=True))).jobs
    assert [entry.job_key for entry in sorted(out, key=lambda entry: entry.id)] == [None, "a", None]
    there = await connection.fetch(
        f"select id, key from {quote_ident(careful.schema)}._private_jobs where flags ? 'backfill:dlq'"
    )
    assert {entry.requeued_job_id for entry in out} == {row["id"] for row in there}
    assert again.id in {row["id"] for row in there}


async def test_what_is_known_takes_the_short_way(db: "Database", client: BackfillClient) -> None:
    """The guard does notice jobs that are inserted otherwise."""
    connection = await db.connect()
    assert await is_familiar(connection, db.schema)
    await connection.execute(GUARD.format(schema=quote_ident(db.schema)))
    with pytest.raises(Exception, match="does not come from add_job"):
        await client.enqueue("one")
