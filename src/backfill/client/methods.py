"""Making the client's methods of the functions and methods that do the work, so that each is described once."""

import functools
import inspect
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

from backfill.client.enqueuer import Enqueuer
from backfill.db import Borrowed, Connection, Pool

P = ParamSpec("P")
R = TypeVar("R")


class Client(Protocol):
    """What the methods need of the client."""

    @property
    def pool(self) -> Pool:
        """Connections."""
        ...

    @property
    def schema(self) -> str:
        """The schema's name."""
        ...

    @property
    def enqueuer(self) -> Enqueuer:
        """What adds jobs."""
        ...


def adding(
    function: Callable[Concatenate[Enqueuer, P], Coroutine[Any, Any, R]],
) -> Callable[Concatenate[Client, P], Coroutine[Any, Any, R]]:
    """The method for a method of Enqueuer."""

    @functools.wraps(function)
    async def method(self: Client, /, *args: P.args, **kwargs: P.kwargs) -> R:
        return await function(self.enqueuer, *args, **kwargs)

    return method


def operation(
    function: Callable[Concatenate[Connection, str, P], Coroutine[Any, Any, R]],
) -> Callable[Concatenate[Client, P], Coroutine[Any, Any, R]]:
    """The method for a function of connection and schema: it takes a connection from the client's pool."""
    what = f"cannot {function.__name__.replace('_', ' ')}"

    @functools.wraps(function)
    async def method(self: Client, /, *args: P.args, **kwargs: P.kwargs) -> R:
        async with Borrowed(self.pool, what) as connection:
            return await function(connection, self.schema, *args, **kwargs)

    _describe(method, function)
    return method


def streaming(
    function: Callable[Concatenate[Connection, str, P], AsyncIterator[R]],
) -> Callable[Concatenate[Client, P], AsyncIterator[R]]:
    """The method for an iterator over a connection and schema: it keeps a connection of the pool until its end."""
    what = f"cannot {function.__name__.replace('_', ' ')}"

    @functools.wraps(function)
    async def method(self: Client, /, *args: P.args, **kwargs: P.kwargs) -> AsyncIterator[R]:
        async with Borrowed(self.pool, what) as connection:
            async for item in function(connection, self.schema, *args, **kwargs):
                yield item

    _describe(method, function)
    return method


def _describe(method: Any, function: Callable[..., Any]) -> None:
    """Give the method the signature of its function as a method has it, for inspect and help()."""
    own = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)
    signature = inspect.signature(function)
    method.__signature__ = signature.replace(parameters=[own, *list(signature.parameters.values())[2:]])
