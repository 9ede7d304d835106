"""``backfill dlq edit``, and the options that change an entry when it is requeued."""

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import click

from backfill.cli.common import Cli, common
from backfill.cli.output import dlq_document, print_json
from backfill.cli.params import PAYLOAD, PRIORITY, Payload
from backfill.client import BackfillClient
from backfill.errors import InvalidJob
from backfill.model import DlqEdit, DlqJob

T = TypeVar("T")


def editing(prefix: str = "") -> Callable[[Callable[..., T]], Callable[..., T]]:
    """Give a command the options of an edit; its function gets them as ``changes``, arguments of a DlqEdit.

    Args:
        prefix: Before the names of the options that others of the command could be mistaken for.
    """

    def decorate(function: Callable[..., T]) -> Callable[..., T]:
        @click.option("--payload", type=PAYLOAD, help="Replaces the payload: JSON, @FILE or -.")
        @click.option(f"--{prefix}task", "new_task", metavar="TASK", help="Replaces the task.")
        @click.option(
            f"--{prefix}queue", "new_queue", metavar="NAME", help="Replaces the queue; '' is the parallel queue."
        )
        @click.option(f"--{prefix}priority", "new_priority", type=PRIORITY, help="Replaces the priority.")
        @click.option(
            f"--{prefix}max-attempts",
            "new_limit",
            type=click.IntRange(1, 32767),
            help="Replaces the limit of attempts.",
        )
        @functools.wraps(function)
        def command(
            *args: Any,
            payload: Payload | None,
            new_task: str | None,
            new_queue: str | None,
            new_priority: int | None,
            new_limit: int | None,
            **options: Any,
        ) -> T:
            given = {
                "task_identifier": new_task,
                "queue": new_queue,
                "priority": new_priority,
                "max_attempts": new_limit,
            }
            changes = {name: value for name, value in given.items() if value is not None}
            if payload is not None:  # which may be null
                changes["payload"] = payload.value
            return function(*args, changes=changes, **options)

        return command

    return decorate


def edit_of(changes: dict[str, Any]) -> DlqEdit | None:
    """The edit that options say; None when they say nothing.

    Raises:
        click.UsageError: A value cannot be.
    """
    try:
        return DlqEdit(**changes) if changes else None
    except InvalidJob as error:
        raise click.UsageError(str(error)) from error


@click.command()
@click.argument("entry_id", metavar="ID", type=int)
@editing()
@click.option("--notes", metavar="TEXT", help="Replaces the notes; '' for none.")
@click.option("--add-note", metavar="TEXT", help="Adds a line to the notes.")
@common()
def edit(cli: Cli, *, entry_id: int, changes: dict[str, Any], notes: str | None, add_note: str | None) -> None:
    """Change an entry without requeueing it; what is replaced, notes aside, is kept in its history.

    Of an entry that is out as a job only the notes can be changed.
    """
    said = {"notes": notes, "add_note": add_note}
    wanted = edit_of(changes | {name: value for name, value in said.items() if value is not None})
    if wanted is None:
        raise click.UsageError(
            "what is to be changed? Give --payload, --task, --queue, --priority, --max-attempts or --notes"
        )

    async def do(client: BackfillClient) -> DlqJob:
        return await client.edit_dlq_job(entry_id, wanted)

    entry = cli.with_client(do)
    if cli.as_json:
        print_json(dlq_document(entry))
    else:
        click.echo(f"entry {entry.id} changed")
