"""Whether a failed job is worth another try.

| raised | retried |
| --- | --- |
| a ``WorkerError`` | as its class says (``is_retryable``) |
| ``OSError`` (network and files), any time-out | yes |
| ``TypeError``, ``ValueError``, ``LookupError``, ``AttributeError``, ``NameError``, ``ArithmeticError``, ``SyntaxError``, ``NotImplementedError`` | no: the same input fails again |
| one of these whose message speaks of a passing trouble (``timed out``, ``connection``, ``rate limit`` …) | yes |
| an exception group | if one of its errors is |
| anything else | yes |

A message can only make an error retryable, never the reverse: giving up on a job is the dearer mistake.
"""

import re
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import CodeType, TracebackType
from typing import Any, Final

import msgspec

from backfill.errors import WorkerError

_NOT_RETRYABLE: Final = (
    TypeError,
    ValueError,
    LookupError,
    AttributeError,
    NameError,
    ArithmeticError,
    SyntaxError,
    NotImplementedError,
)
_PASSING: Final = re.compile(
    r"time[d ]?\s?-?out|temporar|unavailable|connection|connect to|network|too many requests|rate.?limit|throttl"
    r"|try again|deadlock|serializ\w+ failure"
    r"|(?<!line )(?<!column )(?<!position )(?<!byte )(?<!char )\b(?:429|502|503|504)\b",
    re.IGNORECASE,
)
_SLOT: Final = str(Path(__file__).with_name("slot.py"))
_SHOWN_WITH_MORE: Final = (BaseExceptionGroup, SyntaxError, NameError, AttributeError, ImportError)
_DEEPEST: Final = 30  # frames of a stack that is kept
_MOST_STACKS: Final = 200
_LONGEST_MESSAGE: Final = 10_000  # characters kept of a message, and of a traceback twice that

_Place = tuple[tuple[str, CodeType, int], ...]  # equal code may be in two files
# Where thousands of jobs fail, they fail in a few places; to look up and underline each line anew takes ten times as long.
_stacks: dict[_Place, str] = {}


def is_retryable(error: BaseException) -> bool:
    """Whether a job that raised this may succeed on another try; the module's table is the rule."""
    if isinstance(error, WorkerError):
        return error.is_retryable
    if isinstance(error, BaseExceptionGroup):
        return any(is_retryable(inner) for inner in error.exceptions)
    if isinstance(error, OSError | TimeoutError):
        return True
    if isinstance(error, _NOT_RETRYABLE):
        return _PASSING.search(_message(error)) is not None
    return True


def describe(error: BaseException) -> str:
    """One line or more for ``last_error``: the error's type and text, storable and of a bounded length."""
    name, message = type(error).__name__, _message(error)
    return storable(f"{name}: {message}" if message else name, _LONGEST_MESSAGE)


def detail(error: BaseException, **more: Any) -> str:
    """The error as a JSON object for a dead letter: type, message, traceback, whether it is retryable, and ``more``."""
    kind = type(error)
    value = {
        "type": kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}",
        "message": storable(_message(error), _LONGEST_MESSAGE),
        "retryable": is_retryable(error),
        "traceback": storable(_traceback(error), 2 * _LONGEST_MESSAGE, keep_end=True),
        **more,
    }
    return msgspec.json.encode(value).decode()


def storable(text: str, limit: int, *, keep_end: bool = False) -> str:
    """The text without what PostgreSQL can't store (NUL, lone surrogates), cut to ``limit`` characters.

    Args:
        text: Any text.
        limit: Characters kept.
        keep_end: Keep the end instead of the beginning, as suits a traceback.
    """
    if len(text) > limit:
        left_out = len(text) - limit
        text = (
            f"[{left_out} characters left out] {text[-limit:]}"
            if keep_end
            else f"{text[:limit]} [{left_out} characters left out]"
        )
    return text.replace("\x00", "").encode("utf-8", "replace").decode()


def _message(error: BaseException) -> str:
    try:
        return str(error)
    except Exception as broken:  # noqa: BLE001 - an error whose text can't be made must still fail its job
        return f"(its text raised {type(broken).__name__})"


def _place(error: BaseException) -> _Place | None:
    """Where the error was raised; None if more than that goes into its traceback, or more than is kept."""
    if error.__cause__ is not None or (error.__context__ is not None and not error.__suppress_context__):
        return None
    if isinstance(error, _SHOWN_WITH_MORE):
        return None
    calls = [(code.co_filename, code, last) for code, last in _calls(error.__traceback__) if code.co_filename != _SLOT]
    return tuple(calls) if 0 < len(calls) <= _DEEPEST else None


def _calls(trace: TracebackType | None) -> Iterator[tuple[CodeType, int]]:
    while trace is not None:
        yield trace.tb_frame.f_code, trace.tb_lasti
        trace = trace.tb_next


def _traceback(error: BaseException) -> str:
    """The traceback without the frames of the slot, which say nothing about the handler."""
    try:
        place = _place(error)
        stack = _stacks.get(place) if place else None
        if stack is not None:
            return "".join([stack, *traceback.format_exception_only(error)])
        shown = traceback.TracebackException.from_exception(error)
        shown.stack = traceback.StackSummary.from_list([frame for frame in shown.stack if frame.filename != _SLOT])
        if place:
            if len(_stacks) == _MOST_STACKS:
                _stacks.clear()
            _stacks[place] = "".join(["Traceback (most recent call last):\n", *shown.stack.format()])
        return "".join(shown.format())
    except Exception as broken:  # noqa: BLE001 - as above; Python's own formatting trips over odd attributes
        return f"(its traceback can't be shown: {type(broken).__name__})"
