"""Faults at random, for as long as a run of the tests can afford; `benchmarks/soak.py` does it for longer and with other seeds."""

import pytest
from tests.support.chaos import Chaos

SECONDS = 40.0
SEED = 4


@pytest.mark.timeout(300)
async def test_the_invariant_holds() -> None:
    report = await Chaos(SEED, print).run(SECONDS)
    assert report.wrong == []
    assert report.faults.total() > 5
    assert report.counted["done"] > 200
    assert report.counted["queued"] == 0
