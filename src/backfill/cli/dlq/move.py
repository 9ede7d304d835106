"""``backfill dlq requeue``, ``delete`` and ``prune``: entries that run again, and entries that go."""

from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any, Final

import click

from backfill.cli.common import Cli, common
from backfill.cli.dlq.choosing import Chosen, by_filter, choosing
from backfill.cli.dlq.edit import edit_of, editing
from backfill.cli.dlq.look import print_entries
from backfill.cli.dlq.walk import Bounds, Walk, bounded
from backfill.cli.failing import INTERRUPTED
from backfill.cli.output import count_of, dlq_document, job_document, print_json, shown
from backfill.cli.params import DURATION, Moment
from backfill.client import BackfillClient
from backfill.errors import DlqEntryNotFound, KeyInUse
from backfill.model import DlqEdit, DlqFilter, Job

_SAMPLE: Final = 10  # entries that a dry run shows

Change = Callable[[BackfillClient, DlqFilter, Walk, dict[str, Any]], Awaitable[tuple[int, int]]]
"""Changes the entries of a filter; how many were changed, and how many skipped."""


@click.command()
@click.argument("ids", metavar="[ID...]", type=int, nargs=-1)
@choosing
@click.option("--all", "everything", is_flag=True, help="All entries.")
@bounded
@editing("set-")
@click.option("--notes", metavar="TEXT", help="Replaces the entries' notes.")
@click.option("--force", is_flag=True, help="Replace jobs that have an entry's key.")
@common()
def requeue(
    cli: Cli,
    *,
    ids: tuple[int, ...],
    chosen: Chosen,
    everything: bool,
    bounds: Bounds,
    changes: dict[str, Any],
    notes: str | None,
    force: bool,
) -> int:
    """Have entries run again, now: those with the given IDs, or those that the options choose and that are not out.

    Entries whose key a job has are skipped. Ctrl-C ends after the batch under way; the same command goes on.
    """
    edit = edit_of(changes)
    if not by_filter(ids, chosen, everything=everything, bounded=not bounds.is_any):
        return _requeue_given(cli, ids, notes=notes, edit=edit, force=force)

    async def change(client: BackfillClient, wanted: DlqFilter, walk: Walk, how: dict[str, Any]) -> tuple[int, int]:
        how |= {"watch": walk.watch, "stop": walk.stop}
        return await client.requeue_dlq_jobs(wanted, notes=notes, edit=edit, force=force, **how)

    return _change_many(cli, chosen, bounds, Walk("requeued"), change)


@click.command()
@click.argument("ids", metavar="[ID...]", type=int, nargs=-1)
@choosing
@click.option("--all", "everything", is_flag=True, help="All entries.")
@bounded
@common()
def delete(cli: Cli, *, ids: tuple[int, ...], chosen: Chosen, everything: bool, bounds: Bounds) -> int:
    """Delete entries: those with the given IDs, or those that the options choose and that are not out as a job.

    Ctrl-C ends after the batch under way; the same command goes on.
    """
    if by_filter(ids, chosen, everything=everything, bounded=not bounds.is_any):
        return _change_many(cli, chosen, bounds, Walk("deleted"), _delete)

    async def delete_given(client: BackfillClient) -> dict[int, bool]:
        return {entry_id: await client.delete_dlq_job(entry_id) for entry_id in dict.fromkeys(ids)}

    deleted = cli.with_client(delete_given)
    left = {entry_id: str(DlqEntryNotFound(entry_id)) for entry_id, was_there in deleted.items() if not was_there}
    if cli.as_json:
        done = [{"id": entry_id} for entry_id, was_there in deleted.items() if was_there]
        print_json({"deleted": len(done), "skipped": len(left), "dry_run": False, "entries": [*done, *_reasons(left)]})
    else:
        for entry_id, was_there in deleted.items():
            click.echo(f"entry {entry_id} deleted" if was_there else left[entry_id])
    return 1 if left else 0


