"""Reading the JSON5 object that ends a cron line, and giving what JavaScript would write of it as JSON.

JSON5 is JSON with comments, trailing commas, unquoted keys, single quotes and more kinds of numbers. Numbers are
JavaScript's: 1.0 and 1e0 are 1, integers beyond 2**53 are rounded, and what JSON cannot hold (NaN, Infinity) becomes null.
"""

import re
from typing import Any, Final

from backfill.cron.fields import BLANK, Misfit

_LINE_END: Final = re.compile("[\\r\u2028\u2029]")
_SPACE: Final = re.compile(rf"(?:{BLANK}|/\*.*?\*/|//.*)*", re.DOTALL)
_NUMBER: Final = re.compile(
    r"[+-]?(?:0[xX](?P<hex>[0-9a-fA-F]+)|(?P<odd>Infinity|NaN)"
    r"|(?P<decimal>(?:(?:0|[1-9][0-9]*)(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?))"
)
_WORDS: Final = {"true": True, "false": False, "null": None}
_NAME: Final = re.compile(r"(?:[\w$\u200c\u200d]|\\u[0-9a-fA-F]{4})+")
_PLAIN: Final = {'"': re.compile(r'[^"\\]*'), "'": re.compile(r"[^'\\]*")}
_ESCAPES: Final = {"b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v"}
_HEX: Final = {"x": re.compile(r"[0-9a-fA-F]{2}"), "u": re.compile(r"[0-9a-fA-F]{4}")}
_DEEPEST: Final = 200
_ENDS: Final = "the end of the line"


def parse_object(text: str, at: int) -> dict[str, Any]:
    """The object that begins at a place in the text and ends with it.

    Raises:
        Misfit: It is no JSON5 object, or something follows it.
    """
    reader = _Reader(text, at)
    line_end = _LINE_END.search(text, at, len(text.rstrip()))
    if line_end is not None:  # what JavaScript takes for one
        raise reader.misfit("no line break", line_end.start())
    value = reader.value()
    reader.skip()
    if not isinstance(value, dict) or reader.at < len(text):
        raise reader.misfit(f"nothing after the payload, or {_ENDS}" if isinstance(value, dict) else "an object")
    return value


class _Reader:
    """A place in the text, and how each kind of value goes on from there."""

    def __init__(self, text: str, at: int) -> None:
        self.text = text
        self.at = at
        self.depth = 0

    def misfit(self, expected: str, at: int | None = None) -> Misfit:
        where = self.at if at is None else at
        if where >= len(self.text):
            return Misfit(where, _ENDS, f"{expected} in the payload", length=1)
        word = re.match(r"[\w$.+-]+|.", self.text[where : where + 40], re.DOTALL)
        return Misfit(where, "" if word is None else word[0], f"{expected} in the payload")

    def skip(self) -> None:
        """Go past white space and comments."""
        match = _SPACE.match(self.text, self.at)
        self.at = self.at if match is None else match.end()
        if self.text.startswith("/*", self.at):
            raise self.misfit("the end of the comment, */,")

    def next(self) -> str:
        self.skip()
        return self.text[self.at : self.at + 1]

    def take(self, character: str) -> bool:
        """Go past that character, if it comes next."""
        found = self.next() == character
        self.at += found
        return found

    def value(self) -> Any:
        first = self.next()
        if first in {"{", "["}:
            self.depth += 1
            if self.depth > _DEEPEST:
                raise self.misfit(f"at most {_DEEPEST} levels")
            inner = self.object() if first == "{" else self.array()
            self.depth -= 1
            return inner
        if first and first in "\"'":
            return self.string(first)
        number = _NUMBER.match(self.text, self.at)
        if number is not None and not _NAME.match(self.text, number.end()):
            self.at = number.end()
            return _number(number)
        word = _NAME.match(self.text, self.at)
        if word is not None and word[0] in _WORDS:
            self.at = word.end()
            return _WORDS[word[0]]
        raise self.misfit("a value")

    def object(self) -> dict[str, Any]:
        self.at += 1
        found: dict[str, Any] = {}
        while not self.take("}"):
            key = self.key()
            if not self.take(":"):
                raise self.misfit("':' after the key")
            found[key] = self.value()
            if not self.take(",") and self.next() != "}":
                raise self.misfit("',' or '}'")
        return found

    def array(self) -> list[Any]:
        self.at += 1
        found: list[Any] = []
        while not self.take("]"):
            found.append(self.value())
            if not self.take(",") and self.next() != "]":
                raise self.misfit("',' or ']'")
        return found

    def key(self) -> str:
        first = self.next()
        if first and first in "\"'":
            return self.string(first)
        word = _NAME.match(self.text, self.at)
        name = "" if word is None else re.sub(r"\\u(.{4})", lambda code: chr(int(code[1], 16)), word[0])
        if word is None or not name.translate(_AS_LETTER).isidentifier():
            raise self.misfit("a key")
        self.at = word.end()
        return name

    def string(self, quote: str) -> str:
        began = self.at
        self.at += 1
        found = ""
        while True:
            plain = _PLAIN[quote].match(self.text, self.at)
            if plain is not None:
                found += plain[0]
                self.at = plain.end()
            if self.at >= len(self.text):
                raise self.misfit(f"the closing {quote} of the string at column {began + 1}")
            if self.text[self.at] == quote:
                self.at += 1
                break
            found += self.escape()
        # Two escapes can be the halves of one character, as JavaScript has them.
        found = found.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        if "\x00" in found:
            raise self.misfit("a string without NUL, which PostgreSQL cannot store,", began)
        return found

    def escape(self) -> str:
        began = self.at
        letter = self.text[began + 1 : began + 2]
        self.at += 2
        if letter in _HEX:
            digits = _HEX[letter].match(self.text, self.at)
            if digits is None:
                raise self.misfit(f"the hexadecimal digits of \\{letter}", began)
            self.at = digits.end()
            return chr(int(digits[0], 16))
        if letter == "0" and not self.text[self.at : self.at + 1].isdigit():
            return "\x00"
        if letter.isascii() and letter.isdigit():
            raise self.misfit("an escape that JSON5 knows", began)
        return _ESCAPES.get(letter, letter)


# In a key, what Python's identifiers lack.
_AS_LETTER: Final = {ord("$"): "a", 0x200C: "_", 0x200D: "_"}


def _number(match: re.Match[str]) -> int | float | None:
    negative = match[0].startswith("-")
    if match["odd"]:
        return None
    if match["hex"]:
        value = float(int(match["hex"], 16)) if len(match["hex"].lstrip("0")) < 256 else float("inf")
    else:
        value = float(match["decimal"])
    if value == float("inf"):
        return None
    value = -value if negative else value
    return int(value) if value.is_integer() and abs(value) < 2**63 else value
