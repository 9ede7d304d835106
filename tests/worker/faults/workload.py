"""Jobs that go every way a job can go, and a worker that runs them all, in this process or in one of its own.

What a job does stands in its payload. Each has a number, an end that it must come to, and a number of runs; a worker that
runs to its end stops by itself after the last expected run.
"""

import asyncio
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

from tests.conftest import SCHEMA

from backfill.client import BackfillClient
from backfill.db import quote_ident
from backfill.errors import ConnectionTimeout, ValidationFailed
from backfill.model import JobSpec, RetryPolicy, task
from backfill.schema.facts import our_facts, upstream_facts
from backfill.sql import statements, text
from backfill.worker import QueueConfig, WorkerConfig, WorkerContext, WorkerRunner

Note = Callable[[str, int], None]
Arrival = Literal["queued", "requeued", "buried", "used up", "made by another"]

AT_ONCE = RetryPolicy(8, 0.01, 0.01, 1.0, 0.0)
LANES = (QueueConfig.named_queue("own lane"), QueueConfig.default_queue(4))


@dataclass(frozen=True)
class Planned:
    """A job.

    Attributes:
        number: What identifies it.
        does: What its handler does.
        runs: How often it runs.
        end: Where it ends: one of `places`' words, or the empty text for done.
        spec: How it is enqueued.
        arrival: How it comes into the queue.
        successor: The job that its handler adds under its own key.
    """

    number: int
    does: str
    runs: int
    end: str
    spec: dict[str, Any] = field(default_factory=dict)
    arrival: Arrival = "queued"
    successor: int | None = None


JOBS = (
    Planned(1, "succeed", 1, ""),
    Planned(2, "succeed at the second try", 2, "", {"retry_policy": AT_ONCE}),
    Planned(3, "fail for good", 1, "dead"),
    Planned(4, "fail for good", 1, "dead", {"job_key": "four"}),
    Planned(5, "fail", 2, "dead", {"retry_policy": AT_ONCE, "max_attempts": 2}),
    # The dead letter queue has one entry for a key: the second of these takes the first one's over.
    Planned(6, "fail for good", 0, "history", {"job_key": "six"}, "buried"),
    Planned(7, "fail for good", 1, "dead", {"job_key": "six"}),
    Planned(8, "succeed", 1, "", {}, "requeued"),
    Planned(9, "fail for good", 1, "dead", {}, "requeued"),
    Planned(10, "fail for good", 1, "dead", {"job_key": "ten"}, "requeued"),
    Planned(11, "succeed", 1, "", {"queue": "serial"}),
    Planned(12, "fail for good", 1, "dead", {"queue": "serial"}),
    Planned(13, "succeed at the second try", 2, "", {"queue": "serial", "retry_policy": AT_ONCE}),
    Planned(14, "succeed", 1, "", {"queue": "own lane"}),
    Planned(15, "fail for good", 1, "dead", {"queue": "own lane"}),
    Planned(16, "add a successor and fail", 1, "dead", {"job_key": "sixteen"}, successor=17),
    Planned(17, "succeed", 1, "", {"job_key": "sixteen"}, "made by another"),
    Planned(18, "add a successor", 1, "", {"job_key": "eighteen", "queue": "serial"}, successor=19),
    Planned(19, "succeed", 1, "", {"job_key": "eighteen"}, "made by another"),
    Planned(20, "remove itself and fail", 1, "dead", {"job_key": "twenty"}),
    Planned(21, "fail", 0, "dead", {}, "used up"),
    Planned(22, "wait for ever", 1, "queue"),
)
RUNS = sum(planned.runs for planned in JOBS)


async def prepare(client: BackfillClient) -> None:
    """Put the jobs where they are before a worker comes."""
    schema = quote_ident(client.schema)
    for planned in JOBS:
        if planned.arrival == "made by another":
            continue
        outcome = await client.enqueue("work", payload(planned), JobSpec(**planned.spec))
        job = outcome.unwrap()
        if planned.arrival in ("requeued", "buried"):
            entries = await client.fail_jobs([job.id], "for the test")
            if planned.arrival == "requeued":
                await client.requeue_dlq_job(entries[job.id])
        if planned.arrival == "used up":
            await client.pool.execute(
                f"update {schema}._private_jobs set attempts = max_attempts where id = $1", job.id
            )


