"""Adding a job in one of the usual ways."""

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

import pytest

from backfill import (
    BackfillClient,
    EnqueueOutcome,
    enqueue_bulk,
    enqueue_bulk_with_retries,
    enqueue_critical,
    enqueue_emergency,
    enqueue_fast,
    enqueue_fast_with_retries,
    enqueue_serial,
)
from backfill.errors import InvalidJob

if TYPE_CHECKING:
    from tests.client.conftest import Raw


@pytest.mark.parametrize(
    ("add", "stored"),
    [
        (enqueue_fast, (-5, 8, None)),
        (enqueue_bulk, (0, 8, None)),
        (enqueue_emergency, (-20, 8, None)),
        (enqueue_fast_with_retries, (-10, 3, '{"backfill:retry=fast": true}')),
        (enqueue_critical, (-10, 12, '{"backfill:retry=aggressive": true}')),
        (enqueue_bulk_with_retries, (0, 5, '{"backfill:retry=conservative": true}')),
    ],
)
async def test_priority_and_policy(
    client: BackfillClient,
    raw: "Raw",
    add: Callable[..., Awaitable[EnqueueOutcome]],
    stored: tuple[int, int, str | None],
) -> None:
    await add(client, "t", {"a": 1})
    await add(client, "t", job_key="k")
    for row, (payload, key) in zip(await raw.jobs(), [('{"a":1}', None), ("{}", "k")], strict=True):
        assert (row["task"], row["queue"], row["payload"], row["key"]) == ("t", None, payload, key)
        assert (row["priority"], row["max_attempts"], row["flags"]) == stored
        assert row["at_once"]


async def test_serial(client: BackfillClient, raw: "Raw") -> None:
    await enqueue_serial(client, "t", 1, "customer:7")
    await enqueue_serial(client, "t", 2, "customer:7", -3, "k")
    assert [(job["queue"], job["payload"], job["priority"], job["key"]) for job in await raw.jobs()] == [
        ("customer:7", "1", 0, None),
        ("customer:7", "2", -3, "k"),
    ]
    with pytest.raises(InvalidJob, match="queue name"):
        await enqueue_serial(client, "t", 1, "")
