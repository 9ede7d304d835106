"""``backfill dlq``: look at the dead letter queue, requeue and delete its entries."""

import functools
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

import click
import msgspec

from backfill.cli.common import Cli, common, database_time
from backfill.cli.output import (
    count_of,
    dlq_document,
    job_document,
    print_fields,
    print_json,
    print_table,
    shown,
    total_of,
)
from backfill.cli.params import MOMENT, PAYLOAD, Moment, Payload
from backfill.client import BackfillClient
from backfill.errors import DlqEntryNotFound, KeyInUse
from backfill.model import DlqFilter, DlqJob, DlqJobList, DlqStats, Job

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


@click.group()
def dlq() -> None:
    """The dead letter queue: jobs that failed for good."""


@dlq.command("list")
@choosing
@click.option("--out/--here", "out", default=None, help="Only entries that are out as a job; only those that are not.")
@click.option("--limit", type=click.IntRange(1, 10_000), default=50, show_default=True, help="How many at most.")
@click.option("--offset", type=click.IntRange(min=0), default=0, help="How many of the newest to leave out.")
@common()
def list_(cli: Cli, chosen: Chosen, out: bool | None, limit: int, offset: int) -> None:
    """List entries, newest first."""

    async def look(client: BackfillClient) -> DlqJobList:
        return await client.list_dlq_jobs(await chosen.filter(client, requeued=out, limit=limit, offset=offset))

    found = cli.with_client(look)
    if cli.as_json:
        entries = [dlq_document(entry) for entry in found.jobs]
        print_json({"jobs": entries, "total": found.total, "offset": found.offset, "limit": found.limit})
        return
    if not found.jobs:
        click.echo("no entries")
        return
    columns = ("id", "task", "failed at", "times", "queue", "key", "out as job", "reason", "error")
    print_table(columns, (_row(entry) for entry in found.jobs), right=("id", "times", "out as job"))
    more = f"; the next page: --offset {offset + limit}" if len(found.jobs) == limit else ""
    click.echo(f"\n{len(found.jobs)} of {total_of(found.total)} in all{more}")


@dlq.command()
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


@dlq.command()
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


@dlq.command()
@click.argument("ids", metavar="[ID...]", type=int, nargs=-1)
@choosing
@click.option("--all", "everything", is_flag=True, help="All entries.")
@click.option("--limit", type=click.IntRange(min=1), help="How many of the chosen at most, the oldest first.")
@click.option("--dry-run", is_flag=True, help="Change nothing; say how many entries are meant.")
@click.option("--notes", metavar="TEXT", help="Replaces the entries' notes.")
@click.option("--payload", type=PAYLOAD, help="Replaces the payload: JSON, @FILE or -. With one ID only.")
@click.option("--force", is_flag=True, help="Replace a job that has the entry's key. With IDs only.")
@common()
def requeue(
    cli: Cli,
    *,
    ids: tuple[int, ...],
    chosen: Chosen,
    everything: bool,
    limit: int | None,
    dry_run: bool,
    notes: str | None,
    payload: Payload | None,
    force: bool,
) -> int:
    """Have entries run again, now: those with the given IDs, or those that the options choose."""
    by_filter = _by_filter(ids, chosen, everything=everything, limit=limit, dry_run=dry_run)
    if payload is not None and len(ids) != 1:
        raise click.UsageError("--payload goes with exactly one ID")
    if force and by_filter:
        raise click.UsageError("--force goes with IDs")
    if by_filter:
        return _requeue_chosen(cli, chosen, limit=limit, dry_run=dry_run, notes=notes)
    value: Any = msgspec.UNSET if payload is None else payload.value

    async def do(client: BackfillClient) -> tuple[dict[int, Job], dict[int, str]]:
        made: dict[int, Job] = {}
        left: dict[int, str] = {}
        for entry_id in dict.fromkeys(ids):
            try:
                made[entry_id] = await client.requeue_dlq_job(entry_id, notes, payload=value, force=force)
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


@dlq.command()
@click.argument("ids", metavar="[ID...]", type=int, nargs=-1)
@choosing
@click.option("--all", "everything", is_flag=True, help="All entries.")
@click.option("--limit", type=click.IntRange(min=1), help="How many of the chosen at most, the oldest first.")
@click.option("--dry-run", is_flag=True, help="Change nothing; say how many entries are meant.")
@common()
def delete(
    cli: Cli, *, ids: tuple[int, ...], chosen: Chosen, everything: bool, limit: int | None, dry_run: bool
) -> int:
    """Delete entries: those with the given IDs, or those that the options choose and that are not out as a job."""
    if _by_filter(ids, chosen, everything=everything, limit=limit, dry_run=dry_run):

        async def delete_chosen(client: BackfillClient) -> int:
            return await client.delete_dlq_jobs(await chosen.filter(client), dry_run=dry_run, limit=limit)

        number = cli.with_client(delete_chosen)
        if cli.as_json:
            print_json({"deleted": number, "skipped": 0, "dry_run": dry_run})
        else:
            click.echo(f"{count_of(number, 'entry', 'entries')} {'would be ' if dry_run else ''}deleted")
        return 0

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


def _requeue_chosen(cli: Cli, chosen: Chosen, *, limit: int | None, dry_run: bool, notes: str | None) -> int:
    async def do(client: BackfillClient) -> tuple[int, int]:
        wanted = await chosen.filter(client)
        return await client.requeue_dlq_jobs(wanted, dry_run=dry_run, notes=notes, limit=limit)

    requeued, skipped = cli.with_client(do)
    if cli.as_json:
        print_json({"requeued": requeued, "skipped": skipped, "dry_run": dry_run})
        return 0
    click.echo(f"{count_of(requeued, 'entry', 'entries')} {'would be ' if dry_run else ''}requeued")
    if skipped:
        click.echo(f"{skipped} skipped: a job with their key is queued or running, or somebody else was faster")
    return 0


def _by_filter(ids: tuple[int, ...], chosen: Chosen, *, everything: bool, limit: int | None, dry_run: bool) -> bool:
    """Whether entries are chosen by options rather than by ids; never all of them by mistake."""
    if ids and (everything or not chosen.is_any or limit is not None or dry_run):
        raise click.UsageError("give IDs, or options that choose entries (with --limit and --dry-run), not both")
    if everything and not chosen.is_any:
        raise click.UsageError("--all and options that choose entries contradict each other")
    if not ids and not everything and chosen.is_any:
        raise click.UsageError("which entries? Give IDs, options such as --task or --failed-before, or --all")
    return not ids


def _reasons(left: dict[int, str]) -> list[dict[str, Any]]:
    return [{"id": entry_id, "reason": reason} for entry_id, reason in left.items()]


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
    )
