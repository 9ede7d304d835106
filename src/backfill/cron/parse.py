"""Reading crontabs: Graphile Worker's grammar, with additions that are marked.

    minute hour day month weekday  task [?options] [{payload}]

A line stands by itself; empty lines and lines that begin with # are passed by. Additions, each of which a Node worker would
refuse: names of months and weekdays, @daily and its like for the five fields, the options ``tz`` and ``missed``. What Node
would take and then fail with at each tick (a maximum of 0 attempts, an empty key, a number beyond the column's) is refused.
All bad lines are reported together, of each line the first thing that is wrong.
"""

import logging
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final
from urllib.parse import unquote_plus

from backfill.cron.fields import BLANK, FIELDS, WORD, Misfit, fields_of, has_names, macro, quoted
from backfill.cron.item import CronItem, MissedRuns, zone_of
from backfill.cron.json5 import parse_object
from backfill.errors import CrontabError, CrontabProblem
from backfill.model import JobKeyMode, checked_int
from backfill.model.values import MAX_ATTEMPTS, MAX_IDENTIFIER, MAX_JOB_KEY, MAX_QUEUE_NAME, checked_text

logger = logging.getLogger(__name__)

_LINE_END: Final = re.compile(r"\r?\n")
_EDGES: Final = re.compile(f"^{BLANK}+|{BLANK}+$")
_TASK: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_:/-]*")
_ID: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*")
_QUEUE: Final = re.compile(r"[A-Za-z0-9_:-]+")
_FILL: Final = re.compile(r"(?:[0-9]+[smhdw])+")
_FILL_PART: Final = re.compile(r"([0-9]+)([smhdw])")
_NUMBER: Final = re.compile(r"-?[0-9]{1,9}")
_UNITS: Final = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
_TASK_WORDS: Final = "a task's name: a letter or _, then letters, digits, _ : - /"
_FIELD_WORDS: Final = "minute hour day month weekday"


@dataclass(frozen=True, slots=True)
class CrontabLine:
    """An item with the line that it came from.

    Attributes:
        number: The line's number, from 1.
        item: The item.
        additions: What in the line a Node worker does not know, in words; empty when it reads the line as we do.
    """

    number: int
    item: CronItem
    additions: tuple[str, ...]


def parse_crontab(text: str) -> list[CronItem]:
    """The items of a crontab, in order.

    A line that can never be met, such as one for 30 February, is allowed, as in Graphile Worker, and logged as a warning.

    Raises:
        CrontabError: A line can't be read, or two items have one identifier. All bad lines are in it.
    """
    return [line.item for line in parse_lines(text)]


def parse_lines(text: str) -> list[CrontabLine]:
    """``parse_crontab`` with what is known of the lines.

    Raises:
        CrontabError: As there.
    """
    lines: list[CrontabLine] = []
    problems: list[CrontabProblem] = []
    for number, line in enumerate(_LINE_END.split(text), start=1):
        if not (bare := _EDGES.sub("", line)) or bare.startswith("#"):
            continue
        try:
            lines.append(_parse_line(line, number))
        except Misfit as misfit:
            problems.append(misfit.problem(number, line))
    problems += _duplicates(lines, text)
    if problems:
        raise CrontabError(*sorted(problems, key=lambda problem: problem.line or 0))
    for found in lines:
        warn_if_never(found.item, f"line {found.number} of the crontab")
    return lines


def warn_if_never(item: CronItem, where: str) -> None:
    """Log a warning if there is no day on which the item runs."""
    if item.never_runs:
        logger.warning("cron item %s (%s) never runs: none of its months has such a day", item.identifier, where)


def _duplicates(lines: list[CrontabLine], text: str) -> Iterator[CrontabProblem]:
    first: dict[str, int] = {}
    for line in lines:
        number = first.setdefault(line.item.identifier, line.number)
        if number != line.number:
            whole = _LINE_END.split(text)[line.number - 1]
            yield CrontabProblem(
                f"an identifier of its own, such as ?id={line.item.identifier}-2",
                f"{quoted(line.item.identifier)} again, which is that of line {number}",
                line.number,
                1,
                len(whole),
                whole,
            )


def _parse_line(line: str, number: int) -> CrontabLine:
    words = [(word[0], word.start()) for word in WORD.finditer(line)]
    additions: list[str] = []
    if words[0][0].startswith("@"):
        pattern, rest = macro(*words[0]), words[1:]
        additions.append(words[0][0])
    else:
        fields, rest = words[: len(FIELDS)], words[len(FIELDS) :]
        if len(fields) < len(FIELDS):
            raise Misfit(len(line), "the end of the line", f"{_FIELD_WORDS} task", length=1)
        pattern = fields_of(fields)
        additions += ["names of months or weekdays"] if any(has_names(word) for word, _ in fields) else []
    if not rest:
        raise Misfit(len(line), "the end of the line", f"a task after {_FIELD_WORDS}", length=1)
    options, payload = _command(rest, line)
    additions += [f"the option {key}" for key in options if key in _ADDED]
    task, at = rest[0]
    try:
        item = CronItem(task, pattern, payload, **{_OPTIONS[key].argument: value for key, value in options.items()})
    except CrontabError as error:  # what only the whole of it shows, such as missed=all without fill
        raise Misfit(at, "", error.problems[0].expected, length=len(line) - at) from error
    return CrontabLine(number, item, tuple(additions))


