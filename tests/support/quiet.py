"""A server and a fleet of their own, without faults, for what measures one thing at a time."""

import tempfile
from pathlib import Path
from typing import Final, Self

import asyncpg
from tests.support.cluster import Node
from tests.support.fleet import Fleet
from tests.support.ledger import make_ledger

from backfill.client import BackfillClient

SCHEMA: Final = "quiet"


class Quiet:
    """Both, in an `async with` block.

    Attributes:
        node: The server.
        fleet: Workers on it; none at first.
        connection: A connection to the server; the ledger is there.

    Args:
        environment: For the workers.
    """

    def __init__(self, **environment: str) -> None:
        self.node = Node()
        self._folder = tempfile.TemporaryDirectory()
        self.fleet = Fleet(self.node.dsn(), SCHEMA, Path(self._folder.name), environment)
        self.connection: asyncpg.Connection

    async def __aenter__(self) -> Self:
        self.node.make()
        await self.node.start()
        async with BackfillClient(self.node.dsn(), SCHEMA):  # installs the schema
            pass
        self.connection = await asyncpg.connect(self.node.dsn())
        await make_ledger(self.connection)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.connection.close()
        await self.fleet.__aexit__(None, None, None)
        self.node.remove()
        self._folder.cleanup()
