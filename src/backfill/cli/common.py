"""What all commands share: the options, the way to the database, and the event loop."""

import asyncio
import contextlib
import functools
import importlib
import importlib.util
import logging
import os
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Concatenate, Final, ParamSpec, TypeVar
from urllib.parse import quote, unquote, urlsplit

import click

from backfill.client import BackfillClient
from backfill.db import DEFAULT_SCHEMA, Connection, check_schema_name, connect
from backfill.errors import ConfigurationError
from backfill.observe.logging import FORMATS, configure
from backfill.sql import text

T = TypeVar("T")
P = ParamSpec("P")

logger = logging.getLogger(__name__)

_EMBEDDED: Final = "embedded"


@dataclass(frozen=True, slots=True)
class Cli:
    """The options that every command has.

    Attributes:
        url_option: What ``--database-url`` was given; None when it was not.
        schema_option: What ``--schema`` was given; None when it was not.
        as_json: Whether stdout is to be one JSON document.
        log_format: ``text`` or ``json``.
    """

    url_option: str | None
    schema_option: str | None
    as_json: bool
    log_format: str

    @property
    def schema(self) -> str:
        """The schema's name: from the option, else GRAPHILE_WORKER_SCHEMA, else graphile_worker.

        Raises:
            ConfigurationError: PostgreSQL cannot have a schema of that name.
        """
        name = self.schema_option
        return check_schema_name(os.environ.get("GRAPHILE_WORKER_SCHEMA") or DEFAULT_SCHEMA if name is None else name)

    @property
    def url(self) -> str | None:
        """The database's URL as it was given: by the option, else by DATABASE_URL; None when by neither."""
        return self.url_option or os.environ.get("DATABASE_URL") or None

    @property
    def required_url(self) -> str:
        """The database's URL as it was given.

        Raises:
            ConfigurationError: No database was named.
        """
        if self.url is None:
            raise ConfigurationError(
                "no database: give --database-url postgresql://user@host/database or set DATABASE_URL."
                " To try backfill without a database of your own: backfill demo"
            )
        return self.url

    @contextlib.contextmanager
    def database(self, *, create: bool = False) -> Iterator[str]:
        """The URL to connect to, for the length of a ``with`` block.

        An ``embedded:///folder`` URL has the embedded server of that folder run for so long.

        Args:
            create: Whether a folder that has no data yet is to get some.

        Raises:
            ConfigurationError: No database was named, or the folder has no data.
        """
        given = self.required_url
        with embedded(given, create=create) if is_embedded(given) else contextlib.nullcontext(given) as url:
            yield url

    def with_client(self, work: Callable[[BackfillClient], Awaitable[T]]) -> T:
        """Do some work with a client of the database and the schema, which must be installed."""
        with self.database() as url:

            async def do() -> T:
                async with BackfillClient(url, schema=self.schema, install=False) as client:
                    return await work(client)

            return run(do())

    def with_connection(self, work: Callable[[Connection], Awaitable[T]], *, create: bool = False) -> T:
        """Do some work with a connection to the database, whatever is in it."""
        with self.database(create=create) as url:

            async def do() -> T:
                connection = await connect(url)
                try:
                    return await work(connection)
                finally:
                    await connection.close()

            return run(do())


def common(level: str = "WARNING") -> Callable[[Callable[Concatenate[Cli, P], T]], Callable[..., T]]:
    """Give a command the options that all have; its function takes them as its first argument, a ``Cli``.

    Args:
        level: What is logged when BACKFILL_LOG_LEVEL does not say.
    """

    def decorate(function: Callable[Concatenate[Cli, P], T]) -> Callable[..., T]:
        @click.option("--database-url", metavar="URL", help="The database. [else: DATABASE_URL]")
        @click.option("--schema", metavar="NAME", help="The schema. [else: GRAPHILE_WORKER_SCHEMA, graphile_worker]")
        @click.option("--json", "as_json", is_flag=True, help="Print one JSON document and nothing else.")
        @click.option("--log-format", type=click.Choice(FORMATS), default="text", help="Of the logs, on stderr.")
        @functools.wraps(function)
        def command(database_url: str | None, schema: str | None, as_json: bool, log_format: str, **options: Any) -> T:
            configure(log_format, os.environ.get("BACKFILL_LOG_LEVEL") or level)
            return function(Cli(database_url, schema, as_json, log_format), **options)  # type: ignore[call-arg]  # click passes by name

        return command

    return decorate


def run(main: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine in a new event loop: uvloop's where that is installed."""
    found = importlib.util.find_spec("uvloop")
    factory = None if found is None else importlib.import_module("uvloop").new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        return runner.run(main)


async def database_time(client: BackfillClient) -> datetime:
    """The database's clock, by which jobs become due."""
    now: datetime = await client.pool.fetchval(text("database_time", client.schema))
    return now


def is_embedded(url: str) -> bool:
    """Whether the URL names the folder of an embedded server."""
    return url.startswith(f"{_EMBEDDED}:")


def embedded_url(folder: Path) -> str:
    """The URL by which other commands find the embedded server's data in that folder."""
    return f"{_EMBEDDED}://{quote(str(folder))}"


@contextlib.contextmanager
def embedded(url: str, *, create: bool) -> Iterator[str]:
    """Have the embedded server of an ``embedded:///folder`` URL run; give the URL to connect to.

    Raises:
        ConfigurationError: The URL is another, or the folder has no data and ``create`` is not set.
        DatabaseError: The server did not start.
    """
    parts = urlsplit(url)
    if parts.netloc or not parts.path.startswith("/"):
        raise ConfigurationError(f"write embedded:///folder, with three slashes and an absolute path, not {url!r}")
    folder = Path(unquote(parts.path))
    if not create and not (folder / "pgdata").is_dir():
        raise ConfigurationError(f"there is no embedded PostgreSQL server's data in {folder}")
    server = importlib.import_module("backfill.embedded").EmbeddedServer(folder)
    with server:
        logger.info("PostgreSQL runs on the data in %s; other programs reach it as %s", folder, server.dsn())
        yield server.dsn()
