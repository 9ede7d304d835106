"""An operator ends the server's processes behind a worker's connections, one by one and all at once, under load."""

import asyncio
from functools import partial

from tests.support.until import until
from tests.worker.conftest import RunWorker, Sql
from tests.worker.faults.conftest import Ran, is_empty

from backfill.client import BackfillClient
from backfill.errors import ConnectionTimeout, ValidationFailed
from backfill.model import JobSpec, RetryPolicy, task
from backfill.worker import QueueConfig, WorkerContext
from backfill.worker.worker import Worker

WAVE = 120  # jobs
LANES = [QueueConfig.named_queue("own"), QueueConfig.default_queue(8)]
SOON = RetryPolicy(3, 0.01, 0.01, 1.0, 0.0)


ROLES = ("claim", "release", "listen", "heartbeat", "maintenance")
END = "select count(pg_terminate_backend(pid)) from pg_stat_activity where application_name = any($1)"


def wave(number: int) -> list[tuple[str, int, JobSpec]]:
    """Jobs of all sorts: every tenth fails at first, every twentieth for good, many are in one of two serial queues."""
    queues = {1: "serial", 2: "own"}
    return [
        ("work", n, JobSpec(queue=queues.get(n % 4), retry_policy=SOON))
        for n in range(number * WAVE, (number + 1) * WAVE)
    ]


async def test_nothing_is_lost_or_done_twice_or_left_locked(
    client: BackfillClient, sql: Sql, run_worker: RunWorker, ran: Ran
) -> None:
    @task("work")
    async def work(number: int, ctx: WorkerContext) -> None:
        await asyncio.sleep(0)
        ran.note((number, ctx.attempt))
        if number % 20 == 5:
            raise ValidationFailed("for good")
        if number % 10 == 3 and ctx.attempt == 1:
            raise ConnectionTimeout("once")

    waves = (["claim"], ["release"], ["listen"], ["heartbeat"], ["maintenance", "claim"], [*ROLES])
    async with run_worker(work, queue_configs=LANES) as running:
        worker, ended = running.worker, 0
        for number, roles in enumerate(waves):
            done, listened = ran.runs.total(), worker.listener.connected_count
            names = [f"{worker.id}:{role}" for role in roles]
            await client.enqueue_many(wave(number))
            for part in (2, 4, 8, 16):  # in different states of the work
                await ran.total(done + part)
                ended += await sql.value(END, names)
            await until(lambda: is_empty(sql), "the wave is done")
            await until(partial(_has_listened, worker, listened + ("listen" in roles)), "it listens")
        await until(lambda: not worker.releaser.held, "all replies have come")
        polls = worker.claimer.polls
    numbers = range(len(waves) * WAVE)
    assert ran.runs == {(n, 1): 1 for n in numbers} | {(n, 2): 1 for n in numbers if n % 10 == 3}
    assert await sql.locks() == (0, 0)
    assert sorted(int(row["payload"]) for row in await sql.dead()) == [n for n in numbers if n % 20 == 5]
    assert polls == 0
    assert ended > len(waves)


def _has_listened(worker: Worker, count: int) -> bool:
    return worker.listener.proven and worker.listener.connected_count >= count
