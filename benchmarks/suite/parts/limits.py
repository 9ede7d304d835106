"""What bounds the rates: CPU, round trips and the disk, each measured by itself, and the rates that follow."""

import os
import time

import asyncpg
from benchmarks.suite.bench import Bench, Sample
from benchmarks.suite.drains import Runs, add, drain
from benchmarks.suite.part import Part
from benchmarks.suite.rows import Cases, Row, has, middle, number

from backfill import task

COUNTERS = """select pg_wal_lsn_diff(pg_current_wal_lsn(), '0/0')::float8 as wal,
(select xact_commit from pg_stat_database where datname = current_database())::float8 as commits"""


async def of_a_drain(bench: Bench) -> Sample:
    """CPU, WAL and commits a job."""
    dsn, jobs, runs = await bench.fresh(), bench.size(60_000), Runs()

    @task("noop")
    async def handler(payload: dict[str, int]) -> None:
        runs()

    await add(dsn, (("noop", {"id": i}) for i in range(jobs)))
    watcher = await asyncpg.connect(dsn)
    await watcher.execute("vacuum analyze")
    before = await watcher.fetchrow(COUNTERS)
    found = await drain(bench, dsn, handler, runs, jobs)
    after = await watcher.fetchrow(COUNTERS)
    await watcher.close()
    assert before is not None
    assert after is not None
    per_job = {what: (after[what] - before[what]) / jobs for what in ("wal", "commits")}
    return {**found, **per_job}


async def of_a_statement(bench: Bench) -> Sample:
    """Microseconds of a round trip, and of a commit with and without waiting for the disk."""
    count = bench.size(2_000)
    connection = await asyncpg.connect(await bench.fresh())
    await connection.execute("create table written (n int)")
    found = {}
    for what, setting, sql in (
        ("round_trip", "on", "select 1"),
        ("commit", "on", "insert into written values (1)"),
        ("commit_unsynced", "off", "insert into written values (1)"),
    ):
        await connection.execute(f"set synchronous_commit = {setting}")
        statement = await connection.prepare(sql)
        began = time.perf_counter()
        for _ in range(count):
            await statement.fetch()
        found[what] = (time.perf_counter() - began) / count * 1e6
    await connection.close()
    return found


async def measure(bench: Bench) -> Cases:
    found = await bench.in_rounds({"drain": lambda: of_a_drain(bench), "statement": lambda: of_a_statement(bench)})
    return {**found, "machine": {"cores": [float(os.cpu_count() or 1)]}}


def no_rows(_: Cases) -> list[Row]:
    """There is no target."""
    return []


def table(cases: Cases) -> str:
    if not has(cases, "drain", "statement", "machine"):
        return ""
    worker, server, wal, commits, rate = (
        middle(cases, "drain", what) for what in ("cpu_worker", "cpu_server", "wal", "commits", "rate")
    )
    trip, commit, unsynced = (middle(cases, "statement", what) for what in ("round_trip", "commit", "commit_unsynced"))
    cores = cases["machine"]["cores"][0]
    fsync = max(0.0, commit - unsynced)
    lines = [
        ("a worker's CPU", f"{number(worker)} µs a job", f"one process: 1 s ÷ {number(worker)} µs", 1e6 / worker),
        (
            "CPU of worker and server together",
            f"{number(worker + server)} µs a job",
            f"{cores:g} cores × 1 s ÷ {number(worker + server)} µs",
            cores * 1e6 / (worker + server),
        ),
        (
            "round trips",
            f"{number(trip)} µs",
            "an add at a time on one connection, if it did nothing: 1 s ÷ that",
            1e6 / trip,
        ),
        ("the disk", f"{number(fsync)} µs a commit", f"a commit at a time: 1 s ÷ {number(commit)} µs", 1e6 / commit),
        (
            "the disk, in a drain",
            f"{commits:.3f} commits, {number(wal)} bytes of WAL a job",
            f"1 s ÷ ({commits:.3f} × {number(fsync)} µs)" if fsync * commits else "nothing to speak of",
            1e6 / (fsync * commits) if fsync * commits else float("inf"),
        ),
    ]
    shown = [f"| {what} | {cost} | {how} | {number(bound)}/s |" for what, cost, how, bound in lines]
    head = ["| what | costs | so at most | that is |", "|---|---|---|---|"]
    return "\n".join([*head, *shown, "", f"Measured in the same drain: {number(rate)} jobs/s."])


PARTS = [Part("limits", "CPU, round trips and the disk, and the arithmetic", measure, no_rows, table)]
