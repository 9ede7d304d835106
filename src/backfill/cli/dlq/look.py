"""``backfill dlq list``, ``show`` and ``stats``: looking at the dead letter queue."""

from collections.abc import Iterable
from dataclasses import asdict, replace
from typing import Any

import click
import msgspec

from backfill.cli.common import Cli, common
from backfill.cli.dlq.choosing import Chosen, choosing
from backfill.cli.output import dlq_document, print_fields, print_json, print_table, shown, total_of
from backfill.client import BackfillClient
from backfill.errors import DlqEntryNotFound
from backfill.model import DlqJob, DlqJobList, DlqStats


@click.command("list")
@choosing
@click.option("--out/--here", "out", default=None, help="Only entries that are out as a job; only those that are not.")
@click.option("--limit", type=click.IntRange(1, 10_000), default=50, show_default=True, help="How many at most.")
@click.option("--offset", type=click.IntRange(min=0), default=0, help="How many of the newest to leave out.")
@click.option(
    "--after", metavar="ID", type=int, help="In the order of ids, those behind this one; 0 begins with the oldest."
)
@common()
def list_(cli: Cli, *, chosen: Chosen, out: bool | None, limit: int, offset: int, after: int | None) -> None:
    """List entries, newest first."""
    if after is not None and offset:
        raise click.UsageError("--after and --offset contradict each other")

    async def look(client: BackfillClient) -> DlqJobList:
        wanted = await chosen.filter(client, requeued=out, limit=limit, offset=offset)
        found = await client.list_dlq_jobs(wanted)
        if after is None:
            return found
        page = await client.page_dlq_jobs(await chosen.filter(client, requeued=out), after=after, limit=limit)
        return replace(found, jobs=page)

    found = cli.with_client(look)
    if cli.as_json:
        entries = [dlq_document(entry) for entry in found.jobs]
        print_json({"jobs": entries, "total": found.total, "offset": found.offset, "limit": found.limit})
        return
    if not found.jobs:
        click.echo("no entries")
        return
    print_entries(found.jobs)
    onward = f"--offset {offset + limit}" if after is None else f"--after {found.jobs[-1].id}"
    more = f"; the next page: {onward}" if len(found.jobs) == limit else ""
    click.echo(f"\n{len(found.jobs)} of {total_of(found.total)} in all{more}")


@click.command()
@click.argument("entry_id", metavar="ID", type=int)
@common()
def show(cli: Cli, entry_id: int) -> None:
    """Show one entry with its payload and its error."""

    async def look(client: BackfillClient) -> DlqJob:
        entry = await client.get_dlq_job(entry_id)
        if entry is None:
            raise DlqEntryNotFound(entry_id)
        return entry

    entry = cli.with_client(look)
    if cli.as_json:
        print_json(dlq_document(entry))
        return
    fields = {name.replace("_", " "): value for name, value in dlq_document(entry).items()}
    error, history = fields.pop("last error"), fields.pop("history")
    trace = error.pop("traceback", None) if isinstance(error, dict) else None
    fields["payload"] = entry.payload_text
    print_fields({**fields, "last error": _text(error), "history": _text(history)}.items())
    if trace:
        click.echo(f"\n{shown(trace).rstrip()}")


@click.command()
@common()
def stats(cli: Cli) -> None:
    """Show the dead letter queue in numbers."""

    async def look(client: BackfillClient) -> DlqStats:
        return await client.dlq_stats()

    numbers = asdict(cli.with_client(look))
    if cli.as_json:
        print_json(numbers)
        return
    breakdown = numbers.pop("task_breakdown")
    numbers["avg_failure_count"] = f"{numbers['avg_failure_count']:.2f}"
    print_fields((name.replace("_", " "), value) for name, value in numbers.items())
    if breakdown:
        click.echo()
        print_table(("task", "entries"), breakdown.items(), right=("entries",))


def print_entries(entries: Iterable[DlqJob]) -> None:
    """Print a table of entries."""
    columns = ("id", "task", "failed at", "times", "queue", "key", "out as job", "reason", "error", "notes")
    print_table(columns, (_row(entry) for entry in entries), right=("id", "times", "out as job"))


def _text(value: Any) -> str | None:
    """A JSON value as text."""
    if value is None or isinstance(value, str):
        return value
    return msgspec.json.format(msgspec.json.encode(value), indent=2).decode()


def _row(entry: DlqJob) -> tuple[object, ...]:
    error = entry.last_error
    message = error.get("message") if isinstance(error, dict) else error
    return (
        entry.id,
        entry.task_identifier,
        entry.failed_at,
        entry.failure_count,
        entry.queue_name,
        entry.job_key,
        entry.requeued_job_id,
        entry.failure_reason,
        message,
        entry.notes,
    )
