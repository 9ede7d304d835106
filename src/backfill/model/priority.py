"""Priorities: which of the due jobs runs first."""

from typing import ClassVar, Self

from backfill.model.values import checked_int

_LOWEST, _HIGHEST = -32768, 32767  # the column is an int2
_BANDS = (
    (-20, "emergency"),
    (-10, "fast_high"),
    (-1, "fast_default"),
    (0, "bulk_default"),
    (5, "bulk_low"),
    (10, "bulk_lowest"),
)


def priority_band(priority: int) -> str:
    """Return the name of the band that a priority belongs to: the bounded label of the metrics."""
    for upper, band in _BANDS:
        if priority <= upper:
            return band
    return "other"


class Priority(int):
    """A job's priority: any int of -32768 to 32767, and the lower number runs first.

    It is an int in every respect: it compares, sorts and is stored as one. The named values are class attributes.

    Raises:
        InvalidJob: The value is no int, is a bool, or is out of range.
    """

    EMERGENCY: ClassVar["Priority"]
    FAST_HIGH: ClassVar["Priority"]
    FAST_DEFAULT: ClassVar["Priority"]
    BULK_DEFAULT: ClassVar["Priority"]
    BULK_LOW: ClassVar["Priority"]
    BULK_LOWEST: ClassVar["Priority"]

    __slots__ = ()

    def __new__(cls, value: int) -> Self:
        """Make a priority of an int in range."""
        return super().__new__(cls, checked_int("priority", value, _LOWEST, _HIGHEST))

    @property
    def band(self) -> str:
        """The band's name: emergency, fast_high, fast_default, bulk_default, bulk_low, bulk_lowest or other."""
        return priority_band(self)

    def __repr__(self) -> str:
        name = _NAMES.get(int(self))
        return f"Priority({int(self)})" if name is None else f"Priority.{name}"

    __str__ = int.__repr__


Priority.EMERGENCY = Priority(-20)
Priority.FAST_HIGH = Priority(-10)
Priority.FAST_DEFAULT = Priority(-5)
Priority.BULK_DEFAULT = Priority(0)
Priority.BULK_LOW = Priority(5)
Priority.BULK_LOWEST = Priority(10)

_NAMES = {int(value): name for name, value in vars(Priority).items() if isinstance(value, Priority)}
