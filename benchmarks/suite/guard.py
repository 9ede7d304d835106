"""Says whether backfill has become slower against graphile-worker's fastest mode, both measured in this run.

    benchmarks/guard [--bench ../shared/bench]     exit code 1 if a ratio is below 0.7 of what was recorded
    benchmarks/guard --record                      note this run's ratios as those to hold to

Run it by hand, before releases and after changes of the hot path, on a machine that does nothing else. Absolute figures vary by a
factor of two from one hour to the next; ratios within a run don't.
"""

import argparse
import asyncio
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.suite.__main__ import DEFAULT_BENCH, from_where_it_was_called
from benchmarks.suite.bench import ROOT, Bench
from benchmarks.suite.hosts import MissingError, Peers
from benchmarks.suite.parts import side
from benchmarks.suite.rows import Cases, middle

RECORDED = ROOT / "benchmarks" / "guard.json"
LEAST = 0.7  # of the recorded ratio
MEASURES = {
    "drain, 1 process": "drain1 rate",
    "drain, 2 processes": "drain2 rate",
    "single adds": "single rate",
    "bulk adds": "bulk rate",
}
LATENCY = "latency p50"


def ratios(cases: Cases) -> dict[str, float]:
    """How many times faster than graphile-worker."""
    found = {
        name: middle(cases, side.OURS, measure) / middle(cases, side.FASTEST, measure)
        for name, measure in MEASURES.items()
    }
    found["latency"] = middle(cases, side.FASTEST, LATENCY) / middle(cases, side.OURS, LATENCY)
    return {name: round(value, 3) for name, value in found.items()}


def compare(found: dict[str, float], recorded: dict[str, float]) -> list[str]:
    """Print each ratio beside the recorded one; those that are too low."""
    low = []
    for name, value in found.items():
        before = recorded.get(name)
        if before is None:
            print(f"{name:20} {value:6.2f} × graphile-worker, nothing recorded")
            continue
        share = value / before
        print(f"{name:20} {value:6.2f} × graphile-worker, recorded {before:.2f} ×: {share:.2f} of it")
        if share < LEAST:
            low.append(name)
    return low


def read(path: Path) -> dict[str, Any]:
    """The recorded ratios, of whole runs and of quick ones."""
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return found


async def measure(options: argparse.Namespace) -> dict[str, float]:
    """The ratios of a run of the side-by-side benchmark."""
    async with Bench(quick=options.quick, rounds=options.rounds, peers=Peers(options.bench)) as bench:
        return ratios(side.kept(await side.run(bench, "backfill,graphile_worker:fast", bench.rounds)))


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="benchmarks/guard", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--bench", type=from_where_it_was_called, default=DEFAULT_BENCH, metavar="DIR")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="one round of fewer jobs, with ratios of its own")
    parser.add_argument("--record", action="store_true", help="write the ratios instead of comparing them")
    parser.add_argument("--recorded", type=from_where_it_was_called, default=RECORDED, metavar="FILE")
    options = parser.parse_args(argv)
    kind = "quick" if options.quick else "whole"
    recorded = read(options.recorded)
    if kind not in recorded and not options.record:
        parser.error(f"{options.recorded} has no ratios of {kind} runs: record them with --record first")
    try:
        found = asyncio.run(measure(options))
    except MissingError as error:
        print(f"benchmarks/guard: {error}", file=sys.stderr)
        return 2
    low = compare(found, recorded.get(kind, {}))
    if options.record:
        options.recorded.write_text(json.dumps({**recorded, kind: found}, indent=1) + "\n", encoding="utf-8")
        print(f"recorded in {options.recorded}")
        return 0
    if low:
        print(f"slower than {LEAST:g} of what was recorded: {', '.join(low)}")
    return 1 if low else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
