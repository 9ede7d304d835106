"""What the demo says in the end."""

import sys
from pathlib import Path
from typing import Any

import click
import msgspec

from backfill.cli.demo.work import Result, percentile
from backfill.cli.output import console, count_of, print_fields, print_table
from backfill.model import DlqJob


def document(result: Result, commands: list[str]) -> dict[str, Any]:
    """The result as JSON.

    Args:
        result: What happened.
        commands: Commands to look further; empty when nothing was kept.
    """
    return {
        "python": ".".join(map(str, sys.version_info[:3])),
        **result.counted,
        "jobs_run": result.runs,
        "seconds": round(result.seconds, 3),
        "jobs_per_second": round(result.runs / result.seconds, 1),
        "wait_ms": {lane: _waits(values) for lane, values in {"all": _all(result), **result.waits}.items()},
        "retries": result.retries,
        "notes": result.notes,
        "dlq": [
            {
                "id": entry.id,
                "task": entry.task_identifier,
                "file": _file(entry),
                "reason": entry.failure_reason,
                "error": _error(entry),
            }
            for entry in result.dead
        ],
        "commands": commands,
    }


def print_summary(result: Result) -> None:
    """Print the result for people."""
    counted = result.counted
    click.echo(
        f"\nCounted {counted['lines']:,} lines, {counted['functions']:,} functions and {counted['classes']:,} classes in"
        f" {count_of(counted['files'], 'file')} of Python {sys.version.split()[0]}'s standard library.\n"
    )
    print_fields(_facts(result))
    click.echo("\nWait, from when a job was due to its start:")
    rows = [
        (name, f"{len(values):,}", *(_duration(percentile(values, p)) for p in (50, 95, 99)))
        for name, values in (
            ("urgent, added while bulk jobs waited", result.waits["urgent"]),
            ("in serial queues, one after the other", result.waits["serial"]),
            ("bulk, all added at once", result.waits["bulk"]),
            ("all", _all(result)),
        )
    ]
    headings = ("jobs", "runs", "p50", "p95", "p99")
    print_table(headings, rows, right=headings[1:])
    click.echo(f"\n{count_of(len(result.dead), 'job')} in the dead letter queue, none of them worth another try:")
    dead = [(entry.id, _file(entry), _error(entry)) for entry in reversed(result.dead)]
    print_table(("id", "file", "why"), dead, right=("id",))


def print_commands(commands: list[str], broken: Path) -> None:
    """Print how to go on.

    Args:
        commands: Commands to look further; empty when nothing was kept.
        broken: Where the broken files are, if anything was kept.
    """
    click.echo()
    if not commands:
        click.echo("Nothing of this is left. To look further, run it again and keep it: backfill demo --keep")
        return
    click.echo(f"Everything was kept; the broken files are in {broken}. To look further:\n")
    for command in commands:
        console().print(f"  {command}", soft_wrap=True)


def _facts(result: Result) -> list[tuple[str, str]]:
    notes, counted = result.notes, result.counted
    facts = [
        ("jobs run", f"{result.runs:,} in {result.seconds:.1f} s: {result.runs / result.seconds:,.0f} jobs/s"),
        ("retries", f"{result.retries}, each after the delay of its job's retry policy"),
    ]
    for note in notes.get("emergency", []):
        text = f"an EMERGENCY job started {_duration(note['late_by'])} after it was added, while {note['waiting']:,} waited"
        facts.append(("priority", text))
    totals = "every total is right" if not counted["wrong_totals"] else f"{counted['wrong_totals']} totals are WRONG"
    facts.append(("serial queues", f"{counted['packages']}, one for each package's running total; {totals}"))
    keyed = notes.get("keyed", [])
    if keyed:
        runs = "once" if len(keyed) == 1 else f"{len(keyed)} times"
        facts.append(
            ("job key", f"a job added 3 times under one key ran {runs}, with payload {keyed[-1]['detail']} of 3")
        )
    facts += [
        ("scheduled", f"a job for 2 s later started {_duration(note['late_by'])} after its time")
        for note in notes.get("scheduled", [])
    ]
    return facts


def _all(result: Result) -> list[float]:
    return sorted(wait for waits in result.waits.values() for wait in waits)


def _waits(values: list[float]) -> dict[str, float]:
    return {f"p{p}": round(percentile(values, p) * 1000, 2) for p in (50, 95, 99)}


def _duration(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds >= 1 else f"{seconds * 1000:.1f} ms"


def _file(entry: DlqJob) -> str:
    payload = entry.payload
    return Path(payload["path"]).name if isinstance(payload, dict) and "path" in payload else entry.payload_text


def _error(entry: DlqJob) -> str:
    error = entry.last_error
    if isinstance(error, dict):
        return f"{error.get('type', 'error')}: {error.get('message', '')}"
    return msgspec.json.encode(error).decode()
