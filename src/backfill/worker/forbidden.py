"""Flags whose jobs a worker leaves alone: fixed, or asked of a function before each claim.

The claim passes by such jobs in SQL, before it counts how many it has, so that they hold up nobody however many wait in
front; their attempts stay as they are. Without a forbidden flag the claim is the plain statement.

When the function raises, gives something that is no list of names, or takes longer than ten seconds, there is no claim:
what may be forbidden must not run because nobody could say so. The claim is tried again, with growing pauses.
"""

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Iterable
from typing import Final, TypeAlias

from backfill.errors import BackfillError, ConfigurationError, InvalidJob
from backfill.model.values import checked_flags

FlagNames: TypeAlias = Iterable[str] | None
ForbiddenFlags: TypeAlias = FlagNames | Callable[[], FlagNames | Awaitable[FlagNames]]
"""Names of flags, or a function (``def`` or ``async def``, without parameters) that gives them; None = none."""

_PATIENCE: Final = 10.0  # seconds for a function


class ForbiddenFlagsError(BackfillError):
    """The function of ``forbidden_flags`` did not say which flags are forbidden."""


def checked_forbidden(given: ForbiddenFlags) -> ForbiddenFlags:
    """The setting as it is kept: a function, or a set of names.

    Raises:
        ConfigurationError: It is neither, or a name can't be a flag of the user's.
    """
    if given is None or callable(given):
        return given
    try:
        return checked_flags("forbidden_flags", given)
    except InvalidJob as error:
        raise ConfigurationError(f"{error}; a function that gives the names is possible, too") from error


async def flags_now(given: ForbiddenFlags) -> list[str]:
    """The forbidden flags at this moment, sorted.

    Raises:
        ForbiddenFlagsError: The function failed; its own error is the cause.
    """
    if not callable(given):
        return sorted(given or ())
    try:
        async with asyncio.timeout(_PATIENCE):
            answer = given()
            names = await answer if inspect.isawaitable(answer) else answer
        return sorted(checked_flags("its result", () if names is None else names))
    except Exception as error:
        what = "took too long" if isinstance(error, TimeoutError) else f"failed with {type(error).__name__}: {error}"
        raise ForbiddenFlagsError(
            f"the function of forbidden_flags {what}; no job is claimed until it answers"
        ) from error
