"""The tasks of our side, which do what those of `node/peer.mjs` do: note each run in `public.runs`, perhaps wait, perhaps fail.

`python -m backfill worker tasks` runs them as a process of its own, too.
"""

import asyncio
import os
from typing import Any

import msgspec

from backfill import WorkerContext, task

BEGIN = """
insert into public.runs (side, pid, task, job_id, number, attempt, queue, payload)
values ('ours', $1, $2, $3, $4, $5, $6, $7::text::json) returning id
"""
END = "update public.runs set ended = clock_timestamp() where id = $1"

held: dict[int, asyncio.Event] = {}
"""By the job's number: it waits for this to be set."""


async def note(payload: Any, ctx: WorkerContext) -> None:
    """Note the run; `hold` has it wait for the test, `fails` so many attempts fail."""
    order = payload if isinstance(payload, dict) else {}
    number, job = order.get("number"), ctx.job
    shown = msgspec.json.encode(payload).decode()
    run = await ctx.pool.fetchval(
        BEGIN, os.getpid(), job.task_identifier, job.id, number, ctx.attempt, job.queue_name, shown
    )
    if order.get("hold"):
        go = held[int(order["number"])] = asyncio.Event()
        await go.wait()
    await ctx.pool.execute(END, run)
    if ctx.attempt <= order.get("fails", 0):
        raise RuntimeError(order.get("error") or f"attempt {ctx.attempt} fails")


def noting(name: str) -> Any:
    """A task of that name."""
    return task(name)(note)


shared = noting("shared")
ours_only = noting("ours only")
