"""`docs/interop.md`: a fleet moves from Node to Python, by the commands that stand there."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest
from tests.docs.blocks import ROOT, blocks_of
from tests.docs.test_readme import SCHEMA, Terminals
from tests.support.until import until

if TYPE_CHECKING:
    from tests.conftest import Database
    from tests.interop.conftest import StartNode

PAGE = "docs/interop.md"
TITLE = "## Move a fleet from Node or Rust to Python"


@pytest.mark.timeout(240)  # a dozen commands, each a process
async def test_the_guide(
    tmp_path: Path, empty_db: "Database", node: "StartNode", empty_runs: asyncpg.Connection
) -> None:
    peer = await node(empty_db, schema=SCHEMA)
    await peer.ask("run", {"tasks": ["send_email"], "events": ["job:complete"]})
    (tmp_path / "crontab").write_text("0 4 * * * send_email ?id=nightly {to: 'all'}\n", encoding="utf-8")
    terminals = Terminals(tmp_path, empty_db.dsn)
    added = 0

    async def node_adds() -> None:
        nonlocal added
        added += 1
        await peer.ask("addJob", "send_email", {"to": f"number {added}"})

    async def printed(words: str) -> bool:
        return words in terminals.log.read_text()

    async def started(times: int) -> bool:
        return terminals.log.read_text().count(" started: ") == times

    said: dict[str, str] = {}
    workers = 0
    try:
        for command in steps(tmp_path):
            said[command] = await terminals.type(command)
            if command.startswith("backfill worker "):
                workers += 1
                await until(partial(started, workers), "the worker has started")
            if command == "backfill schema check":  # Node runs on
                await node_adds()
                await peer.event("job:complete")
            elif command == "backfill jobs list --task send_email":  # Node is stopped, and its jobs are run here
                await peer.ask("stop")
                await node_adds()
                await until(partial(printed, "sent to number 2"), "it runs here")
            elif command.startswith("backfill enqueue"):
                await until(partial(printed, "sent to grace@example.com"), "it runs here")
    finally:
        await terminals.end_worker()
    assert "would have applied dead_letter_queue" in said["backfill schema install --dry-run"]
    assert "applied dead_letter_queue" in said["backfill schema install"]
    assert "as it should be" in said["backfill schema check"]
    assert "nightly" in said["backfill cron list"]
    assert [row["side"] for row in await empty_runs.fetch("select side from public.runs")] == ["node"]
    assert await empty_runs.fetchval(f"select count(*) from {SCHEMA}._private_jobs") == 0


def steps(folder: Path) -> list[str]:
    """The commands of the guide; its files are written into the folder."""
    text = (ROOT / PAGE).read_text(encoding="utf-8")
    start = text[: text.index(TITLE)].count("\n")
    end = text[: text.index("## Conformance")].count("\n")
    commands: list[Any] = []
    for block in blocks_of(PAGE):
        if start < block.line < end:
            if block.file is not None:
                (folder / block.file).write_text(block.code, encoding="utf-8")
            commands += block.commands
    assert len(commands) >= 10
    return commands
