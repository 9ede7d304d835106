"""What the worker processes of the fault suite and of the soak run: `backfill worker tests.support.handlers`.

Each run is noted in the ledger; see ``tests.support.ledger``. What a run does says its payload.
"""

import asyncio
import contextlib
import ctypes
import os
import signal
import time
from collections.abc import AsyncIterator
from typing import Any

from backfill import WorkerContext, task
from backfill.errors import ConnectionTimeout, ValidationFailed
from backfill.sql import text

STEP = 0.1  # seconds between signs of life
BEGIN = """
insert into ledger (job, token, pid, queue, priority, run_at, attempt, max_attempts, crashes)
values ($1, $2, $3, $4, $5, $6, $7, $8, $9) returning run
"""
SEEN = "update ledger set seen_at = clock_timestamp() where run = $1"
DONE = "update ledger set seen_at = clock_timestamp(), outcome = 'done' where run = $1"


@contextlib.asynccontextmanager
async def noted(ctx: WorkerContext) -> AsyncIterator[int]:
    """Note a run: that it begins and, if nothing is raised, that it is done. Gives its number."""
    job = ctx.job
    about = (job.queue_name, job.priority, job.run_at, ctx.attempt, job.max_attempts, job.extras.crashes)
    async with ctx.transaction() as connection:
        run = await connection.fetchval(BEGIN, job.id, job.locked_by, os.getpid(), *about)
    yield run
    async with ctx.transaction() as connection:
        await connection.execute(DONE, run)


@task(executor="process")
def dies_elsewhere(payload: dict[str, Any]) -> None:
    """Dies in a process of the pool."""
    die(payload["how"])


@task
async def work(payload: dict[str, Any], ctx: WorkerContext) -> None:
    """Take a while (`seconds`), fail in the first attempts (`fails`), or for good (`refuses`)."""
    async with noted(ctx) as run:
        if payload.get("refuses"):
            raise ValidationFailed("as the payload says")
        if ctx.attempt <= payload.get("fails", 0):
            raise ConnectionTimeout("as the payload says")
        until = time.monotonic() + payload.get("seconds", 0.0)
        while time.monotonic() < until:
            await asyncio.sleep(STEP)
            async with ctx.transaction() as connection:
                await connection.execute(SEEN, run)


@task
async def waits(payload: str, ctx: WorkerContext) -> None:
    """Run until the gate of that name is open."""
    async with noted(ctx) as run:
        while not await ctx.pool.fetchval("select exists (select from gates where name = $1)", payload):
            async with ctx.transaction() as connection:
                await connection.execute(SEEN, run)
            await asyncio.sleep(STEP)


@task
async def idles(_: Any, ctx: WorkerContext) -> None:
    """Run for ever without the database, the first time."""
    async with noted(ctx):
        if not ctx.job.extras.crashes:
            await asyncio.Event().wait()


@task
async def holds(_: Any, ctx: WorkerContext) -> None:
    """Stay for ever, the first time, where `ctx.transaction()` has looked whether the claim stands and has not yet committed."""
    async with noted(ctx) as run:
        if not ctx.job.extras.crashes:
            async with ctx.transaction() as connection:
                await connection.execute(SEEN, run)
                looked = text("hold_claim", os.environ["GRAPHILE_WORKER_SCHEMA"])
                assert await connection.fetchval(looked, ctx.job.id, ctx.job.locked_by)
                await asyncio.Event().wait()


@task
async def quick(payload: Any) -> None:
    """Be as quick as possible, so that many are claimed ahead; until one has the payload `wait`.

    That one keeps the event loop as well, or else what was claimed ahead would soon go back.
    """
    while payload == "wait" and not os.path.exists("go"):  # noqa: ASYNC240, PTH110 - the loop is to be blocked
        time.sleep(STEP)  # noqa: ASYNC251 - idem


@task
async def hogs(payload: float, ctx: WorkerContext) -> None:
    """Keep the event loop busy for some seconds, in Python."""
    async with noted(ctx):
        until = time.monotonic() + payload
        while time.monotonic() < until:
            pass


@task
async def grabs(payload: float, ctx: WorkerContext) -> None:
    """Hold Python's global lock for some seconds, in C, the first time."""
    async with noted(ctx):
        if not ctx.job.extras.crashes:
            ctypes.PyDLL(None).usleep(int(payload * 1_000_000))


@task
async def dies_once(payload: str, ctx: WorkerContext) -> None:
    """Take the worker down, the first time."""
    async with noted(ctx):
        if not ctx.job.extras.crashes:
            die(payload)


@task
async def refuses(payload: Any) -> None:
    """Fail for good."""
    raise ValidationFailed("as asked")


def die(how: str) -> None:
    """End this process in one of the ways in which processes end."""
    if how == "segfault":
        ctypes.string_at(0)
    elif how == "exit":
        os._exit(3)
    elif how == "memory":
        eaten = []
        while True:  # until the test, which stands for the kernel, kills the process that takes the most
            eaten.append(bytearray(b"x") * (8 << 20))
            time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGKILL)
