"""Every Python block of the documentation runs, with `client`, `pool` and `database_url` at hand."""

import ast
import inspect
import sys
import types
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from tests.docs.blocks import ROOT, Block, blocks_of

from backfill import BackfillClient, task

PAGES = ["README.md", *sorted(str(page.relative_to(ROOT)) for page in (ROOT / "docs").glob("*.md"))]
BLOCKS = [
    pytest.param(block, f"{page}:{block.line}", id=f"{page}:{block.line}")
    for page in PAGES
    for block in blocks_of(page)
    if block.language == "python" and block.file is None
]


@pytest.fixture
async def names(db: Any, client: BackfillClient) -> AsyncIterator[dict[str, Any]]:
    """What the pages take as given."""

    @task("greet")
    async def greet(payload: dict[str, str]) -> None: ...

    @task("charge")
    async def charge(payload: dict[str, str]) -> None: ...

    async with asyncpg.create_pool(db.dsn, min_size=1) as pool:
        await pool.execute("create table orders (id serial, customer text)")
        yield {
            "client": client,
            "pool": pool,
            "database_url": db.dsn,
            "greet": greet,
            "charge": charge,
        }


@pytest.mark.parametrize(("block", "where"), BLOCKS)
async def test_the_block_runs(
    block: Block, where: str, names: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DATABASE_URL", names["database_url"])
    code = compile(block.code, where, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    module = types.ModuleType("documented")
    monkeypatch.setitem(sys.modules, "documented", module)
    module.__dict__.update(names)
    ended = eval(code, module.__dict__)
    if inspect.iscoroutine(ended):
        await ended
    stop, background = module.__dict__.get("stop"), module.__dict__.get("background")
    if stop is not None and background is not None:
        stop.set()
        await background
        await module.__dict__["runner"].close()
