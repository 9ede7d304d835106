"""Values of options and arguments: times, durations, priorities, retry policies, payloads."""

import re
import sys
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from backfill.errors import BackfillError
from backfill.model import Priority, RetryPolicy, decode_payload
from backfill.model.retry import PRESETS

if TYPE_CHECKING:
    from click import ParamType as ParamType  # noqa: PLC0414 - for others to import
else:

    class ParamType(click.ParamType):
        """Generic also where click's own is not yet."""

        __class_getitem__ = classmethod(lambda cls, _: cls)


_UNITS: Final = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}  # seconds
_PARTS: Final = re.compile(r"(?:\d+(?:\.\d+)?(?:ms|s|m|h|d|w))+")
_PART: Final = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d|w)")
_NUMBER: Final = re.compile(r"\d+(?:\.\d+)?")
_RFC3339: Final = re.compile(r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d(?:\.\d+)?(?P<offset>[Zz]|[+-]\d\d:\d\d)?")


@dataclass(frozen=True, slots=True)
class Moment:
    """A moment as it was given: a time, or so long from now.

    Attributes:
        at: The time; None when it was given as a distance.
        after: The distance; negative for the past.
    """

    at: datetime | None
    after: timedelta = timedelta()

    @property
    def is_now(self) -> bool:
        """Whether it was given as ``now``."""
        return self.at is None and not self.after

    def by(self, now: datetime) -> datetime:
        """The moment as a time, by a clock that says ``now``.

        Raises:
            click.UsageError: It is beyond what a date can be.
        """
        try:
            return now + self.after if self.at is None else self.at
        except OverflowError as error:
            raise click.UsageError("a time is too far away to be a date") from error


@dataclass(frozen=True, slots=True)
class Payload:
    """A payload that was given.

    Attributes:
        value: What the JSON says; null is None.
    """

    value: Any


class MomentType(ParamType[Moment]):
    """RFC 3339 with an offset, ``now``, or a distance from now such as ``+5m``, ``+1h30m`` or ``-2d``."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Moment:
        """Read it."""
        if isinstance(value, Moment):
            return value
        text = str(value).strip()
        if text == "now":
            return Moment(None)
        if text[:1] in ("+", "-") and _PARTS.fullmatch(text[1:]):
            distance = self._checked(text[1:], param, ctx)
            return Moment(None, -distance if text[0] == "-" else distance)
        match = _RFC3339.fullmatch(text)
        if match is None:
            self.fail(f"{text!r} is no time: write 2030-01-31T09:00:00+01:00, now, or +5m (ms s m h d w)", param, ctx)
        if match["offset"] is None:
            self.fail(f"{text!r} has no offset from UTC: add Z or +01:00", param, ctx)
        try:
            return Moment(datetime.fromisoformat(text.upper()).astimezone(UTC))
        except (ValueError, OverflowError) as error:
            self.fail(f"{text!r} is no time: {error}", param, ctx)

    def _checked(self, text: str, param: click.Parameter | None, ctx: click.Context | None) -> timedelta:
        try:
            return duration_of(text)
        except OverflowError:
            self.fail(f"{text!r} is too long", param, ctx)


class DurationType(ParamType[timedelta]):
    """``90``, ``1.5s``, ``200ms``, ``5m``, ``1h30m``: above zero, in seconds without a unit."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> timedelta:
        """Read it."""
        if isinstance(value, timedelta):
            return value
        text = str(value).strip()
        if not _PARTS.fullmatch(text) and not _NUMBER.fullmatch(text):
            self.fail(f"{text!r} is no duration: write 90, 1.5s, 200ms, 5m or 1h30m", param, ctx)
        try:
            duration = duration_of(text if _PARTS.fullmatch(text) else f"{text}s")
        except OverflowError:
            self.fail(f"{text!r} is too long", param, ctx)
        if not duration:
            self.fail(f"{text!r} must be above zero", param, ctx)
        return duration


def duration_of(text: str) -> timedelta:
    """The sum of a text's numbers with units, as in ``1h30m``.

    Raises:
        OverflowError: It is beyond what a timedelta can be.
    """
    return sum((timedelta(seconds=float(n) * _UNITS[unit]) for n, unit in _PART.findall(text)), timedelta())


class PriorityType(ParamType[Priority]):
    """A number of -32768 to 32767, or the name of one, such as FAST_HIGH."""

    name = "priority"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Priority:
        """Read it."""
        name = str(value).strip().upper().replace("-", "_")
        known = {key: named for key, named in vars(Priority).items() if isinstance(named, Priority)}
        if name in known:
            return known[name]
        try:
            return Priority(int(str(value)))
        except ValueError:  # InvalidJob is one
            self.fail(f"{value!r} is no priority: write -32768 to 32767, or {', '.join(known)}", param, ctx)


class RetryType(ParamType[RetryPolicy]):
    """A preset's name, or ``<initial s>/<max s>/<multiplier>/<jitter>``."""

    name = "policy"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> RetryPolicy:
        """Read it; a policy that is no preset has the default's limit of attempts."""
        if isinstance(value, RetryPolicy):
            return value
        try:
            return PRESETS.get(value) or RetryPolicy.parse(value, RetryPolicy.default().max_attempts)
        except (ValueError, BackfillError) as error:
            self.fail(str(error), param, ctx)


class PayloadType(ParamType[Any]):
    """A payload: JSON, ``@file`` for the JSON in a file, ``-`` for the JSON on stdin."""

    name = "payload"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Read it; the value is what the JSON says."""
        if not isinstance(value, str):
            return value
        try:
            if value == "-":
                text = sys.stdin.buffer.read().decode()
            elif value.startswith("@"):
                text = Path(value[1:]).read_text(encoding="utf-8")
            else:
                text = value
        except (OSError, UnicodeDecodeError) as error:
            self.fail(f"the payload can't be read: {error}", param, ctx)
        try:
            return Payload(decode_payload(text))
        except BackfillError as error:
            self.fail(f"the payload must be JSON (a string in double quotes), @file or -: {error}", param, ctx)


MOMENT: Final = MomentType()
DURATION: Final = DurationType()
PRIORITY: Final = PriorityType()
RETRY: Final = RetryType()
PAYLOAD: Final = PayloadType()
