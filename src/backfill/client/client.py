"""BackfillClient: the operations of this package with a pool behind them."""

import asyncio
from collections.abc import Iterable
from types import TracebackType
from typing import Self

from backfill.client import dlq_scanner
from backfill.client.enqueuer import Enqueuer
from backfill.client.operations import Operations
from backfill.db import DEFAULT_SCHEMA, SMALL_SETTINGS, Borrowed, Pool, check_schema_name, close_pool, open_pool
from backfill.errors import ConfigurationError
from backfill.hooks import HookRegistry, Plugin
from backfill.schema import open_schema

_NOT_OPEN = "the client is not open: use `async with BackfillClient(...)`, or await its open()"


class BackfillClient(Operations):
    """Adds jobs, and looks at, changes and dead-letters them.

    Use it as an async context manager, or call ``open`` and ``close``.

    Attributes:
        hooks: Its registry.

    Args:
        url_or_pool: A database URL, for a pool of its own; or an open asyncpg pool, which is not closed with the client.
        schema: The schema's name, unquoted.
        install: Install what is missing of the schema when opening.
        plugins: Hooks of a client are those of ``BeforeJobSchedule``: they see each job that it adds.
        hooks: A registry to use, and to register the plugins with; None = one of its own.

    Raises:
        ConfigurationError: PostgreSQL cannot have a schema of that name, or a plugin is none.
    """

    def __init__(
        self,
        url_or_pool: str | Pool,
        schema: str = DEFAULT_SCHEMA,
        install: bool = True,
        *,
        plugins: Iterable[Plugin] = (),
        hooks: HookRegistry | None = None,
    ) -> None:
        self.hooks = HookRegistry() if hooks is None else hooks
        for plugin in plugins:
            self.hooks.add_plugin(plugin)
        self._url = url_or_pool if isinstance(url_or_pool, str) else None
        self._given = None if isinstance(url_or_pool, str) else url_or_pool
        self._schema = check_schema_name(schema)
        self._install = install
        self._settings = dict(SMALL_SETTINGS)
        self._pool: Pool | None = None
        self._enqueuer: Enqueuer | None = None
        self.background: set[asyncio.Task[None]] = set()  # ends with the client

    async def open(self) -> Self:
        """Connect, install the schema if asked to, and check that this role can work on it; return the client.

        Raises:
            DatabaseError: The database cannot be reached.
            SchemaError: The schema does not fit, is missing (without ``install``), or row-level security hides its jobs
                from this role; the message says what to do.
        """
        if self._pool is None:
            pool = self._given or await open_pool(str(self._url), settings=self._settings)
            try:
                async with Borrowed(pool, "cannot open the client") as connection:
                    state = await open_schema(connection, self._schema, installing=self._install)
            except BaseException:
                if pool is not self._given:
                    await close_pool(pool)
                raise
            enqueuer = Enqueuer(pool, self._schema, self.hooks, familiar=state.is_familiar)
            self._pool, self._enqueuer = pool, enqueuer
        return self

    async def close(self) -> None:
        """Announce the jobs that have not been announced yet, and close the pool unless it was given. Safe to call twice."""
        pool, enqueuer = self._pool, self._enqueuer
        if pool is None or enqueuer is None:
            return
        self._pool = self._enqueuer = None
        await dlq_scanner.end(self.background)
        await enqueuer.close()
        if pool is not self._given:
            await close_pool(pool)

    async def name_sessions(self, name: str) -> None:
        """Have the server know the sessions of the client's pool by another name than ``backfill``; not of a pool that was given.

        Connections that are open are replaced, those in use when they come back.

        Args:
            name: What their ``application_name`` is from now on.
        """
        self._settings["application_name"] = name
        if self._pool is not None and self._pool is not self._given:
            await self._pool.expire_connections()

    async def __aenter__(self) -> Self:
        return await self.open()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    @property
    def schema(self) -> str:
        """The schema's name, unquoted."""
        return self._schema

    @property
    def pool(self) -> Pool:
        """The connections that the client works with."""
        if self._pool is None:
            raise ConfigurationError(_NOT_OPEN)
        return self._pool

    @property
    def enqueuer(self) -> Enqueuer:
        """What adds jobs for the client."""
        if self._enqueuer is None:
            raise ConfigurationError(_NOT_OPEN)
        return self._enqueuer
