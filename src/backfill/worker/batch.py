"""Batch tasks, ``@task(..., batch=True)``: one job's payload is a list of items, and each can fail by itself.

Jobs under one key whose payloads are arrays are joined by ``add_job`` while they wait. The handler gets all the items and
returns None (all are done) or a list as long, in their order: an exception for an item that failed, anything else for one
that is done. What can be awaited is awaited first, all at once, and its exception or result is what counts.

How a run ends, beyond what every run knows:

* no items: completed, the handler is not called.
* some failed: the job fails, and its payload becomes those items alone, as they were written. It is worth another try if one
  of them is. On the last attempt the dead letter holds just them.
* the handler raised, ran into its time limit or was cut short: nothing is known about single items; all of them stay.
* a list of another length, or something that is no list: which item is which is not known either. All of them stay, and
  the job is not tried again: it would run again and again what may well be done. This is a mistake in the handler.
* the payload is no array, or an item does not fit its type: ``MalformedData`` that says which; all of them stay.
"""

import asyncio
import collections.abc
import inspect
import json
import re
import typing
from collections.abc import Callable, Mapping
from typing import Any, Final, Self

import msgspec

from backfill.errors import ConfigurationError, JobFailed, MalformedData, WorkerError
from backfill.model import payload_decoder
from backfill.worker.classify import describe, is_retryable

_SHOWN: Final = 20  # failed items that an error tells of
_SHOWN_CHARACTERS: Final = 300  # of each
_NO_ITEMS: Final = re.compile(r"\s*\[\s*\]\s*")
_SPACE: Final = re.compile(r"\s*")
_LISTS: Final = (list, collections.abc.Sequence)
_RAW: Final = msgspec.json.Decoder(list[msgspec.Raw])
_ODD: Final = json.JSONDecoder(parse_int=str, parse_float=str)  # only where a value ends is of interest


class BatchResultError(WorkerError):
    """A batch handler returned something that does not say which items failed; not retryable."""

    is_retryable = False


class ItemsFailedError(ExceptionGroup[Exception]):
    """Some items of a batch failed.

    Attributes:
        payload: The JSON array of these items, each as it was written.
    """

    payload: str

    def __new__(cls, items: list[str], failures: Mapping[int, Exception]) -> Self:
        """Of all items' JSON and the failures by index."""
        told = [f"[{index}] {describe(error)[:_SHOWN_CHARACTERS]}" for index, error in list(failures.items())[:_SHOWN]]
        more = f"; and {len(failures) - _SHOWN} more" if len(failures) > _SHOWN else ""
        first = sorted(failures.values(), key=is_retryable, reverse=True)[
            :_SHOWN
        ]  # whether to try again depends on them
        made = super().__new__(cls, f"{len(failures)} of {len(items)} items failed: {'; '.join(told)}{more}", first)
        made.payload = f"[{','.join(items[index] for index in failures)}]"
        return made

    def __str__(self) -> str:
        return self.message


def has_no_items(text: str) -> bool:
    """Whether a payload's JSON is the empty array."""
    return _NO_ITEMS.fullmatch(text) is not None


def split_items(text: str) -> list[str]:
    """The JSON of each item of an array, as it is written there.

    Raises:
        MalformedData: It is no array.
    """
    try:
        return [bytes(raw).decode() for raw in _RAW.decode(text)]
    except msgspec.ValidationError as error:
        raise MalformedData("the payload of a batch task must be a JSON array of items") from error
    except msgspec.DecodeError:
        return _split_odd(text)


def _split_odd(text: str) -> list[str]:
    """The same for what PostgreSQL's json accepts and msgspec refuses."""
    items: list[str] = []
    at = _after_space(text, 0)
    if text[at : at + 1] != "[":
        raise MalformedData("the payload of a batch task must be a JSON array of items")
    while text[at] != "]":
        begins = _after_space(text, at + 1)
        _, ends = _ODD.raw_decode(text, begins)
        items.append(text[begins:ends])
        at = _after_space(text, ends)
    return items


def _after_space(text: str, at: int) -> int:
    found = _SPACE.match(text, at)
    return at if found is None else found.end()


def items_decoder(annotation: Any) -> Callable[[str], list[Any]]:
    """From a payload's JSON text to the list that a batch handler takes.

    Args:
        annotation: Of the handler's parameter: ``list[Item]`` or ``Sequence[Item]``; Any stands for ``list[Any]``.

    Raises:
        ConfigurationError: It is something else, or no JSON value can become an item.
    """
    listed = list if annotation is Any else annotation
    base = listed
    while typing.get_origin(base) is typing.Annotated:
        base = typing.get_args(base)[0]
    if (typing.get_origin(base) or base) not in _LISTS:
        raise ConfigurationError(f"a batch task takes a list: annotate its payload as list[...], not {annotation!r}")
    (item_type,) = typing.get_args(base) or (Any,)
    decode_all, decode_item = payload_decoder(listed), payload_decoder(item_type)

    def decode(text: str) -> list[Any]:
        try:
            values: list[Any] = decode_all(text)
        except MalformedData as error:
            items = split_items(text)
            for index, item in enumerate(items):
                try:
                    decode_item(item)
                except MalformedData as wrong:
                    raise MalformedData(f"item [{index}] of {len(items)}: {wrong}") from error
            raise
        return values

    return decode


async def settle_items(text: str, run: Any) -> None:
    """Wait for a batch handler and for what it returned.

    Args:
        text: The payload's JSON.
        run: What awaits the handler, or what it has returned.

    Raises:
        ItemsFailedError: Some items failed.
        BatchResultError: The handler returned neither None nor a list of the items' number.
    """
    results = await run if inspect.isawaitable(run) else run
    if results is None:
        return
    items = split_items(text)
    if not isinstance(results, list | tuple) or len(results) != len(items):
        raise _not_aligned(results, len(items))
    results = list(results)
    waiting = [index for index, result in enumerate(results) if inspect.isawaitable(result)]
    ended = await asyncio.gather(*(results[index] for index in waiting), return_exceptions=True)
    for index, result in zip(waiting, ended, strict=True):
        results[index] = result
    failures = {index: _as_error(one) for index, one in enumerate(results) if isinstance(one, BaseException)}
    if failures:
        raise ItemsFailedError(items, failures)


def _not_aligned(results: Any, count: int) -> BatchResultError:
    returned = f"{results!r:.100} ({type(results).__name__})"
    if isinstance(results, list | tuple):
        returned = f"{len(results)} results"
        for result in results:
            if inspect.iscoroutine(result):
                result.close()
    return BatchResultError(
        f"the batch handler returned {returned} for {count} items: return None when all are done, or a list with one result"
        " for each item, in their order. Which of them are done is not known, so all of them are kept"
    )


def _as_error(failure: BaseException) -> Exception:
    """The error of an item; a cancellation is one for the item alone."""
    if isinstance(failure, Exception):
        return failure
    error = JobFailed(f"the item was ended by {type(failure).__name__}")
    error.__cause__ = failure
    return error
