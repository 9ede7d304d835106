"""Errors of the driver, told as errors of ours."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import asyncpg

from backfill.db import translate

# What a statement or its connection can raise; a TimeoutError is an OSError.
DRIVER_ERRORS: Final = (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError)


@contextmanager
def doing(what: str) -> Iterator[None]:
    """Raise what the driver raises in the block as a DatabaseError or SchemaError that begins with ``what``."""
    try:
        yield
    except DRIVER_ERRORS as error:
        raise translate(error, what) from error
