"""``backfill dlq export`` and ``import``: the dead letter queue as lines of JSON."""

import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, BinaryIO

import click

from backfill.cli.common import Cli, common
from backfill.cli.dlq.choosing import Chosen, choosing
from backfill.cli.output import count_of, print_json
from backfill.client import BackfillClient, Imported


@click.command()
@choosing
@click.option("--out/--here", "out", default=None, help="Only entries that are out as a job; only those that are not.")
@click.option(
    "--output", "-o", metavar="FILE", default="-", help="Where to; it appears when it is whole. [else: stdout]"
)
@common()
def export(cli: Cli, *, chosen: Chosen, out: bool | None, output: str) -> None:
    """Write entries as lines of JSON, the oldest first, with all columns of the table; all entries unless some are chosen."""
    to_file = output != "-"
    if cli.as_json and not to_file:
        raise click.UsageError("--json goes with --output FILE: without it the lines themselves are on stdout")

    async def write(client: BackfillClient, put: Callable[[bytes], object]) -> int:
        number = 0
        async for line in client.export_dlq_jobs(await chosen.filter(client, requeued=out)):
            put(line.encode() + b"\n")
            number += 1
        return number

    if not to_file:
        cli.with_client(lambda client: write(client, sys.stdout.buffer.write))
        return
    with _whole(Path(output)) as file:
        number = cli.with_client(lambda client: write(client, file.write))
    if cli.as_json:
        print_json({"exported": number, "file": output})
    else:
        click.echo(f"{count_of(number, 'entry', 'entries')} exported to {output}")


@click.command("import")
@click.argument("file", type=click.File("rb"))
@click.option("--new-ids", is_flag=True, help="Give the entries new ids; twice imported, they are there twice.")
@click.option("--dry-run", is_flag=True, help="Do all of it, and undo it.")
@common()
def import_(cli: Cli, *, file: BinaryIO, new_ids: bool, dry_run: bool) -> None:
    """Put the entries of an export back in, all or none of them; FILE may be -.

    Entries keep their ids, and those that are there already stay as they are, so the same FILE can be imported again.
    """

    async def read(client: BackfillClient, lines: IO[bytes]) -> Imported:
        return await client.import_dlq_jobs(lines, new_ids=new_ids, dry_run=dry_run)

    with tempfile.TemporaryFile() as spool:
        lines: IO[bytes] = file
        if not file.seekable():  # the transaction is not to wait for whoever writes to the pipe
            shutil.copyfileobj(file, spool)
            spool.seek(0)
            lines = spool
        done = cli.with_client(lambda client: read(client, lines))
    if cli.as_json:
        print_json({**done._asdict(), "dry_run": dry_run})
        return
    would = "would be " if dry_run else ""
    click.echo(f"{count_of(done.imported, 'entry', 'entries')} {would}imported")
    if done.present:
        click.echo(f"{done.present} there already")
    if done.key_taken:
        click.echo(f"{done.key_taken} left out: another entry has their job key")


@contextmanager
def _whole(path: Path) -> Iterator[BinaryIO]:
    """A file to write to that takes its place only when it is whole; what is no regular file is written to as it is."""
    path = path.resolve()
    if path.exists() and not path.is_file():
        with path.open("wb") as file:
            yield file
        return
    draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with draft.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
