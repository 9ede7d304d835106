"""How a command fails: what is said of an error, and the exit code."""

import os
import traceback
from typing import Final

import asyncpg
import click

from backfill.cli.output import print_json
from backfill.db import translate
from backfill.errors import BackfillError, BreakingMigrationError

FAILED: Final = 1
INTERRUPTED: Final = 130
BREAKING_MIGRATION: Final = 57  # as Graphile Worker's own


def report(error: BaseException, *, as_json: bool) -> int:
    """Say on stderr what went wrong, and with ``as_json`` on stdout too; return the exit code."""
    if isinstance(error, click.ClickException):
        error.show()
        code, message = error.exit_code, error.format_message()
    elif isinstance(error, KeyboardInterrupt | click.Abort):
        code, message = INTERRUPTED, "interrupted"
        click.echo(f"backfill: {message}", err=True)
    else:
        code, message = BREAKING_MIGRATION if isinstance(error, BreakingMigrationError) else FAILED, _said(error)
        if os.environ.get("BACKFILL_LOG_LEVEL", "").strip().upper() == "DEBUG":
            traceback.print_exception(error)
        click.echo(f"backfill: {message}", err=True)
    if as_json:
        print_json({"error": {"type": type(error).__name__, "message": message}})
    return code


def _said(error: BaseException) -> str:
    if isinstance(error, BackfillError):
        return str(error)
    if isinstance(error, asyncpg.PostgresError | asyncpg.InterfaceError | OSError):
        return str(translate(error, "the command failed"))
    return f"unexpected {type(error).__name__}: {error}. This should not happen; BACKFILL_LOG_LEVEL=DEBUG shows where it did"
