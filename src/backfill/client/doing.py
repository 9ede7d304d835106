"""Errors of the driver, told as errors of ours."""

from collections.abc import Iterator
from contextlib import contextmanager

from backfill.db import DRIVER_ERRORS, translate


@contextmanager
def doing(what: str) -> Iterator[None]:
    """Raise what the driver raises in the block as a DatabaseError or SchemaError that begins with ``what``."""
    try:
        yield
    except DRIVER_ERRORS as error:
        raise translate(error, what) from error
