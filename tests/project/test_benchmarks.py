"""What the benchmark suite makes of figures: a table that says what is below its target, and a guard that notices."""

from pathlib import Path
from typing import Any

import pytest
from benchmarks.suite import guard, results, rows
from benchmarks.suite.__main__ import arguments
from benchmarks.suite.bench import SETTINGS
from benchmarks.suite.part import Part
from benchmarks.suite.parts import PARTS, side, xmin
from benchmarks.suite.report import write

ENVIRONMENT = {
    "cores": 2,
    "cpu": "some",
    "memory_gib": 4,
    "kernel": "6",
    "postgresql": "15.1",
    "settings": SETTINGS,
    "python": "3.11",
    "asyncpg": "0.30",
    "loop": "uvloop",
    "rounds": 3,
    "date": "2030-01-01",
    "quick": False,
}
CASES = {
    "ours": {"rate": [90.0, 100.0, 300.0], "noise": [0.1, 0.2, 0.3]},
    "theirs": {"rate": [50.0, 40.0, 60.0], "noise": [0.0, 0.0, 0.0]},
}


def test_medians_are_compared_and_the_spread_is_shown() -> None:
    row = rows.at_least("drain", 2, CASES, "ours", "theirs", label="theirs")
    assert (row.ratio, row.met) == (2.0, True)
    assert (row.ours, row.other) == ("100/s (90.0–300)", "theirs: 50.0/s (40.0–60.0)")
    assert rows.at_least("drain", 2.1, CASES, "ours", "theirs", label="theirs").met is False
    assert rows.at_most("drain", 1.9, CASES, "ours", "theirs", label="theirs", unit="", measure="rate").met is False
    assert [rows.limit("x", most, CASES, "ours", "rate", "").met for most in (99, 100)] == [False, True]
    assert [rows.reach("x", least, CASES, "ours").met for least in (100, 101)] == [True, False]


async def _unmeasured(_: object) -> rows.Cases:
    raise NotImplementedError


def test_a_page_is_filled_from_the_recorded_results(tmp_path: Path) -> None:
    part = Part(
        "drain",
        "drains",
        _unmeasured,
        lambda cases: [rows.at_least("a drain", 3, cases, "ours", "theirs", label="theirs")],
        lambda _: "a table",
    )
    page, recorded = tmp_path / "page.md", tmp_path / "results.json"
    blocks = [f"<!-- measured: {name} -->\nold\n<!-- end -->" for name in ("targets", "machine", "drain", "other")]
    page.write_text("prose\n" + "\nprose\n".join(blocks))
    results.record(recorded, "drain", CASES, ENVIRONMENT)
    assert write(page, [part], results.read(recorded)) == ["other"]
    text = page.read_text()
    assert "| a drain | ≥ 3 × | 100/s (90.0–300) | theirs: 50.0/s (40.0–60.0) | 2.00 | **no** |" in text
    assert "<!-- measured: drain -->\n\na table\n\n<!-- end -->\nprose\n" in text
    assert "2 cores (some), 4 GiB" in text
    assert "kept 0.05 cores busy in the median of all measurements, at most 0.30" in text
    assert "old" not in text
    results.record(recorded, "drain", CASES, {**ENVIRONMENT, "quick": True})
    write(page, [part], results.read(recorded))
    assert "no figures to go by" in page.read_text()


def test_a_quick_run_leaves_the_recorded_results_alone(capsys: pytest.CaptureFixture[str]) -> None:
    assert arguments([]).out.name == "results.json"
    assert arguments(["--quick"]).out.name == "quick-results.json"
    with pytest.raises(SystemExit):
        arguments(["--only", "nonsense"])
    assert "there is no part 'nonsense'" in capsys.readouterr().err
    assert len({part.name for part in PARTS}) == len(PARTS)


def _measured(**changed: float) -> rows.Cases:
    measures = {**dict.fromkeys(guard.MEASURES.values(), 100.0), guard.LATENCY: 2.0}
    return {
        side.OURS: {what: [value] for what, value in {**measures, **changed}.items()},
        side.FASTEST: {what: [value] for what, value in measures.items()},
    }


async def _answer(_: Any, cases: rows.Cases) -> dict[str, float]:
    return guard.ratios(cases)


def test_the_guard_names_what_became_slower(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recorded = f"--recorded={tmp_path / 'guard.json'}"

    def run(*args: str, **changed: float) -> int:
        monkeypatch.setattr(guard, "measure", lambda options: _answer(options, _measured(**changed)))
        return guard.main([recorded, *args])

    with pytest.raises(SystemExit) as ended:
        run()
    assert ended.value.code == 2
    assert run("--record") == 0
    assert run(**{"drain1 rate": 71.0, guard.LATENCY: 2.8}) == 0
    capsys.readouterr()
    assert run(**{"drain1 rate": 69.0, guard.LATENCY: 2.9}) == 1
    assert capsys.readouterr().out.splitlines()[-1].endswith("recorded: drain, 1 process, latency")


def test_a_worker_that_lags_under_a_held_transaction_does_not_meet_the_target() -> None:
    free = {"claim_p99": [1.0], "claim_p50": [0.5], "cpu_server": [100.0]}
    held = {
        "rate": [1000.0, 900.0],
        "backlog": [5.0, 200.0],
        "claim_p99": [2.0, 12.0],
        "claim_p50": [0.6, 0.7],
        "cpu_server": [100.0, 300.0],
    }
    found = xmin.rows({"free": free, "held": held})
    assert [row.met for row in found] == [False, False, False, None, None]
