"""How log records look: for people (text) or for machines (one JSON object a line), always on stderr.

The library only logs through the standard ``logging`` and configures nothing by itself; the command line calls
``configure``, and an application that likes these formats can do so too. Whatever a record carries as ``extra`` is shown:
the worker's records about a job have job_id, task and attempt; about a failure also next_run_in (seconds), or verdict and
dlq_id.
"""

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Any, Final

from backfill.errors import ConfigurationError

FORMATS: Final = ("text", "json")
LEVELS: Final = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")

_STANDARD: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


def configure(log_format: str = "text", level: str = "INFO") -> None:
    """Send the process's log records to stderr in that format, in place of the root logger's handlers.

    Args:
        log_format: ``text`` or ``json``.
        level: DEBUG, INFO, WARNING, ERROR or CRITICAL, in any case: what is below it is not shown.

    Raises:
        ConfigurationError: There is no such format or level.
    """
    if log_format not in FORMATS:
        raise ConfigurationError(f"there is no log format {log_format!r}: use one of {', '.join(FORMATS)}")
    wanted = checked_level(level)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if log_format == "json" else TextFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(wanted)


def checked_level(level: str) -> str:
    """Return the level's name as ``logging`` has it.

    Raises:
        ConfigurationError: There is no such level.
    """
    name = level.strip().upper()
    if name not in LEVELS:
        raise ConfigurationError(f"there is no log level {level!r}: use one of {', '.join(LEVELS)}")
    return name


class TextFormatter(logging.Formatter):
    """Time (UTC), level, message, and what the record carries besides as ``name=value``."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record's text; several lines when there is a traceback."""
        fields = " ".join(f"{name}={_plain(value)}" for name, value in _extra(record).items() if value is not None)
        line = f"{_time(record)} {record.levelname:<7} {record.getMessage()}" + (f" [{fields}]" if fields else "")
        trace = _trace(self, record)
        return f"{line}\n{trace}" if trace else line


class JsonFormatter(logging.Formatter):
    """One JSON object: ts (UTC, RFC 3339), level, logger, message, what the record carries besides, and traceback."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the object as one line."""
        value = {
            **_extra(record),
            "ts": _time(record),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if trace := _trace(self, record):
            value["traceback"] = trace
        order = ["ts", "level", "logger", "message"]
        value = {name: value[name] for name in order} | value
        try:
            return json.dumps(value, default=str, allow_nan=False)
        except (ValueError, TypeError, RecursionError):  # NaN, keys that are no text, values that contain themselves
            return json.dumps({name: str(part) for name, part in value.items()})


def _time(record: logging.LogRecord) -> str:
    moment = datetime.fromtimestamp(record.created, UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _extra(record: logging.LogRecord) -> dict[str, Any]:
    return {name: value for name, value in vars(record).items() if name not in _STANDARD}


def _plain(value: Any) -> str:
    text = f"{value:.3f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)
    return json.dumps(text, ensure_ascii=False) if not text or any(c.isspace() or c in '"=' for c in text) else text


def _trace(formatter: logging.Formatter, record: logging.LogRecord) -> str:
    parts = [formatter.formatException(record.exc_info)] if record.exc_info and record.exc_info[0] else []
    if record.stack_info:
        parts.append(record.stack_info)
    return "\n".join(parts)
