"""Retry policies: how long a failed job waits before it runs again."""

import math
import random
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from types import MappingProxyType
from typing import Self

from backfill.errors import InvalidJob
from backfill.model.values import MAX_ATTEMPTS, checked_int, duration_text, parse_duration

_NUMBER = re.compile(r"[0-9]+(\.[0-9]+)?(e[+-]?[0-9]+)?")
_LONGEST = timedelta(days=36500)  # a century: a run_at of now plus twice this is still a date that Python can hold


def graphile_delay(attempts: int) -> float:
    """Return the seconds that a job without any policy waits: Graphile Worker's exp(min(attempts, 10)).

    Parameters:
        attempts: How often the job has run, the failed run included.
    """
    return math.exp(min(attempts, 10))


def _delay(field: str, value: timedelta | float) -> timedelta:
    if not isinstance(value, timedelta):
        seconds = _number(field, value)
        if seconds > _LONGEST.total_seconds():
            raise InvalidJob(f"retry policy: {field} must be at most {_LONGEST.days} days, not {value!r} s")
        value = timedelta(seconds=seconds)
    if not timedelta(0) <= value <= _LONGEST:
        raise InvalidJob(
            f"retry policy: {field} must be zero to {_LONGEST.days} days, not {duration_text(value)} s",
        )
    return value


