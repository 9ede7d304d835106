"""Work that is not all alike: jobs that fail, large payloads, sync handlers in threads, handlers that wait."""

import asyncio
import base64
import logging
import os
from collections.abc import Awaitable, Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

from benchmarks.suite.bench import Bench, Sample
from benchmarks.suite.drains import Runs, add, drain
from benchmarks.suite.part import Part
from benchmarks.suite.rows import Cases, Row, at_least, reach

from backfill import RetryPolicy, task

WAIT = 0.005  # seconds
SLOTS = 100
AGAIN = RetryPolicy(max_attempts=2, initial_delay=timedelta(milliseconds=50), max_delay=timedelta(milliseconds=50))


async def noop(bench: Bench) -> Sample:
    dsn, jobs, runs = await bench.fresh(), bench.size(60_000), Runs()

    @task("noop")
    async def handler(payload: dict[str, int]) -> None:
        runs()

    await add(dsn, (("noop", {"id": i}) for i in range(jobs)))
    return await drain(bench, dsn, handler, runs, jobs)


async def failing(bench: Bench) -> Sample:
    """A tenth of the jobs fails, is tried again, fails again and goes to the dead letter queue; all of it is logged."""
    dsn, jobs, runs = await bench.fresh(), bench.size(60_000), Runs()

    @task("noop", retry_policy=AGAIN)
    async def handler(payload: dict[str, int]) -> None:
        runs()
        if payload["id"] % 10 == 0:
            raise ConnectionError("refused")

    logger = logging.getLogger("backfill")
    with Path(os.devnull).open("w") as nowhere:  # noqa: ASYNC230 - nothing waits for it
        writer = logging.StreamHandler(nowhere)
        logger.addHandler(writer)
        logging.disable(logging.NOTSET)
        try:
            await add(dsn, ((handler, {"id": i}) for i in range(jobs)))
            return await drain(bench, dsn, handler, runs, jobs)
        finally:
            logger.removeHandler(writer)
            logging.disable(logging.CRITICAL)


async def large(bench: Bench) -> Sample:
    """10 KB in one text that can't be compressed."""
    return await _large(bench, lambda i: {"id": i, "data": base64.b64encode(os.urandom(7_600)).decode()})


async def records(bench: Bench) -> Sample:
    """10 KB of records, as of an order or a report."""
    return await _large(bench, lambda i: {"id": i, "data": [_record(i + n) for n in range(90)]})


def _record(number: int) -> dict[str, Any]:
    return {
        "id": number,
        "name": f"customer {number}",
        "email": f"customer{number}@example.org",
        "total": number * 17.5,
        "tags": ["a", str(number)],
    }


async def _large(bench: Bench, payload: Callable[[int], dict[str, Any]]) -> Sample:
    dsn, jobs, runs = await bench.fresh(), bench.size(20_000), Runs()

    @task("noop")
    async def handler(payload: dict[str, Any]) -> None:
        runs()

    await add(dsn, (("noop", payload(i)) for i in range(jobs)))
    return await drain(bench, dsn, handler, runs, jobs)


async def threads(bench: Bench) -> Sample:
    dsn, jobs, runs = await bench.fresh(), bench.size(30_000), Runs()

    @task("noop")
    def handler(payload: dict[str, int]) -> None:
        runs()

    await add(dsn, (("noop", {"id": i}) for i in range(jobs)))
    return await drain(bench, dsn, handler, runs, jobs)


async def awaiting(bench: Bench) -> Sample:
    dsn, jobs, runs = await bench.fresh(), bench.size(60_000), Runs()

    @task("noop")
    async def handler(payload: dict[str, int]) -> None:
        runs()
        await asyncio.sleep(WAIT)

    await add(dsn, (("noop", {"id": i}) for i in range(jobs)))
    return await drain(bench, dsn, handler, runs, jobs, slots=SLOTS)


async def measure(bench: Bench) -> Cases:
    def of(case: Callable[[Bench], Awaitable[Sample]]) -> Callable[[], Awaitable[Sample]]:
        return lambda: case(bench)

    cases = {
        "no-op": noop,
        "failing": failing,
        "10 KB": large,
        "10 KB of records": records,
        "threads": threads,
        "awaiting": awaiting,
    }
    return await bench.in_rounds({name: of(case) for name, case in cases.items()})


def rows(cases: Cases) -> list[Row]:
    label = "no-op jobs"
    return [
        at_least("10 % of the jobs fail (retry, then DLQ)", 0.5, cases, "failing", "no-op", label=label),
        at_least("payloads of 10 KB, a text that can't be compressed", 0.5, cases, "10 KB", "no-op", label=label),
        at_least("payloads of 10 KB, 90 records", 0.5, cases, "10 KB of records", "no-op", label=label),
        reach("sync handlers in threads", 8_000, cases, "threads"),
        reach(
            "5 ms of awaiting, concurrency 100 (90 % of the arithmetic limit)", 0.9 * SLOTS / WAIT, cases, "awaiting"
        ),
    ]


PARTS = [Part("mixed", "failing jobs, large payloads, threads, awaiting", measure, rows)]
