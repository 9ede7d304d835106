"""Writes the recorded results into the tables of docs/performance.md, each between two marker comments."""

import re
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.suite.bench import NOISE
from benchmarks.suite.part import Part
from benchmarks.suite.rows import Row

BEGIN, END = "<!-- measured: {} -->", "<!-- end -->"
HEAD = "| what | target | backfill | compared with | ratio | met |\n|---|---|---|---|---|---|"
_BLOCK = re.compile(r"(?P<begin><!-- measured: (?P<name>[\w-]+) -->\n).*?(?P<end><!-- end -->)", re.DOTALL)


def line(row: Row) -> str:
    """A line of the table."""
    ratio = "" if row.ratio is None else f"{row.ratio:.2f}"
    met = {None: "", True: "yes", False: "**no**"}[row.met]
    return f"| {row.what} | {row.target} | {row.ours} | {row.other} | {ratio} | {met} |"


def rows_of(part: Part, results: dict[str, Any]) -> list[Row]:
    """A part's lines, as far as it was measured."""
    return part.rows(results[part.name]["cases"]) if part.name in results else []


def targets(parts: Iterable[Part], results: dict[str, Any]) -> str:
    """The table of targets; medians, and in parentheses between what the rounds lay."""
    lines = [line(row) for part in parts for row in rows_of(part, results)]
    return "\n".join([HEAD, *lines]) if lines else ""


def machine(results: dict[str, Any]) -> str:
    """On what, and when, each part was measured."""
    groups: dict[str, list[str]] = {}
    for name, found in results.items():
        groups.setdefault(described(found["environment"]), []).append(name)
    shown = [f"{text} ({', '.join(names)})." if len(groups) > 1 else f"{text}." for text, names in groups.items()]
    return "\n\n".join([*shown, *noise(results)])


def noise(results: dict[str, Any]) -> list[str]:
    """How much else the machine did."""
    cores = [
        value
        for found in results.values()
        for measured in found["cases"].values()
        for what, values in measured.items()
        if what.endswith(NOISE)
        for value in values
    ]
    if not cores:
        return []
    half = statistics.median(cores)
    return [
        f"Meanwhile other programs kept {half:.2f} cores busy in the median of all measurements, at most {max(cores):.2f}."
    ]


def described(environment: dict[str, Any]) -> str:
    """The machine, versions and settings in a sentence."""
    settings = ", ".join(f"`{name} = {value}`" for name, value in environment["settings"].items())
    quick = (
        " **A quick run with a tenth of the jobs and one round: no figures to go by.**" if environment["quick"] else ""
    )
    return (
        f"{environment['cores']} cores ({environment['cpu']}), {environment['memory_gib']} GiB, Linux {environment['kernel']}; "
        f"PostgreSQL {environment['postgresql']} on the same machine over TCP, {settings}, all else default; "
        f"Python {environment['python']}, asyncpg {environment['asyncpg']}, {environment['loop']}; "
        f"{environment['rounds']} rounds, on {environment['date']}{quick}"
    )


def blocks(parts: Sequence[Part], results: dict[str, Any]) -> dict[str, str]:
    """All that is generated, by the names that the markers have."""
    found = {"targets": targets(parts, results), "machine": machine(results)}
    for part in parts:
        table = part.table(results[part.name]["cases"]) if part.name in results else ""
        if table:
            found[part.name] = table
    return found


def write(page: Path, parts: Sequence[Part], results: dict[str, Any]) -> list[str]:
    """Fill the page's blocks anew; the names of those for which there is nothing to fill in."""
    made, missing = blocks(parts, results), []

    def fill(block: re.Match[str]) -> str:
        text = made.get(block["name"])
        if not text:
            missing.append(block["name"])
            text = "Not measured yet."
        return f"{block['begin']}\n{text}\n\n{block['end']}"

    page.write_text(_BLOCK.sub(fill, page.read_text(encoding="utf-8")), encoding="utf-8")
    return missing
