"""A fleet under load and faults at random, with the invariant checked all the while: nothing lost, nothing run twice at once.

    ./dev run python benchmarks/soak.py --minutes 30            a soak; the seed is printed, and --seed 7 gives it
    ./dev run python benchmarks/soak.py --seeds 1-20            the random part of the fault suite, 90 s for each seed
    ./dev run python benchmarks/soak.py --flood 100000          so many jobs that fail for good

Seeds that are done are noted in --results and left out the next time, so a run that was interrupted goes on. Exit code 1 if
the invariant was broken; what broke it is told, and where the workers' logs are. The PostgreSQL is one of its own.
"""

import argparse
import asyncio
import json
import random
import signal
import statistics
import sys
import time
from collections.abc import Coroutine
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # for tests.support

from tests.support.chaos import Chaos, Report
from tests.support.ledger import breaches_at_the_end, enqueue
from tests.support.quiet import SCHEMA, Quiet
from tests.support.until import until

from backfill.client import BackfillClient
from backfill.model import JobSpec
from backfill.sql import with_schema

RANDOM_PART = 90.0  # seconds of faults for one seed; with the start and the end it takes up to 3 minutes
BATCH = 5000


def tell(text: str) -> None:
    print(text, flush=True)


def summary(report: Report) -> dict[str, object]:
    """What the results file says of a run."""
    return {
        "seed": report.seed,
        "seconds": report.seconds,
        "faults": report.faults.total(),
        "by_kind": dict(report.faults),
        **report.counted,
        "exits": dict(report.exits),
        "recovered_jobs": spread(report.recoveries),
        "recovered_first_job_of_a_kill": spread(report.first_recoveries),
        "wrong": report.wrong[:20],
    }


def spread(seconds: list[float]) -> dict[str, float]:
    if not seconds:
        return {}
    ordered = sorted(seconds)
    most = {"median": statistics.median(ordered), "95 %": ordered[len(ordered) * 95 // 100], "most": ordered[-1]}
    return {"count": len(ordered), **{name: round(value, 1) for name, value in most.items()}}


async def chaos(seed: int, seconds: float, results: Path | None) -> bool:
    """Run one seed; whether the invariant held."""
    tell(f"seed {seed}: faults for {seconds:g} s")
    report = await Chaos(seed, tell).run(seconds)
    found = summary(report)
    tell(json.dumps(found, indent=2))
    for wrong in report.wrong:
        tell(f"BROKEN: {wrong}")
    if results is not None:
        results.parent.mkdir(parents=True, exist_ok=True)
        with results.open("a") as file:
            file.write(json.dumps(found) + "\n")
    return not report.wrong


def done(results: Path) -> set[int]:
    """Seeds that need not run again."""
    if not results.exists():
        return set()
    lines = [json.loads(line) for line in results.read_text().splitlines()]
    return {line["seed"] for line in lines if not line["wrong"]}


async def seeds(wanted: list[int], results: Path) -> bool:
    skipped = done(results) & set(wanted)
    if skipped:
        tell(f"done before, as {results} says: {sorted(skipped)}")
    outcomes = [await chaos(seed, RANDOM_PART, results) for seed in wanted if seed not in skipped]
    return all(outcomes)


async def flood(jobs: int) -> bool:
    """So many jobs that fail for good, and one that does not."""
    spec = JobSpec(max_attempts=1)
    async with Quiet(BACKFILL_LOG_LEVEL="CRITICAL") as quiet:
        connection = quiet.connection
        async with BackfillClient(quiet.node.dsn(), SCHEMA, install=False) as client:
            for start in range(0, jobs, BATCH):
                count = min(BATCH, jobs - start)
                await enqueue(client, [("refuses", {"n": start + n}, spec, "dead") for n in range(count)], connection)
            began = time.monotonic()
            await quiet.fleet.started(2, connection, "--concurrency", 20)
            (urgent,) = await enqueue(client, [("work", {}, JobSpec(priority=-1), "done")], connection)
            left = with_schema("select count(*) = 0 from graphile_worker._private_jobs", SCHEMA)
            await until(partial(connection.fetchval, left), "nothing is left", limit=3600)
            took = time.monotonic() - began
            wait = await connection.fetchval(
                "select began_at - at from ledger join enqueued using (job) where job = $1", urgent
            )
        wrong = await breaches_at_the_end(connection, SCHEMA)
    tell(f"{jobs} failing jobs in {took:.1f} s, {jobs / took:.0f}/s; one that was urgent began after {wait}")
    for line in wrong:
        tell(f"BROKEN: {line}")
    return not wrong


async def interruptible(work: Coroutine[Any, Any, bool]) -> bool:
    """Clean up at a SIGTERM and a SIGINT alike, also where whoever started this has them ignored."""
    task = asyncio.ensure_future(work)
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    return await task


def numbers(text: str) -> list[int]:
    """``7`` or ``1-20``."""
    first, _, last = text.partition("-")
    return list(range(int(first), int(last or first) + 1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, help="a soak of so many minutes")
    parser.add_argument("--seed", type=int, help="its seed; without --minutes, the random part of that seed alone")
    parser.add_argument("--seeds", type=numbers, metavar="1-20", help="the random part of each of these seeds")
    parser.add_argument(
        "--results", type=Path, default=ROOT / ".cache" / "soak.jsonl", help="where seeds are noted [%(default)s]"
    )
    parser.add_argument("--flood", type=int, metavar="JOBS", help="jobs that fail for good")
    options = parser.parse_args()
    if options.flood:
        work = flood(options.flood)
    elif options.minutes:
        seed = options.seed if options.seed is not None else random.SystemRandom().randrange(1_000_000)
        work = chaos(seed, options.minutes * 60, None)
    elif options.seeds or options.seed is not None:
        work = seeds(options.seeds or [options.seed], options.results)
    else:
        parser.error("give --minutes, --seed, --seeds or --flood")
    try:
        sys.exit(0 if asyncio.run(interruptible(work)) else 1)
    except asyncio.CancelledError:
        sys.exit(130)


if __name__ == "__main__":
    main()
