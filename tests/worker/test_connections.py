"""A worker's own connections."""

from typing import TYPE_CHECKING

import pytest

from backfill.db import CLAIM, LISTEN, MAINTENANCE, RELEASE, Limit
from backfill.worker.config import WorkerConfig
from backfill.worker.connections import Connections

if TYPE_CHECKING:
    from tests.conftest import Database


@pytest.mark.parametrize("limit", [CLAIM, RELEASE, LISTEN, MAINTENANCE], ids=lambda limit: limit.name)
async def test_none_compiles_its_statements(db: "Database", limit: Limit) -> None:
    """On PostgreSQL 15 a look for used-up jobs spent a second of a core on it at each start."""
    connection = await Connections(WorkerConfig(database_url=db.dsn), "worker-1").connect(limit)
    try:
        assert await connection.fetchval("show jit") == "off"
        assert await connection.fetchval("show application_name") == f"worker-1:{limit.name}"
    finally:
        await connection.leave()
