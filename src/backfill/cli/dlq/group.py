"""The command group ``backfill dlq``."""

import click

from backfill.cli.dlq.edit import edit
from backfill.cli.dlq.files import export, import_
from backfill.cli.dlq.look import list_, show, stats
from backfill.cli.dlq.move import delete, prune, requeue


@click.group()
def dlq() -> None:
    """The dead letter queue: jobs that failed for good."""


for command in (list_, show, stats, requeue, delete, edit, prune, export, import_):
    dlq.add_command(command)