def _command(rest: list[tuple[str, int]], line: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The options and the payload that follow the task."""
    _check_task(*rest[0])
    rest = rest[1:]
    options: dict[str, Any] = {}
    if rest and rest[0][0].startswith("?"):
        options = _options(*rest[0])
        rest = rest[1:]
    if not rest:
        return options, {}
    word, at = rest[0]
    if not word.startswith("{"):
        raise Misfit(at, word, "?options, a payload in { }, or the end of the line")
    last, last_at = rest[-1]
    if not last.endswith("}"):
        raise Misfit(last_at, last, "a payload that ends with }, and nothing after it")
    return options, parse_object(line, at)


def _check_task(word: str, at: int) -> None:
    match = _TASK.match(word)
    end = 0 if match is None else match.end()
    if end < len(word):
        raise Misfit(at + end, f"{quoted(word[end])} in {quoted(word)}", _TASK_WORDS, length=1)
    if len(word) > MAX_IDENTIFIER:
        raise Misfit(at, word, f"a task's name of at most {MAX_IDENTIFIER} characters")


def _options(word: str, at: int) -> dict[str, Any]:
    """The values of ``?key=value&…`` by their keys."""
    found: dict[str, Any] = {}
    if word == "?":
        raise Misfit(at, word, "options after the ?, as in ?id=nightly&fill=1d")
    at += 1
    for pair in word[1:].split("&"):
        if pair:
            name, _, value = pair.partition("=")
            key = unquote_plus(name)
            if key not in _OPTIONS:
                raise Misfit(at, name or pair, f"an option of {', '.join(_OPTIONS)}")
            if key in found:
                raise Misfit(at, name, f"the option {key} once")
            option = _OPTIONS[key]
            try:
                found[key] = option.read(unquote_plus(value))
            except (ValueError, OverflowError) as error:
                raise Misfit(at, pair, f"{key}={option.takes}") from error
        at += len(pair) + 1
    return found


@dataclass(frozen=True, slots=True)
class _Option:
    """An option of a line.

    Attributes:
        argument: What CronItem calls it.
        takes: What its value can be, for messages.
        read: Makes the value of the text, or raises ValueError or InvalidJob.
    """

    argument: str
    takes: str
    read: Callable[[str], Any]


def _matching(pattern: re.Pattern[str], most: int | None, name: str) -> Callable[[str], str]:
    def read(text: str) -> str:
        if not pattern.fullmatch(text):
            raise ValueError(text)
        return checked_text(name, text, most)

    return read


def _read_fill(text: str) -> timedelta:
    if not _FILL.fullmatch(text):
        raise ValueError(text)
    return sum((timedelta(**{_UNITS[unit]: int(n)}) for n, unit in _FILL_PART.findall(text)), timedelta())


def _int_within(name: str, low: int, high: int) -> Callable[[str], int]:
    def read(text: str) -> int:
        if not _NUMBER.fullmatch(text) or (low >= 0 and text.startswith("-")):
            raise ValueError(text)
        return checked_int(name, int(text), low, high)

    return read


def _read_mode(text: str) -> JobKeyMode:
    if text == JobKeyMode.UNSAFE_DEDUPE:
        raise ValueError(text)
    return JobKeyMode(text)


_OPTIONS: Final[Mapping[str, _Option]] = {
    "id": _Option("identifier", "a letter or _, then letters, digits, _ -", _matching(_ID, None, "id")),
    "fill": _Option("fill", "numbers with the units s m h d w, as in 1d12h", _read_fill),
    "max": _Option("max_attempts", f"1 to {MAX_ATTEMPTS}", _int_within("max", 1, MAX_ATTEMPTS)),
    "queue": _Option("queue", "letters, digits, _ - :", _matching(_QUEUE, MAX_QUEUE_NAME, "queue")),
    "jobKey": _Option(
        "job_key", f"1 to {MAX_JOB_KEY} characters", lambda text: checked_text("jobKey", text, MAX_JOB_KEY)
    ),
    "jobKeyMode": _Option("job_key_mode", "replace or preserve_run_at", _read_mode),
    "priority": _Option("priority", "-32768 to 32767", _int_within("priority", -32768, 32767)),
    "tz": _Option("zone", "a time zone of this machine (pip install tzdata adds all), as in Europe/Berlin", zone_of),
    "missed": _Option("missed", "skip, latest or all", MissedRuns),
}
_ADDED: Final = ("tz", "missed")
