"""The command: where the demo runs, what it shows meanwhile, and how it ends."""

import asyncio
import contextlib
import importlib
import logging
import os
import shlex
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import click
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from backfill.cli.common import Cli, common, embedded, embedded_url, run
from backfill.cli.demo.sources import Source, broken_sources, standard_library
from backfill.cli.demo.summary import document, print_commands, print_summary
from backfill.cli.demo.tables import SCHEMA, demo_schema
from backfill.cli.demo.tasks import state
from backfill.cli.demo.work import Result, add_jobs, all_done, make_builder, sum_up
from backfill.cli.output import console, print_json
from backfill.cli.stopping import StopRequests
from backfill.db import check_schema_name, target

_STEPS: Final = 10  # lines of progress where there is no terminal


@click.command()
@click.option("--keep", is_flag=True, help="Leave the jobs, the tables and the broken files, to look at.")
@click.option("--files", metavar="N", type=click.IntRange(min=1), help="Only N files of the standard library.")
@common()
def demo(cli: Cli, keep: bool, files: int | None) -> int:
    """See it work: one job for each Python file of the standard library, and what came of it.

    Each is read, parsed and counted. Five files are broken, and their jobs end in the dead letter queue; some jobs fail at
    first; there are serial queues, priorities, a job key and a scheduled job.

    It starts a PostgreSQL server of its own, unless --database-url or DATABASE_URL names one. There it works in a schema of
    its own, backfill_demo unless --schema says otherwise, and drops it in the end; a schema that no demo made is refused.
    """
    schema = check_schema_name(SCHEMA if cli.schema_option is None else cli.schema_option)
    if "BACKFILL_LOG_LEVEL" not in os.environ:
        logging.getLogger().setLevel(logging.ERROR)  # the failures are part of it, and shown in the end
    broken = Path(tempfile.mkdtemp(prefix="backfill-demo-"))
    try:
        with _database(cli, keep=keep) as (url, given):
            sources = standard_library(files) + broken_sources(broken)
            result, signal = run(_run(url, schema, sources, keep=keep))
    finally:
        state.helpers.close()
        if not keep:
            shutil.rmtree(broken, ignore_errors=True)
    if result is None:
        click.echo("backfill: interrupted", err=True)
        return 128 + signal
    commands = _commands(given, schema, result) if keep else []
    if cli.as_json:
        print_json(document(result, commands))
    else:
        print_summary(result)
        print_commands(commands, broken)
    return 0


@contextlib.contextmanager
def _database(cli: Cli, *, keep: bool) -> Iterator[tuple[str, list[str]]]:
    """The database's URL, and the options by which other commands find it."""
    say = console(stderr=True).print
    if cli.url is not None:
        with cli.database(create=True) as url:
            say(f"Using {target(url)}")
            yield url, [] if cli.url_option is None else ["--database-url", cli.url_option]
        return
    say("Starting PostgreSQL …")
    server = importlib.import_module("backfill.embedded")
    if keep:
        kept = embedded_url(server.default_data_dir("demo"))
        with embedded(kept, create=True) as url:
            yield url, ["--database-url", kept]
    else:
        with server.EmbeddedServer() as temporary:
            yield temporary.dsn(), []


async def _run(url: str, schema: str, sources: list[Source], *, keep: bool) -> tuple[Result | None, int]:
    """Run the demo; no result and the signal's number if one ended it."""
    async with demo_schema(url, schema, keep=keep) as connection:
        builder = make_builder(url, schema)
        async with await builder.build() as runner:
            stop = asyncio.Event()
            requests = StopRequests(stop.set, runner.hurry, on_signal=runner.signalled)
            working = runner.spawn_background(stop)
            began = time.monotonic()
            with _progress(len(sources)) as advance:
                adding = asyncio.create_task(add_jobs(runner.client, sources))
                stopped = asyncio.create_task(stop.wait())
                try:
                    await _first_of(adding, working, stopped)
                    if not stop.is_set():
                        watching = asyncio.create_task(all_done(connection, runner.client, len(sources), advance))
                        await _first_of(watching, working, stopped)
                        watching.cancel()
                finally:
                    for waiting in (adding, stopped):
                        waiting.cancel()
                    interrupted = stop.is_set()
                    stop.set()
                    await working
            if interrupted:
                return None, requests.last or 0
            return await sum_up(runner.client, began), 0


async def _first_of(*tasks: "asyncio.Task[object]") -> None:
    """Wait for the first of some tasks to end; raise what it raised."""
    done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for ended in done:
        ended.result()


@contextlib.contextmanager
def _progress(total: int) -> Iterator[Callable[[int], None]]:
    """Show how many files are done with: a bar on a terminal, some lines elsewhere."""
    screen = console(stderr=True)
    if not sys.stderr.isatty():
        shown = 0

        def tell(finished: int) -> None:
            nonlocal shown
            if finished * _STEPS // total > shown * _STEPS // total:
                shown = finished
                screen.print(f"{finished:,} of {total:,} files")

        yield tell
        return
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("files"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=screen) as bar:
        task = bar.add_task("Reading the standard library", total=total)
        yield lambda finished: bar.update(task, completed=finished)


def _commands(given: list[str], schema: str, result: Result) -> list[str]:
    """Commands to look further."""
    here = Path(sys.argv[0]).absolute()  # a virtual environment's, in the current folder: it need not be on the PATH
    near = here.name == "backfill" and here.is_relative_to(Path.cwd())
    program = shlex.quote(str(here.relative_to(Path.cwd()))) if near else "backfill"
    where = shlex.join([*given, "--schema", schema])
    some = result.dead[0].id if result.dead else 1
    return [
        f"{program} dlq list {where}",
        f"{program} dlq show {some} {where}",
        f"{program} dlq requeue {some} {where}    # after mending its file",
        f"{program} worker backfill.cli.demo.tasks:worker --once {where}",
        f"{program} jobs list {where}",
    ]
