"""Measures what docs/performance.md tells, and writes its tables anew.

    benchmarks/run [--bench ../shared/bench] [--only PART,PART] [--quick]
    benchmarks/run --report        the tables alone, from the recorded results

Each part can be run by itself; its results take the place of those it had. Parts that need the side-by-side benchmark (folder
--bench) are left out where that is not, and said to be. Measure on a machine that does nothing else.
"""

import argparse
import logging
import os
import sys
import time
import traceback
from importlib.metadata import version
from pathlib import Path
from typing import Any

import uvloop
from benchmarks.suite import results
from benchmarks.suite.bench import ROOT, Bench, tell
from benchmarks.suite.hosts import MissingError, Peers
from benchmarks.suite.parts import PARTS
from benchmarks.suite.report import line, rows_of, write

PAGE = ROOT / "docs" / "performance.md"
RECORDED = ROOT / "benchmarks" / "results.json"
DEFAULT_BENCH = ROOT.parent / "shared" / "bench"


def from_where_it_was_called(text: str) -> Path:
    """A path as the caller meant it; the program runs in the repository's root."""
    return (Path(os.environ.get("BENCHMARKS_FROM", ".")) / text).resolve()


def arguments(argv: list[str]) -> argparse.Namespace:
    names = "\n".join(f"  {part.name:14} {part.about}" for part in PARTS)
    parser = argparse.ArgumentParser(
        prog="benchmarks/run",
        description=__doc__,
        epilog=f"parts:\n{names}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--bench", type=from_where_it_was_called, default=DEFAULT_BENCH, metavar="DIR")
    parser.add_argument("--only", default="", metavar="PART,PART", help="these parts")
    parser.add_argument("--without", default="", metavar="PART,PART", help="all but these")
    parser.add_argument("--quick", action="store_true", help="a tenth of the jobs, one round: to see that it works")
    parser.add_argument("--rounds", type=int, default=3, help="how often each case is measured [3]")
    parser.add_argument(
        "--held-minutes", type=float, default=10, metavar="N", help="of the part xmin [10]; 0 = without it"
    )
    parser.add_argument("--out", type=from_where_it_was_called, default=RECORDED, metavar="FILE", help="the results")
    parser.add_argument("--report", action="store_true", help="measure nothing: write the tables from the results")
    options = parser.parse_args(argv)
    known = {part.name for part in PARTS}
    for name in filter(None, [*options.only.split(","), *options.without.split(",")]):
        if name not in known:
            parser.error(f"there is no part {name!r}; there are {', '.join(sorted(known))}")
    if options.quick and options.out == RECORDED:
        options.out = ROOT / ".cache" / "quick-results.json"  # figures of no worth stay out of the documentation
    return options


async def measure(options: argparse.Namespace) -> bool:
    """Measure the chosen parts; whether all of them could be."""
    only, without = set(filter(None, options.only.split(","))), set(filter(None, options.without.split(",")))
    if not options.held_minutes:
        without.add("xmin")
    chosen = [part for part in PARTS if part.name not in without and (not only or part.name in only)]
    failed = []
    async with Bench(quick=options.quick, rounds=options.rounds, peers=Peers(options.bench), options=options) as bench:
        loop = f"uvloop {version('uvloop')}"
        environment = {**await bench.environment(), "rounds": bench.rounds, "quick": bench.quick, "loop": loop}
        for number, part in enumerate(chosen, start=1):
            tell(f"{number}/{len(chosen)} {part.name}: {part.about}")
            began = time.monotonic()
            try:
                cases = await part.measure(bench)
            except MissingError as error:
                tell(f"  left out: {error}")
                failed.append(part.name)
                continue
            except Exception:  # noqa: BLE001 - one part's failure must not cost the others
                traceback.print_exc()
                failed.append(part.name)
                continue
            results.record(options.out, part.name, cases, environment)
            tell(f"  took {time.monotonic() - began:.0f} s")
            for row in part.rows(cases):
                print(line(row), flush=True)
    if failed:
        tell(f"not measured: {', '.join(failed)}")
    return not failed


def report(options: argparse.Namespace) -> None:
    """Write the tables, if they are of these results."""
    if options.out != RECORDED and not options.report:
        tell(f"results are in {options.out}; {PAGE.name} has those of {RECORDED.name}")
        return
    recorded: dict[str, Any] = results.read(options.out)
    missing = write(PAGE, PARTS, recorded)
    tell(f"{PAGE.relative_to(ROOT)} is written anew{f'; not measured: {missing}' if missing else ''}")
    unmet = [row.what for part in PARTS for row in rows_of(part, recorded) if row.met is False]
    for what in unmet:
        tell(f"below its target: {what}")


def main() -> None:
    options = arguments(sys.argv[1:])
    done = True
    if not options.report:
        logging.disable(logging.CRITICAL)
        done = uvloop.run(measure(options))
    report(options)
    sys.exit(0 if done else 1)


if __name__ == "__main__":
    main()