def payload(planned: Planned) -> dict[str, Any]:
    """What the handler is told."""
    return {"job": planned.number, "does": planned.does}


class Workload:
    """Runs the jobs and notes what its handlers do.

    Attributes:
        runs: How often each job's handler has ended.
        stop: Set after the last run.
    """

    def __init__(self, schema: str, note: Note) -> None:
        self.runs: dict[int, int] = {}
        self.stop = asyncio.Event()
        self._note = note
        self._schema = schema
        self._left = RUNS

    async def build(self, dsn: str) -> WorkerRunner:
        """A runner for the jobs, which polls at its start only."""
        config = WorkerConfig(
            database_url=dsn,
            schema=self._schema,
            queue_configs=LANES,
            poll_interval=timedelta(hours=1),
            shutdown_timeout=timedelta(seconds=20),
        )
        return await WorkerRunner.builder(config).define_job(task("work")(self.work)).build()

    async def work(self, told: dict[str, Any], ctx: WorkerContext) -> None:
        """The handler."""
        planned = JOBS[told["job"] - 1]
        self._note("begin", planned.number)
        try:
            await self._do(planned, ctx)
            self._note("success", planned.number)
        finally:
            self.runs[planned.number] = self.runs.get(planned.number, 0) + 1

    async def _do(self, planned: Planned, ctx: WorkerContext) -> None:
        if planned.successor is not None:
            successor = JOBS[planned.successor - 1]
            await ctx.enqueue("work", payload(successor), JobSpec(**successor.spec))
            self._note("added", successor.number)
        if planned.does == "remove itself and fail":
            await ctx.pool.execute(f"select {quote_ident(self._schema)}.remove_job($1)", ctx.job.key)
        self._left -= 1
        if self._left == 0:
            self.stop.set()
        if planned.does == "wait for ever":
            await asyncio.Event().wait()
        if planned.does == "fail for good":
            raise ValidationFailed("for the test")
        if planned.does.endswith("fail") or (planned.does == "succeed at the second try" and ctx.attempt == 1):
            raise ConnectionTimeout("for the test")


def warm_up() -> None:
    """Read what each process would read at its start."""
    for name in statements():
        text(name, SCHEMA)
    upstream_facts()
    our_facts()


async def work_in_process(dsn: str, schema: str, ledger: str) -> None:
    """Run the jobs to the end in a process of its own; the ledger is a file that survives its death."""
    logging.getLogger("backfill").setLevel(logging.ERROR)
    file = os.open(ledger, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def note(what: str, number: int) -> None:
        os.write(file, f"{what} {number}\n".encode())

    workload = Workload(schema, note)
    async with await workload.build(dsn) as runner:
        running = runner.spawn_background(workload.stop)
        await workload.stop.wait()
        runner.hurry()
        await running


class Ledger:
    """What a worker's process noted; survives its death.

    Attributes:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def lines(self) -> list[str]:
        """All of it, in order: what happened and the job's number."""
        return self.path.read_text(encoding="ascii").splitlines() if self.path.exists() else []

    def numbers(self, what: str) -> list[int]:
        """The numbers of the jobs to which that happened, each as often as it did."""
        return [int(line.removeprefix(what)) for line in self.lines if line.startswith(what)]


def may_be(planned: Planned, ledger: Ledger) -> set[str]:
    """Where a job may be after its worker was killed: still in the queue, or where it ends if it got there.

    Nowhere only if its handler is known to have succeeded, or nothing is known to have added it.
    """
    may = {"queue", planned.end}
    if planned.end == "" and planned.number not in ledger.numbers("success"):
        may.discard("")
    if planned.arrival == "made by another" and planned.number not in ledger.numbers("added"):
        may.add("")
    if planned.arrival == "buried":
        may.add("dead")
    return may
