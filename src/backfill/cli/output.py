"""What commands print: tables for people, one JSON document for programs."""

import os
import sys
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import click
import msgspec
from rich.console import Console
from rich.table import Table
from rich.text import Text

from backfill.model import DlqJob, Extras, Job

_WIDE: Final = 400  # characters, where no terminal says how wide it is: nothing is wrapped there
_LONGEST_CELL: Final = 80


def console(*, stderr: bool = False) -> Console:
    """A console for stdout or stderr, wide where that is no terminal, and without markup in what it prints."""
    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() or os.environ.get("COLUMNS") else _WIDE
    return Console(file=stream, width=width, highlight=False, markup=False, emoji=False)


def print_json(value: Any) -> None:
    """Print a value as the JSON document of the command."""
    encoded = msgspec.json.encode(value, enc_hook=_to_json)
    click.echo(msgspec.json.format(encoded, indent=2).decode())


def print_table(columns: Sequence[str], rows: Iterable[Sequence[Any]], *, right: Sequence[str] = ()) -> None:
    """Print a table.

    Args:
        columns: The headings.
        rows: The cells; None is an empty one.
        right: The headings of columns that are set flush right.
    """
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for column in columns:
        table.add_column(column, justify="right" if column in right else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell(value)) for value in row))
    console().print(table)


def print_fields(fields: Iterable[tuple[str, Any]]) -> None:
    """Print names and values, one pair a line; those whose value is None are left out."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, value in fields:
        if value is not None:
            table.add_row(name, Text(shown(value)))
    console().print(table)


def cell(value: Any) -> str:
    """A value as a cell of a table: on one line, and cut off where it is long."""
    text = " ".join(shown(value).split())
    return text if len(text) <= _LONGEST_CELL else f"{text[: _LONGEST_CELL - 1]}…"


def shown(value: Any) -> str:
    """A value as people read it; characters that could do something to the terminal are written as escapes."""
    if value is None:
        return ""
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat(sep=" ", timespec="seconds").replace("+00:00", "Z")
    if isinstance(value, timedelta):
        return f"{value.total_seconds():g} s"
    if isinstance(value, frozenset | list):
        value = ", ".join(sorted(value))
    return "".join(c if c.isprintable() or c in "\n\t" else ascii(c)[1:-1] for c in str(value))


def count_of(number: int, noun: str, plural: str | None = None) -> str:
    """``1 job``, ``2 jobs``, ``no jobs``."""
    return f"{number or 'no'} {noun if number == 1 else plural or f'{noun}s'}"


def total_of(total: int | None) -> str:
    """An exact total, or how it is written when counting stopped at 10,000."""
    return "10,000+" if total is None else f"{total:,}"


def job_document(job: Job) -> dict[str, Any]:
    """A job as JSON: its fields, with the payload as the database has it."""
    return {
        "id": job.id,
        "task_identifier": job.task_identifier,
        "state": job.state,
        "queue_name": job.queue_name,
        "priority": job.priority,
        "run_at": job.run_at,
        "attempts": job.attempts,
        "max_attempts": job.max_attempts,
        "key": job.key,
        "flags": sorted(job.flags),
        **_extras_document(job.extras),
        "payload": msgspec.Raw(job.payload_text.encode()),
        "last_error": job.last_error,
        "locked_at": job.locked_at,
        "locked_by": job.locked_by,
        "created_at": job.created_at,
        "updated_at": job.updated_at,
        "revision": job.revision,
    }


def dlq_document(entry: DlqJob) -> dict[str, Any]:
    """An entry of the dead letter queue as JSON: its fields, with the payload as the job had it."""
    fields = {name: getattr(entry, name) for name in entry.__struct_fields__}
    del fields["stored_payload"], fields["extras"]
    fields["flags"] = sorted(entry.flags)
    return {**fields, **_extras_document(entry.extras), "payload": msgspec.Raw(entry.payload_text.encode())}


def _extras_document(extras: Extras) -> dict[str, Any]:
    policy = extras.retry_policy
    return {
        "retry_policy": None if policy is None else policy.preset_name or policy.to_text(),
        "timeout": None if extras.timeout is None else extras.timeout.total_seconds(),
        "deadline": extras.deadline,
    }


def _to_json(value: Any) -> Any:
    """Say how to write what msgspec does not know; an int subclass is one such."""
    return int(value) if isinstance(value, int) else str(value)
