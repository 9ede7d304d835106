"""Side by side with other job queues: runs the shared benchmark, and keeps what the tables need of its results."""

import asyncio
import json
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.suite.bench import ROOT, Bench, tell
from benchmarks.suite.part import Part
from benchmarks.suite.rows import Cases, Row, at_least, at_most, has, middle, number, spread

OURS, FLOOR, FASTEST = "backfill:default", "floor:batch250", "graphile_worker:fast"
PEERS = "backfill,floor,graphile_worker:fast"
OTHERS = "backfill,graphile_worker:default,pgqueuer,pg_boss"
LATENCIES = "procrastinate,chancy,oban,awa"  # too slow to wait for their drains in each run
PORT = 54_417  # the benchmark's own 54410 may be taken by somebody else's run


def percentile(values: Sequence[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, round(share * (len(ordered) - 1)))]


async def run(bench: Bench, peers: str, rounds: int, *options: str) -> dict[str, Any]:
    """Run it with these peers; its results file."""
    bench.peers.check()
    out = Path(tempfile.mkdtemp(prefix="backfill-bench-")) / "side.json"
    command = ["python3", str(bench.peers.folder / "run.py"), "--project", str(ROOT), "--peers", peers, "--no-limit"]
    command += [
        "--rounds",
        str(bench.rounds),
        "--port",
        str(PORT),
        "--backlog-rounds",
        "0",
        "--out",
        str(out),
        *options,
    ]
    command += ["--quick"] * bench.quick
    # Not from our virtual environment: it makes its own.
    environment = {name: value for name, value in os.environ.items() if name != "VIRTUAL_ENV"}
    path = [folder for folder in os.environ["PATH"].split(os.pathsep) if not folder.startswith(str(ROOT))]
    environment["PATH"] = os.pathsep.join(path)
    process = await asyncio.create_subprocess_exec(*command, env=environment, stdout=asyncio.subprocess.DEVNULL)
    try:
        await process.wait()
    finally:
        if process.returncode is None:
            process.terminate()  # it stops its server
            await process.wait()
    if process.returncode:
        raise RuntimeError(f"{command[1]} ended with {process.returncode}; it says why above")
    results: dict[str, Any] = json.loads(out.read_text())
    out.unlink()
    out.parent.rmdir()
    return results


def kept(results: dict[str, Any]) -> Cases:
    """A list for each measure of each peer, none for one that failed; latencies as percentiles of all their samples."""
    cases: Cases = {}
    for peer, found in results["results"].items():
        if "error" in found:
            tell(f"  {peer}: not measured: {found['error']}")
            cases[peer.partition(":")[0]] = {}
            continue
        case = cases.setdefault(peer, {})
        for what, samples in found.items():
            for sample in samples:
                if "error" in sample:
                    tell(f"  {peer} {what}: {sample['error']}")
                for key in ("rate", "cpu_worker", "cpu_server", "rss_peak", "noise"):
                    if key in sample:
                        case.setdefault(f"{what} {key}", []).append(sample[key])
            waits = [ms for sample in samples for ms in sample.get("ms", ())]
            if waits:
                case["latency p50"], case["latency p99"] = [percentile(waits, 0.5)], [percentile(waits, 0.99)]
        workers, servers = case.get("drain1 cpu_worker", []), case.get("drain1 cpu_server", [])
        case["drain1 cpu"] = [worker + server for worker, server in zip(workers, servers, strict=True)]
    return {peer: {what: values for what, values in case.items() if values} for peer, case in cases.items()}


async def side(bench: Bench) -> Cases:
    return kept(await run(bench, PEERS, bench.rounds))


async def others(bench: Bench) -> Cases:
    """One round, as there are many and most are slow."""
    found = kept(await run(bench, OTHERS, 1))
    return {**found, **kept(await run(bench, LATENCIES, 1, "--only", "latency,single"))}


def rows(cases: Cases) -> list[Row]:
    if not has(cases, OURS, FASTEST, FLOOR):
        return []
    node, floor = "graphile-worker's fastest", "floor"
    against = [
        at_least("drain, 1 process", 1.5, cases, OURS, FASTEST, label=node, measure="drain1 rate"),
        at_least("drain, 1 process, against the floor", 0.85, cases, OURS, FLOOR, label=floor, measure="drain1 rate"),
        at_least("drain, 2 processes", 1.5, cases, OURS, FASTEST, label=node, measure="drain2 rate"),
    ]
    one, two = middle(cases, OURS, "drain1 rate"), middle(cases, OURS, "drain2 rate")
    against += [
        Row(
            "2 processes against 1",
            "≥ 1 ×",
            spread(cases[OURS]["drain2 rate"], "/s"),
            f"1 process: {spread(cases[OURS]['drain1 rate'], '/s')}",
            two / one,
            two >= one,
        ),
        at_most(
            "CPU seconds per 1,000 jobs, worker + server",
            0.65,
            cases,
            OURS,
            FASTEST,
            label=node,
            unit=" s",
            measure="drain1 cpu",
        ),
    ]
    for share in ("p50", "p99"):
        measure = f"latency {share}"
        name = f"enqueue to start, idle worker, {share}"
        against.append(at_most(name, 1.15, cases, OURS, FLOOR, label=floor, unit=" ms", measure=measure))
        against.append(at_most(name, 1, cases, OURS, FASTEST, label=node, unit=" ms", measure=measure))
    return [
        *against,
        at_least("single adds, without a key", 6, cases, OURS, FASTEST, label=node, measure="single rate"),
        at_least("bulk adds, without keys", 2, cases, OURS, FASTEST, label=node, measure="bulk rate"),
    ]


def others_rows(cases: Cases) -> list[Row]:
    """Below every peer's, in the run of those that were measured with ours."""
    if OURS not in cases:
        return []
    found = []
    for share in ("p50", "p99"):
        measure = f"latency {share}"
        mine = middle(cases, OURS, measure)
        measured = {peer: values[measure][0] for peer, values in cases.items() if peer != OURS and measure in values}
        if measured:
            best = min(measured, key=lambda peer: measured[peer])
            found.append(
                Row(
                    f"enqueue to start, idle worker, {share}, against the best other peer",
                    "≤ 1 ×",
                    f"{number(mine)} ms",
                    f"{best}: {number(measured[best])} ms",
                    mine / measured[best],
                    mine <= measured[best],
                )
            )
    return found


def table(cases: Cases) -> str:
    """Everything the side-by-side runs found, a line for each peer."""
    columns = {
        "drain, 1 process /s": "drain1 rate",
        "drain, 2 processes /s": "drain2 rate",
        "CPU s per 1,000: worker": "drain1 cpu_worker",
        "server": "drain1 cpu_server",
        "p50 ms": "latency p50",
        "p99 ms": "latency p99",
        "single adds /s": "single rate",
        "bulk adds /s": "bulk rate",
    }
    lines = [f"| peer | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    for peer, values in cases.items():
        if not values:
            continue
        cells = [spread(values[measure]) if measure in values else "–" for measure in columns.values()]
        lines.append(f"| {peer.replace(':', ' · ')} | {' | '.join(cells)} |")
    failed = [peer for peer, values in cases.items() if not values]
    if failed:
        lines += ["", f"Not to be had on this machine: {', '.join(failed)}."]
    return "\n".join(lines)


PARTS = [
    Part("side", "beside graphile-worker's fastest mode and the floor", side, rows, table),
    Part("others", "further peers, their latency above all", others, others_rows, table),
]
