"""The root command, and how a command ends: its exit code, and what is said of an error."""

import contextlib
import importlib
import io
import os
import sys
from collections.abc import Sequence

import click

from backfill.cli.failing import FAILED, report

# Each is `name` in the module `backfill.cli.name`, imported when it is asked for: a worker needs no tables and no demo to start.
_COMMANDS = ("demo", "worker", "workers", "enqueue", "jobs", "dlq", "cron", "schema", "doctor")


class _Commands(click.Group):
    def list_commands(self, _: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, _: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        command = getattr(importlib.import_module(f"backfill.cli.{cmd_name}"), cmd_name)
        return command if isinstance(command, click.Command) else None


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="backfill", prog_name="backfill")
def root() -> None:
    """A job queue in PostgreSQL, on the schema of Graphile Worker.

    Every command takes --database-url (else the environment variable DATABASE_URL), --schema and --json. Without a
    database of your own, begin with: backfill demo
    """


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line.

    Args:
        argv: The arguments without the program's name; None = those of the process.

    Returns:
        The exit code: 0 done, 1 failed, 2 the command line is wrong, 130 interrupted.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # what its encoding can't hold must not end a command halfway
            stream.reconfigure(errors="backslashreplace")
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        result = root.main(args=arguments, prog_name="backfill", standalone_mode=False)
        sys.stdout.flush()
    except BrokenPipeError:  # whoever read our output has seen enough
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001 - the last place: whatever it is, the user is told
        return report(error, as_json="--json" in arguments)
    return result if isinstance(result, int) else 0
