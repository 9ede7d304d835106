"""What a part says in the table of targets, made from its recorded values alone."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

Cases = dict[str, dict[str, list[float]]]


@dataclass(frozen=True)
class Row:
    """One line: what was measured, the target, ours, what it is compared with, and whether the target was met.

    Attributes:
        met: None where there is no target, or nothing to compare with.
    """

    what: str
    target: str
    ours: str
    other: str = ""
    ratio: float | None = None
    met: bool | None = None


def middle(cases: Cases, case: str, what: str = "rate") -> float:
    """The median over the rounds.

    Raises:
        KeyError: It was not measured.
    """
    return statistics.median(cases[case][what])


def has(cases: Cases, *names: str) -> bool:
    """Whether all of these were measured."""
    return all(cases.get(name) for name in names)


def number(value: float) -> str:
    """With three digits or so that matter."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}" if abs(value) < 10 else f"{value:.1f}"


def spread(values: Sequence[float], unit: str = "") -> str:
    """The median, and between what the rounds lay."""
    shown = f"{number(statistics.median(values))}{unit}"
    low, high = number(min(values)), number(max(values))
    return shown if low == high else f"{shown} ({low}–{high})"


def at_least(
    what: str,
    factor: float,
    cases: Cases,
    ours: str,
    other: str,
    *,
    label: str,
    unit: str = "/s",
    measure: str = "rate",
) -> Row:
    """Ours must be so many times the other."""
    ratio = middle(cases, ours, measure) / middle(cases, other, measure)
    values = spread(cases[ours][measure], unit), f"{label}: {spread(cases[other][measure], unit)}"
    return Row(what, f"≥ {factor:g} ×", *values, ratio=ratio, met=ratio >= factor)


def at_most(
    what: str, factor: float, cases: Cases, ours: str, other: str, *, label: str, unit: str, measure: str
) -> Row:
    """Ours must be no more than so many times the other."""
    ratio = middle(cases, ours, measure) / middle(cases, other, measure)
    values = spread(cases[ours][measure], unit), f"{label}: {spread(cases[other][measure], unit)}"
    return Row(what, f"≤ {factor:g} ×", *values, ratio=ratio, met=ratio <= factor)


def limit(what: str, most: float, cases: Cases, case: str, measure: str, unit: str) -> Row:
    """Ours must be no more than that."""
    value = middle(cases, case, measure)
    return Row(what, f"≤ {most:g}{unit}", spread(cases[case][measure], unit), met=value <= most)


def reach(what: str, least: float, cases: Cases, case: str, measure: str = "rate", unit: str = "/s") -> Row:
    """Ours must be at least that."""
    value = middle(cases, case, measure)
    return Row(what, f"≥ {least:,.0f}{unit}", spread(cases[case][measure], unit), met=value >= least)
