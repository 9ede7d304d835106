"""Every example runs by itself and says what it should."""

import asyncio
import os
import sys
from pathlib import Path
from typing import Any

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
SAYS = {
    "cron.py": ["morning: At 04:00 on Monday through Friday", "2030-03-31T03:00+02:00", "scheduling 3 items"],
    "basic.py": ["to root@example.com: fire", "runs: 3"],
    "in_your_transaction.py": ["placed order 1", "refused: order 2", "[{'order': 1}]"],
    "batch_jobs.py": ["attempt 1: 3 items", "attempt 2: 1 items", "sent to carol@example.com", "jobs left: 0"],
    "hooks.py": [
        "refused: an email needs a recipient",
        "sent {'to': 'ada@example.com', 'from': 'office@example.com'}",
        "spared {'to': 'bob@example.test'",
        "lost: ConnectionError: no server for the moon",
        "the worker has stopped",
    ],
    "dead_letters.py": ["'12,50' is no price", "parsed 1250", "left: 0"],
}


def test_no_example_is_left_out() -> None:
    assert {path.name for path in EXAMPLES.glob("*.py")} == set(SAYS)


@pytest.mark.parametrize("name", SAYS)
async def test_the_example(name: str, empty_db: Any) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        str(EXAMPLES / name),
        env={**os.environ, "DATABASE_URL": empty_db.dsn},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate()
    assert process.returncode == 0, err.decode()
    for words in SAYS[name]:
        assert words in out.decode()
