"""The SQL check: every statement, prepared by the server on an installed schema with an awkward name."""

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import backfill
from backfill.schema.check import prepare_problems
from backfill.sql import Statement, statements

if TYPE_CHECKING:
    from tests.conftest import Database

SOURCES = [path.read_text(encoding="utf-8") for path in Path(backfill.__file__).parent.rglob("*.py")]


async def test_every_statement_takes_and_gives_what_it_declares(db: "Database") -> None:
    connection = await db.connect()
    problems = [
        problem for each in statements().values() for problem in await prepare_problems(connection, each, db.schema)
    ]
    assert problems == []


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        (Statement("x", "", (), (), "select id from graphile_worker.nothing", "f"), "cannot be prepared"),
        (
            Statement("x", "", (("id", "int4"),), (), "delete from graphile_worker._private_jobs where id = $1", "f"),
            "takes int8",
        ),
        (Statement("x", "", (), (("id", "text"),), "select id from graphile_worker.jobs", "f"), "gives id int8"),
        (Statement("x", "", (), (("key", "text"),), "select key as k from graphile_worker.jobs", "f"), "gives k text"),
    ],
)
async def test_a_wrong_statement_is_noticed(db: "Database", given: Statement, complaint: str) -> None:
    problems = await prepare_problems(await db.connect(), given, db.schema)
    assert len(problems) == 1
    assert complaint in problems[0]


def test_every_statement_is_used() -> None:
    unused = [name for name in statements() if not any(f'"{name}"' in source for source in SOURCES)]
    assert unused == []
