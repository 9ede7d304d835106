"""Tasks for test_processes: a process imports them by this module's name."""

import asyncio
import ctypes
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from backfill.model import task
from backfill.worker.context import WorkerContext


@task("p_write", executor="process")
def write(payload: dict[str, str], ctx: WorkerContext) -> None:
    logging.getLogger("of.a.handler").warning("job %d writes", ctx.job.id, extra={"shelf": 7})
    Path(payload["file"]).write_text(f"{os.getpid()} {payload['text']} {ctx.attempt} {ctx.worker_id}")


@task("p_async", executor="process")
async def write_async(payload: dict[str, str]) -> None:
    await asyncio.to_thread(Path(payload["file"]).write_text, str(os.getpid()))


@task("p_raise", executor="process", max_attempts=3)
def raise_error(payload: str) -> None:
    raise {"value": ValueError, "os": OSError}[payload]("as \x00 told")


@task("p_die", executor="process", max_attempts=1)
def die(payload: str) -> None:
    if payload == "segfault":
        ctypes.string_at(0)
    if payload == "memory":
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30))
        os.kill(os.getpid(), signal.SIGKILL)  # as the out-of-memory killer does
    os._exit(3)


@task("p_hang", executor="process", max_attempts=1)
def hang(payload: dict[str, str]) -> None:
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    Path(payload["file"]).write_text(f"{os.getpid()} {child.pid}")
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    while True:
        time.sleep(600)


@task("p_context", executor="process", max_attempts=1)
async def use_context(payload: str, ctx: WorkerContext) -> None:
    if payload == "pool":
        await ctx.pool.fetchval("select 1")
    await ctx.enqueue("other")


async def _one(item: Any) -> None:
    if item == "bad":
        raise OSError(item)


@task("p_batch", executor="process", batch=True)
def in_batches(items: list[Any]) -> list[Any]:
    return [_one(item) for item in items]