@click.command()
@click.option("--older-than", type=DURATION, required=True, help="Entries that last failed so long ago, such as 90d.")
@click.option("--task", metavar="TASK", help="Entries of this task.")
@click.option("--queue", metavar="NAME", help="Entries of this serial queue; '' is the parallel queue.")
@bounded
@common()
def prune(cli: Cli, *, older_than: timedelta, task: str | None, queue: str | None, bounds: Bounds) -> int:
    """Delete old entries; those that are out as a job stay.

    Ctrl-C ends after the batch under way; the same command goes on.
    """

    async def change(client: BackfillClient, wanted: DlqFilter, walk: Walk, how: dict[str, Any]) -> tuple[int, int]:
        """Leave the age to the client, which goes by the database's clock."""
        wanted = replace(wanted, failed_before=None)
        deleted = await client.prune_dlq_jobs(older_than, wanted, watch=walk.watch, stop=walk.stop, **how)
        return deleted, 0 if walk.last is None else walk.last.skipped

    chosen = Chosen(task, queue, None, None, Moment(None, -older_than))
    return _change_many(cli, chosen, bounds, Walk("deleted"), change)


async def _delete(client: BackfillClient, wanted: DlqFilter, walk: Walk, how: dict[str, Any]) -> tuple[int, int]:
    deleted = await client.delete_dlq_jobs(wanted, watch=walk.watch, stop=walk.stop, **how)
    return deleted, 0 if walk.last is None else walk.last.skipped


def _change_many(cli: Cli, chosen: Chosen, bounds: Bounds, walk: Walk, change: Change) -> int:
    """Change the chosen entries, show it and say what was done; the exit code."""

    async def do(client: BackfillClient) -> tuple[int, int, list[Any]]:
        wanted = await chosen.filter(client, requeued=False)
        how = {"limit": bounds.limit, "after": bounds.after, "rate": bounds.rate, "dry_run": bounds.dry_run}
        if bounds.dry_run:
            size = min(_SAMPLE, bounds.limit or _SAMPLE)
            sample = await client.page_dlq_jobs(wanted, after=bounds.after, limit=size)
            return *await change(client, wanted, walk, how), sample
        with walk.shown():
            return *await change(client, wanted, walk, how), []

    done, skipped, sample = cli.with_client(do)
    if cli.as_json:
        document: dict[str, Any] = {walk.word: done, "skipped": skipped, "dry_run": bounds.dry_run}
        if bounds.dry_run:
            document["sample"] = [dlq_document(entry) for entry in sample]
        elif skipped:
            document["skipped_ids"] = walk.skipped_ids
        print_json(document | walk.where())
    else:
        would = "would be " if bounds.dry_run else ""
        click.echo(f"{count_of(done, 'entry', 'entries')} {would}{walk.word}")
        if skipped:
            click.echo(f"{skipped} {would}skipped: {_why(walk)}")
        if sample:
            click.echo("\nthe first of them:")
            print_entries(sample)
        walk.tell_interruption()
    return INTERRUPTED if walk.interrupted else 0


def _why(walk: Walk) -> str:
    which = f" ({', '.join(map(str, walk.skipped_ids))}{', …' if _more(walk) else ''})" if walk.skipped_ids else ""
    if walk.word == "requeued":
        return f"a job with their key is queued or running, or somebody else was faster{which}"
    return f"they were requeued, changed or deleted meanwhile{which}"


def _more(walk: Walk) -> bool:
    return walk.last is not None and walk.last.skipped > len(walk.skipped_ids)


def _requeue_given(cli: Cli, ids: tuple[int, ...], *, notes: str | None, edit: DlqEdit | None, force: bool) -> int:
    async def do(client: BackfillClient) -> tuple[dict[int, Job], dict[int, str]]:
        made: dict[int, Job] = {}
        left: dict[int, str] = {}
        for entry_id in dict.fromkeys(ids):
            try:
                made[entry_id] = await client.requeue_dlq_job(entry_id, notes, edit=edit, force=force)
            except (DlqEntryNotFound, KeyInUse) as error:
                left[entry_id] = str(error)
        return made, left

    made, left = cli.with_client(do)
    if cli.as_json:
        done = [{"id": entry_id, "job": job_document(job)} for entry_id, job in made.items()]
        print_json({"requeued": len(made), "skipped": len(left), "dry_run": False, "entries": [*done, *_reasons(left)]})
    else:
        for entry_id, job in made.items():
            click.echo(f"entry {entry_id} requeued as job {job.id} ({shown(job.task_identifier)})")
        for reason in left.values():
            click.echo(reason)
    return 1 if left else 0


def _reasons(left: dict[int, str]) -> list[dict[str, Any]]:
    return [{"id": entry_id, "reason": reason} for entry_id, reason in left.items()]
