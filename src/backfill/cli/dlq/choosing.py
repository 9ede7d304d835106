"""Which entries of the dead letter queue a command means: by ids, or by options."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import click

from backfill.cli.common import database_time
from backfill.cli.params import MOMENT, Moment
from backfill.client import BackfillClient
from backfill.model import DlqFilter

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Chosen:
    """Which entries are meant, as the options say.

    Attributes:
        task: Of this task.
        queue: Of this serial queue; the empty string is the parallel queue.
        key: Of this job key.
        failed_after: Failed then or later.
        failed_before: Failed before then.
    """

    task: str | None
    queue: str | None
    key: str | None
    failed_after: Moment | None
    failed_before: Moment | None

    @property
    def is_any(self) -> bool:
        """Whether nothing was asked for."""
        return self == Chosen(None, None, None, None, None)

    async def filter(self, client: BackfillClient, **page: Any) -> DlqFilter:
        """The filter, with distances from now counted by the database's clock."""
        now = await database_time(client) if self.failed_after or self.failed_before else None
        after, before = (
            None if moment is None or now is None else moment.by(now)
            for moment in (self.failed_after, self.failed_before)
        )
        return DlqFilter(
            task_identifier=self.task,
            queue_name=self.queue,
            job_key=self.key,
            failed_after=after,
            failed_before=before,
            **page,
        )


def choosing(function: Callable[..., T]) -> Callable[..., T]:
    """Give a command the options that choose entries; its function gets them as ``chosen``."""

    @click.option("--task", metavar="TASK", help="Entries of this task.")
    @click.option("--queue", metavar="NAME", help="Entries of this serial queue; '' is the parallel queue.")
    @click.option("--key", metavar="KEY", help="The entry of this job key.")
    @click.option(
        "--failed-after", type=MOMENT, help="Failed then or later: a time with offset, or -2h (ms s m h d w)."
    )
    @click.option("--failed-before", type=MOMENT, help="Failed before then.")
    @functools.wraps(function)
    def command(
        *args: Any,
        task: str | None,
        queue: str | None,
        key: str | None,
        failed_after: Moment | None,
        failed_before: Moment | None,
        **options: Any,
    ) -> T:
        return function(*args, chosen=Chosen(task, queue, key, failed_after, failed_before), **options)

    return command


def by_filter(ids: tuple[int, ...], chosen: Chosen, *, everything: bool, bounded: bool) -> bool:
    """Whether entries are chosen by options rather than by ids; never all of them by mistake.

    Args:
        ids: The ids that were given.
        chosen: The options that choose.
        everything: Whether ``--all`` was given.
        bounded: Whether one of the options was given that go with many entries.

    Raises:
        click.UsageError: What was given does not say which entries are meant.
    """
    if ids and (everything or not chosen.is_any or bounded):
        raise click.UsageError(
            "give IDs, or options that choose entries (with --limit, --after, --rate and --dry-run), not both"
        )
    if everything and not chosen.is_any:
        raise click.UsageError("--all and options that choose entries contradict each other")
    if not ids and not everything and chosen.is_any:
        raise click.UsageError("which entries? Give IDs, options such as --task or --failed-before, or --all")
    return not ids
