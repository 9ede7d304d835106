"""What waits, and in which queues, against the speed of claims: the scenarios of benchmarks/backlog.py with their targets."""

from collections.abc import Awaitable, Callable, Sequence
from functools import partial

import asyncpg
from benchmarks import backlog
from benchmarks.suite.bench import Bench, Sample, settle
from benchmarks.suite.part import Part
from benchmarks.suite.rows import Cases, Row, at_least, at_most, has, limit, middle, reach, spread

from backfill import BackfillClient

QUEUES = 100_000
LONGEST = 10.0  # seconds that a drain of so many queues may take; graphile-worker would need more
EMERGENCY = "one lane"


async def scenario(bench: Bench, name: str) -> Cases:
    """The cases of one scenario in turns."""
    dsn = await bench.fresh()
    async with BackfillClient(dsn, schema=backlog.SCHEMA):
        pass
    connection = await asyncpg.connect(dsn)

    async def one(case: backlog.Case) -> Sample:
        if case.run is not backlog.claims:
            await backlog.fill(connection, case)
        rate, cpu = await (case.run or backlog.drain)(dsn, case)
        return {"rate": rate, "cpu_server": cpu * 1e6} if cpu else {"rate": rate}

    cases = backlog.scenarios(0.1 if bench.quick else 1.0)[name]
    try:
        return await bench.in_rounds({case.name: partial(one, case) for case in cases})
    finally:
        await connection.close()


def names(scenario: str) -> Sequence[str]:
    """Of its cases."""
    return [case.name for case in backlog.scenarios(1)[scenario]]


def within(scenario: str, what: str, least: float, most: float | None = None) -> Callable[[Cases], list[Row]]:
    """Each case's rate must be at least that part of the first one's, and what it costs the server at most so many times."""

    def rows(cases: Cases) -> list[Row]:
        first, *others = names(scenario)
        found = []
        for other in others:
            if not has(cases, first, other):
                continue
            found.append(at_least(f"{what}: {other}", least, cases, other, first, label=first))
            if most is not None and "cpu_server" in cases[first]:
                name = f"{what}: {other}, CPU of the server for a job"
                found.append(at_most(name, most, cases, other, first, label=first, unit=" µs", measure="cpu_server"))
        return found

    return rows


def serial_rows(cases: Cases) -> list[Row]:
    return [reach("one serial queue: 5,000 jobs", 1_000, cases, "5,000 jobs of a queue")]


def emergency_rows(cases: Cases) -> list[Row]:
    waits = {case: {"ms": [1e3 / rate for rate in values["rate"]]} for case, values in cases.items()}
    return [
        limit(f"p99 of an EMERGENCY job while 100,000 bulk jobs drain, {case}", 20, waits, case, "ms", " ms")
        for case in names("emergency")
    ]


# -- a queue for each job, beside graphile-worker -----------------------------------------------


async def queues(bench: Bench) -> Cases:
    """One job in each of very many serial queues."""
    count = bench.size(QUEUES)
    ours: dict[str, str] = {"task_id": "1", "payload": "json_build_object('id', n)", "queue": "'queue-' || n"}
    plain = {key: value for key, value in ours.items() if key != "queue"}

    async def one(peer: str, mode: str, kind: str, columns: dict[str, str]) -> Sample:
        dsn = await bench.fresh(kind)
        await fill(dsn, count, columns)
        return await bench.peers.drain(peer, mode, dsn, count, longest=LONGEST)

    cases: dict[str, Callable[[], Awaitable[Sample]]] = {
        "backfill": partial(one, "backfill", "default", "backfill", ours),
        "graphile-worker": partial(one, "graphile_worker", "fast", "graphile_worker", ours),
        "backfill, without queues": partial(one, "backfill", "default", "backfill", plain),
    }
    return await bench.in_rounds(cases)


async def fill(dsn: str, count: int, columns: dict[str, str]) -> None:
    """Add jobs by SQL over n, for their columns."""
    connection = await asyncpg.connect(dsn)
    await connection.execute("insert into graphile_worker._private_tasks (identifier) values ('noop')")
    await backlog.insert(connection, "graphile_worker", count, columns)
    await connection.close()
    await settle(dsn)


def queues_rows(cases: Cases) -> list[Row]:
    what = "1 job in each of 100,000 serial queues"
    rows = []
    if has(cases, "backfill", "graphile-worker"):
        rows.append(at_least(what, 4, cases, "backfill", "graphile-worker", label="graphile-worker"))
    if has(cases, "backfill", "backfill, without queues"):
        ratio = middle(cases, "backfill") / middle(cases, "backfill, without queues")
        plain = f"without queues: {spread(cases['backfill, without queues']['rate'], '/s')}"
        rows.append(Row(f"{what}, against none", "", spread(cases["backfill"]["rate"], "/s"), plain, ratio))
    return rows


def of(name: str, about: str, rows: Callable[[Cases], list[Row]], key: str | None = None) -> Part:
    """A scenario of backlog.py as a part."""
    return Part(name, about, partial(scenario, name=key or name), rows)


PARTS = [
    of("emergency", "emergencies while bulk jobs drain", emergency_rows),
    of("waiting", "drains with 10,000 to 2,000,000 jobs waiting", within("waiting", "backlog", 0.8, 1.2)),
    of("future", "a million more urgent jobs that are not due", within("future", "not due", 0.8, 1.2)),
    of("prepared", "claims prepared on empty tables", within("prepared", "claims at 500,000 rows", 0.9, 1.2)),
    Part("queues", "a job in each of 100,000 serial queues", queues, queues_rows),
    of("serial", "one serial queue of many jobs", serial_rows),
    of("held", "jobs without a queue behind a held queue", within("held", "100,000 jobs behind a held queue", 0.8)),
    of(
        "held-queues",
        "jobs of other queues behind a held queue",
        within("held-queues", "100,000 jobs behind a held queue, in queues", 0.5),
    ),
]
