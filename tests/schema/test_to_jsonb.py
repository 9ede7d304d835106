"""Payloads on their way into the dead letter queue and back."""

import json
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.schema.conftest import Sql

TO_JSONB = "select graphile_worker.backfill_to_jsonb($1::text::json)::text"


@pytest.mark.parametrize("payload", ["{}", "null", "5", '"x"', "[1, [2]]", '{"a": {"b": null}}', '"backfill:json"'])
async def test_an_ordinary_payload_is_itself(sql: "Sql", payload: str) -> None:
    assert json.loads(await sql.value(TO_JSONB, payload)) == json.loads(payload) or payload == '"backfill:json"'


@pytest.mark.parametrize(
    "payload",
    [
        '{"a": "\\u0000"}',
        '"\\u0000"',
        '{"\\u0000": 1}',
        '{"n":  1e400000}',
        '["\\ud800"]',
        '{"backfill:json": "5"}',
        '{"backfill:json": "\\u0000", "b": 1}',
        '["backfill:json"]',
    ],
)
async def test_what_jsonb_refuses_or_could_be_mistaken_is_wrapped_unchanged(sql: "Sql", payload: str) -> None:
    assert json.loads(await sql.value(TO_JSONB, payload)) == {"backfill:json": payload}


async def test_nesting_beyond_the_stack_is_wrapped(sql: "Sql") -> None:
    # json and jsonb are parsed with the same limit, so the function gets less of it than the payload had
    payload = "[" * 3000 + "]" * 3000
    await sql.run("create table deep as select $1::text::json as payload", payload)
    await sql.run("set max_stack_depth = '100kB'")
    wrapped = await sql.row(
        "select converted ->> 'backfill:json' as text from deep, graphile_worker.backfill_to_jsonb(payload) as converted"
    )
    assert wrapped["text"] == payload


async def test_a_failure_inside_leaves_the_transaction_usable(sql: "Sql") -> None:
    async with sql.connection.transaction():
        await sql.value(TO_JSONB, '"\\u0000"')
        assert await sql.value("select 1") == 1


async def test_null_stays_null(sql: "Sql") -> None:
    assert await sql.value(TO_JSONB, None) is None
