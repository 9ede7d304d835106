"""The five fields of a cron line: Graphile Worker's grammar, and names of months and days as an addition of ours.

A field is a list, by commas, of a number, a range ``a-b`` that goes upwards, ``*``, or ``*/n``: from the field's lowest value
in steps of n. A weekday 7 is Sunday, as 0 is.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from backfill.cron.match import CronPattern
from backfill.errors import CrontabError, CrontabProblem

MACROS: Final[Mapping[str, str]] = {
    "@hourly": "0 * * * *",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@weekly": "0 0 * * 0",
    "@monthly": "0 0 1 * *",
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
}
MONTHS: Final = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
WEEKDAYS: Final = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")

# What JavaScript calls white space; Python's own idea of it is another.
BLANK: Final = "[\\t\\n\\v\\f\\r \u00a0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000\ufeff]"
WORD: Final = re.compile(BLANK.replace("[", "[^") + "+")

_PART: Final = re.compile(
    r"(?P<number>[0-9]+|[A-Za-z]{3})|(?P<low>[0-9]+|[A-Za-z]{3})-(?P<high>[0-9]+|[A-Za-z]{3})|\*(?:/(?P<step>[0-9]+))?"
)
_MOST_DIGITS: Final = 9


class Misfit(Exception):  # noqa: N818 - never leaves the parser
    """Something that the grammar has no place for.

    Attributes:
        at: Where in the text that is being read, from 0.
        length: How many characters of it.
        expected: What should stand there.
        found: What does.
    """

    def __init__(self, at: int, found: str, expected: str, *, length: int | None = None) -> None:
        super().__init__(at, found, expected)
        self.at = at
        self.found = found if length is not None else quoted(found)
        self.length = max(1, len(found) if length is None else length)
        self.expected = expected

    def problem(self, line: int | None, text: str) -> CrontabProblem:
        """The problem, of a line of a crontab; without a number, of a text given in code."""
        if line is None:
            return CrontabProblem(
                self.expected, self.found if self.length == len(text) else f"{self.found} in {quoted(text)}"
            )
        return CrontabProblem(self.expected, self.found, line, self.at + 1, self.length, text)


@dataclass(frozen=True, slots=True)
class Field:
    """One of the five.

    Attributes:
        name: What messages call it.
        low: The lowest value.
        high: The highest value.
        names: What can be written for ``low``, ``low + 1`` and so on.
    """

    name: str
    low: int
    high: int
    names: Sequence[str] = field(default=())

    @property
    def is_weekday(self) -> bool:
        """Whether 7 is 0 here."""
        return self.names is WEEKDAYS

    @property
    def bounds(self) -> str:
        """The values, in words."""
        names = f" or {self.names[0]}-{self.names[-1]}" if self.names else ""
        return f"{self.name} of {self.low}-{self.high}{names}"


FIELDS: Final = (
    Field("minutes", 0, 59),
    Field("hours", 0, 23),
    Field("days", 1, 31),
    Field("months", 1, 12, MONTHS),
    Field("weekdays", 0, 7, WEEKDAYS),
)


def quoted(text: str, most: int = 40) -> str:
    """A piece of a line as messages quote it."""
    return repr(text if len(text) <= most else f"{text[:most]}…")


def parse_pattern(text: str) -> CronPattern:
    """The pattern of five fields, or of one of the names such as ``@daily``.

    Raises:
        CrontabError: They are not five, or one does not fit.
    """
    words = [(word[0], word.start()) for word in WORD.finditer(text)]
    try:
        if len(words) == 1 and words[0][0].startswith("@"):
            return macro(*words[0])
        if len(words) == len(FIELDS):
            return fields_of(words)
        misfit = Misfit(0, text, "five fields: minute, hour, day, month, weekday")
    except Misfit as found:
        misfit = found
    raise CrontabError(misfit.problem(None, text))


def macro(word: str, at: int) -> CronPattern:
    """The pattern that a name such as ``@daily`` stands for.

    Raises:
        Misfit: There is no such name.
    """
    fields = MACROS.get(word.lower())
    if fields is None:
        raise Misfit(at, word, f"one of {', '.join(MACROS)}")
    return fields_of([(value, at) for value in fields.split()])


def fields_of(words: Sequence[tuple[str, int]]) -> CronPattern:
    """The pattern of five words, each with its place in the text.

    Raises:
        Misfit: One does not fit.
    """
    return CronPattern(*(_values(each, word, at) for each, (word, at) in zip(FIELDS, words, strict=True)))


def has_names(word: str) -> bool:
    """Whether a field is written with names, which Graphile Worker does not know."""
    return any(character.isalpha() for character in word)


def _values(each: Field, word: str, at: int) -> tuple[int, ...]:
    found: set[int] = set()
    for part in word.split(","):
        found.update(_part(each, part, at))
        at += len(part) + 1
    return tuple(sorted({value % 7 for value in found} if each.is_weekday else found))


def _part(each: Field, part: str, at: int) -> Iterator[int]:
    match = _PART.fullmatch(part)
    if match is None:
        raise Misfit(at, part, f"{each.bounds}: a number, a range a-b, * or */n")
    if match["number"]:
        return iter((_number(each, part, at),))
    if match["low"]:
        low, high = _number(each, match["low"], at), _number(each, match["high"], at + match.start("high"), ends=True)
        if low >= high:
            raise Misfit(
                at, part, f"a range of {each.name} that goes upwards (for others, write two: a list has commas)"
            )
        return iter(range(low, high + 1))
    digits = "1" if match["step"] is None else match["step"].lstrip("0")
    if not digits:
        raise Misfit(at, part, f"a step of at least 1 in the {each.name}")
    highest = 6 if each.is_weekday else each.high
    return iter(range(each.low, highest + 1, int(digits[:_MOST_DIGITS])))


def _number(each: Field, text: str, at: int, *, ends: bool = False) -> int:
    """A value; with ``ends`` the upper end of a range, where Sunday is 7."""
    if text.isalpha():
        if text.lower() not in each.names:
            raise Misfit(at, text, each.bounds)
        value = each.low + each.names.index(text.lower())
        return 7 if ends and each.is_weekday and value == 0 else value
    if len(text.lstrip("0")) > _MOST_DIGITS or not each.low <= int(text) <= each.high:
        raise Misfit(at, text, each.bounds)
    return int(text)