def _number(field: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InvalidJob(f"retry policy: {field} must be a number, not {value!r} ({type(value).__name__})")
    if not math.isfinite(value):
        raise InvalidJob(f"retry policy: {field} must be finite, not {value!r}")
    return float(value)


def checked_policy(value: object) -> "RetryPolicy":
    """Return `value` when it is a retry policy.

    Raises:
        InvalidJob: It is something else, such as a preset's name.
    """
    if not isinstance(value, RetryPolicy):
        raise InvalidJob(f"retry_policy must be a RetryPolicy such as RetryPolicy.fast(), not {value!r}")
    return value


@dataclass(frozen=True, slots=True, init=False)
class RetryPolicy:
    """How often a job is tried and how long it waits in between.

    The wait after the failed attempt n, counted from 0, is `initial_delay * backoff_multiplier ** n`, at most
    `max_delay`, then changed at random by up to `jitter_factor` of itself in either direction.

    Attributes:
        max_attempts: Runs in all, the first included, 1 to 32767. It becomes the job's limit when the job is
            enqueued with the policy; from then on the job's own limit decides how often, the policy when.
        initial_delay: The wait after the first failure; a timedelta or seconds, zero to a century.
        max_delay: The longest wait before jitter; a timedelta or seconds, at least `initial_delay`.
        backoff_multiplier: By what the wait grows each time, at least 1.
        jitter_factor: The share of the wait that is random, 0 to 1.

    Raises:
        InvalidJob: A value is out of its range.
    """

    max_attempts: int
    initial_delay: timedelta
    max_delay: timedelta
    backoff_multiplier: float
    jitter_factor: float

    def __init__(
        self,
        max_attempts: int = 8,
        initial_delay: timedelta | float = 1.0,
        max_delay: timedelta | float = 300.0,
        backoff_multiplier: float = 2.0,
        jitter_factor: float = 0.1,
    ) -> None:
        first, longest = _delay("initial_delay", initial_delay), _delay("max_delay", max_delay)
        multiplier, jitter = _number("backoff_multiplier", backoff_multiplier), _number("jitter_factor", jitter_factor)
        if longest < first:
            raise InvalidJob(
                f"retry policy: max_delay ({duration_text(longest)} s) must be at least "
                f"initial_delay ({duration_text(first)} s)"
            )
        if multiplier < 1:
            raise InvalidJob(f"retry policy: backoff_multiplier must be at least 1, not {multiplier}")
        if not 0 <= jitter <= 1:
            raise InvalidJob(f"retry policy: jitter_factor must be 0 to 1, not {jitter}")
        put = object.__setattr__  # the dataclass is frozen
        put(self, "max_attempts", checked_int("retry policy: max_attempts", max_attempts, 1, MAX_ATTEMPTS))
        put(self, "initial_delay", first)
        put(self, "max_delay", longest)
        put(self, "backoff_multiplier", multiplier)
        put(self, "jitter_factor", jitter)

    @classmethod
    def default(cls) -> Self:
        """Return 8 attempts, from 1 s doubling to 300 s, 10 % jitter."""
        return cls()

    @classmethod
    def fast(cls) -> Self:
        """Return 3 attempts, from 100 ms doubling to 30 s, 10 % jitter: for what a user waits for."""
        return cls(3, 0.1, 30.0, 2.0, 0.1)

    @classmethod
    def aggressive(cls) -> Self:
        """Return 12 attempts, from 500 ms by 1.5 to 600 s, 15 % jitter: for what must not get lost."""
        return cls(12, 0.5, 600.0, 1.5, 0.15)

    @classmethod
    def conservative(cls) -> Self:
        """Return 5 attempts, from 5 s by 2.5 to 1800 s, 20 % jitter: for services that need rest."""
        return cls(5, 5.0, 1800.0, 2.5, 0.2)

    def backoff(self, attempt: int) -> timedelta:
        """Return the wait after a failed attempt, however many attempts this policy names.

        This is what a worker applies: the job's own limit has already decided that it runs again.

        Parameters:
            attempt: The failed attempt, counted from 0.
        """
        longest = self.max_delay.total_seconds()
        try:
            wait = min(self.initial_delay.total_seconds() * self.backoff_multiplier**attempt, longest)
        except OverflowError:  # the power left the floats; nothing grows from an initial delay of zero
            wait = longest if self.initial_delay else 0.0
        spread = self.jitter_factor * (2.0 * random.random() - 1.0)  # noqa: S311 - spreads load, guards nothing
        return timedelta(seconds=max(0.0, wait * (1.0 + spread)))

    def delay(self, attempt: int) -> timedelta:
        """Return the wait after a failed attempt; zero from `max_attempts` on, when they are used up.

        Parameters:
            attempt: The failed attempt, counted from 0.

        Raises:
            InvalidJob: The attempt is negative or no int.
        """
        if checked_int("attempt", attempt, 0, 2**63 - 1) >= self.max_attempts:
            return timedelta(0)
        return self.backoff(attempt)

    def calculate_retry_time(self, attempt: int, failed_at: datetime) -> datetime:
        """Return when a job runs again whose attempt, counted from 0, failed at `failed_at`."""
        return failed_at + self.delay(attempt)

    @property
    def preset_name(self) -> str | None:
        """The name of the preset that has the same waits (`max_attempts` aside), or None."""
        return _PRESET_NAMES.get(self._waits())

    def to_text(self) -> str:
        """Return the waits as `<initial s>/<max s>/<multiplier>/<jitter>`; `max_attempts` is the job's own."""
        initial, longest = duration_text(self.initial_delay), duration_text(self.max_delay)
        return f"{initial}/{longest}/{self.backoff_multiplier!r}/{self.jitter_factor!r}"

    @classmethod
    def parse(cls, text: str, max_attempts: int = MAX_ATTEMPTS) -> Self:
        """Read a preset's name or the form of `to_text`.

        Parameters:
            text: As in `fast` or `0.1/30/2.0/0.1`.
            max_attempts: The policy's limit, which the text does not have.

        Raises:
            ValueError: The text is neither, or one of its values is out of range.
        """
        preset = PRESETS.get(text)
        if preset is not None:
            waits = preset._waits()  # noqa: SLF001 - its own class
            return cls(max_attempts, *waits)
        parts = text.split("/")
        if len(parts) != 4 or not all(_NUMBER.fullmatch(part) for part in parts[2:]):
            raise ValueError(
                f"{text!r} is no retry policy: use {', '.join(PRESETS)} or <initial s>/<max s>/<multiplier>/<jitter>"
            )
        initial, longest = parse_duration(parts[0]), parse_duration(parts[1])
        return cls(max_attempts, initial, longest, float(parts[2]), float(parts[3]))

    def _waits(self) -> tuple[timedelta, timedelta, float, float]:
        return self.initial_delay, self.max_delay, self.backoff_multiplier, self.jitter_factor


PRESETS: Mapping[str, RetryPolicy] = MappingProxyType(
    {
        "default": RetryPolicy.default(),
        "fast": RetryPolicy.fast(),
        "aggressive": RetryPolicy.aggressive(),
        "conservative": RetryPolicy.conservative(),
    }
)
_PRESET_NAMES = {policy._waits(): name for name, policy in PRESETS.items()}  # noqa: SLF001 - its own module
