"""The recorded results: a JSON file with an entry for each part, each with when and on what it was measured."""

import json
from pathlib import Path
from typing import Any

from benchmarks.suite.rows import Cases


def read(path: Path) -> dict[str, Any]:
    """What was recorded; nothing if there is no such file."""
    if not path.exists():
        return {}
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def record(path: Path, name: str, cases: Cases, environment: dict[str, Any]) -> None:
    """Put a part's values in place of those it had."""
    found = read(path)
    found[name] = {
        "environment": environment,
        "cases": {
            case: {what: [rounded(value) for value in values] for what, values in measured.items()}
            for case, measured in cases.items()
        },
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(dict(sorted(found.items())), indent=1) + "\n", encoding="utf-8")


def rounded(value: float) -> float:
    """With five digits, which is more than the noise leaves."""
    return float(f"{value:.5g}")
