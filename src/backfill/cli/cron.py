"""``backfill cron``: read crontabs, tell when their items run, and what the database knows of them."""

import heapq
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any

import click
import msgspec

from backfill.cli.common import Cli, common
from backfill.cli.load import load
from backfill.cli.output import count_of, print_json, print_table, shown
from backfill.cli.params import MOMENT, Moment
from backfill.client import BackfillClient
from backfill.cron import CronItem, CronPattern, KnownCrontab, describe, known_crontabs, parse_lines
from backfill.cron.write import fill_text, pattern_text
from backfill.errors import BackfillError, ConfigurationError, CrontabError
from backfill.worker import WorkerConfig

_NOWHERE = "postgresql://"  # for a function that makes a builder, when no database is named: nothing connects


@dataclass(frozen=True, slots=True)
class Found:
    """An item, and where it is from.

    Attributes:
        item: The item.
        line: The number of its line; None when it was made in code.
        additions: What in the line Node workers don't know.
    """

    item: CronItem
    line: int | None = None
    additions: tuple[str, ...] = ()


@click.group()
def cron() -> None:
    """Read crontabs: what is wrong with them, when their items run, and what the database knows of them."""


@cron.command()
@click.argument("source", metavar="FILE")
@click.option("--count", type=click.IntRange(0, 100), default=3, show_default=True, help="Runs to show of each item.")
@common()
def check(cli: Cli, *, source: str, count: int) -> int:
    """Say what is wrong with a crontab, or what it means. Needs no database.

    FILE is a crontab; or MODULE:OBJECT, a WorkerRunnerBuilder or a function that makes one, for the items of that.
    """
    try:
        found = items_of(cli, source)
    except CrontabError as error:
        if not cli.as_json:
            raise
        print_json({"items": [], "problems": error.problems})
        return 1
    now = datetime.now(UTC)
    if cli.as_json:
        print_json({"items": [_document(each, now, count) for each in found], "problems": []})
        return 0
    for each in found:
        click.echo("\n".join(_explained(each, now, count)))
    refused = [f"line {each.line} ({', '.join(each.additions)})" for each in found if each.additions]
    click.echo(f"{count_of(len(found), 'item')}, no mistake")
    if refused:
        click.echo(f"Node workers refuse this crontab, because of {'; '.join(refused)}")
    return 0


@cron.command("next")
@click.argument("source", metavar="FILE")
@click.option("--count", type=click.IntRange(1, 10_000), default=10, show_default=True, help="How many runs.")
@click.option("--id", "identifier", metavar="ID", help="Only runs of the item with this identifier.")
@click.option("--after", metavar="TIME", type=MOMENT, default="now", show_default=True, help="Runs after this time.")
@common()
def next_(cli: Cli, *, source: str, count: int, identifier: str | None, after: Moment) -> None:
    """Show the next runs of a crontab's items, in their order. Needs no database.

    FILE is a crontab; or MODULE:OBJECT, a WorkerRunnerBuilder or a function that makes one, for the items of that.
    """
    items = [each.item for each in items_of(cli, source)]
    if identifier is not None:
        chosen = [item for item in items if item.identifier == identifier]
        if not chosen:
            raise BackfillError(
                f"{source} has no item {identifier!r}; it has {', '.join(each.identifier for each in items)}"
            )
        items = chosen
    streams = [_runs(position, item, after.by(datetime.now(UTC))) for position, item in enumerate(items)]
    runs = [(tick, items[position]) for tick, position in islice(heapq.merge(*streams), count)]
    if cli.as_json:
        documents = [
            {"identifier": item.identifier, "task": item.task, "words": describe(item), **_times(item, tick)}
            for tick, item in runs
        ]
        print_json({"runs": documents})
    elif not runs:
        click.echo("no runs")
    else:
        columns = ("run at", "in its zone", "item", "task", "when")
        print_table(
            columns, ((tick, _local(item, tick), item.identifier, item.task, describe(item)) for tick, item in runs)
        )


@cron.command("list")
@click.argument("source", metavar="[FILE]", required=False)
@common()
def list_(cli: Cli, *, source: str | None) -> None:
    """List what the database knows of cron items, of Node workers too; with FILE also when they run next.

    FILE is a crontab; or MODULE:OBJECT, a WorkerRunnerBuilder or a function that makes one, for the items of that.
    """
    items = {} if source is None else {each.item.identifier: each.item for each in items_of(cli, source)}

    async def look(client: BackfillClient) -> list[KnownCrontab]:
        async with client.pool.acquire() as connection:
            return await known_crontabs(connection, client.schema)

    now = datetime.now(UTC)
    known = {row.identifier: row for row in cli.with_client(look)}
    rows = [_known(name, known.get(name), items.get(name), now) for name in sorted({*known, *items})]
    if cli.as_json:
        print_json({"crontabs": rows})
        return
    if not rows:
        click.echo("no cron items are known in this schema")
        return
    columns = ("item", "known since", "last execution", *(("next run", "task", "when") if items else ()))
    names = [column.replace(" ", "_").replace("item", "identifier").replace("when", "words") for column in columns]
    print_table(columns, ([row[name] for name in names] for row in rows))
    for row in rows:
        if row["last_execution"] is not None and row["last_execution"] > now:
            click.echo(f"\n{row['identifier']} was scheduled for a time that is still to come, and waits for it")


def items_of(cli: Cli, source: str) -> list[Found]:
    """The items of a crontab's file, or of ``MODULE:OBJECT``.

    Raises:
        CrontabError: A line can't be read.
        ConfigurationError: There is no such file, module or object.
    """
    if ":" in source and not Path(source).is_file():
        config = WorkerConfig(database_url=cli.url or _NOWHERE, schema=cli.schema)
        return [Found(item) for item in load([source]).builder(lambda: config).cron_items]
    return [Found(line.item, line.number, line.additions) for line in parse_lines(read_crontab(Path(source)))]


def read_crontab(path: Path) -> str:
    """The text of a crontab's file.

    Raises:
        ConfigurationError: It can't be read.
    """
    try:
        return path.read_bytes().decode()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"the crontab {path} can't be read: {error}") from error


def _runs(position: int, item: CronItem, after: datetime) -> Iterator[tuple[datetime, int]]:
    """The runs of an item, without an end."""
    tick = item.next_run(after)
    while tick is not None:
        yield tick, position
        tick = item.next_run(tick)


def _explained(found: Found, now: datetime, count: int) -> Iterator[str]:
    """An item in words."""
    item = found.item
    place = "" if found.line is None else f"line {found.line}: "
    yield f"{place}{item.identifier}"
    yield f"  {describe(item)}"
    yield f"  {_settings(item)}"
    if item.never_runs:
        yield "  never runs: none of its months has such a day"
    elif count:
        ticks = [_both(item, tick) for tick, _ in islice(_runs(0, item, now), count)]
        yield f"  next: {', '.join(ticks) or 'not within 32 days'}"
    yield ""


def _settings(item: CronItem) -> str:
    settings = {
        "missed runs:": f"{item.missed} up to {fill_text(item)} old" if item.fill else item.missed,
        "attempts": item.max_attempts,
        "queue": item.queue,
        "priority": item.priority,
        "key": None if item.job_key is None else f"{item.job_key} ({item.job_key_mode})",
        "payload": None if item.payload_text == "{}" else item.payload_text,
    }
    return shown(
        ", ".join([f"task {item.task}", *(f"{name} {value}" for name, value in settings.items() if value is not None)])
    )


def _local(item: CronItem, tick: datetime) -> str | None:
    """A run by the clock of the item's zone; None without a zone."""
    return None if item.zone is None else tick.astimezone(item.zone).isoformat(sep=" ", timespec="minutes")


def _both(item: CronItem, tick: datetime) -> str:
    utc = tick.strftime("%Y-%m-%d %H:%MZ")
    return utc if item.zone is None else f"{_local(item, tick)} ({utc})"


def _times(item: CronItem, tick: datetime) -> dict[str, Any]:
    return {"run_at": tick, "local": tick.astimezone(item.zone or UTC)}


def _document(found: Found, now: datetime, count: int) -> dict[str, Any]:
    item = found.item
    return {
        "line": found.line,
        "identifier": item.identifier,
        "task": item.task,
        "schedule": pattern_text(item.schedule) if isinstance(item.schedule, CronPattern) else None,
        "words": describe(item),
        "zone": None if item.zone is None else item.zone.key,
        "fill": item.fill.total_seconds(),
        "missed": item.missed,
        "max_attempts": item.max_attempts,
        "queue": item.queue,
        "priority": item.priority,
        "job_key": item.job_key,
        "job_key_mode": item.job_key_mode,
        "payload": msgspec.Raw(item.payload_text.encode()),
        "never_runs": item.never_runs,
        "additions": found.additions,
        "next": [_times(item, tick) for tick, _ in islice(_runs(0, item, now), count)],
    }


def _known(name: str, known: KnownCrontab | None, item: CronItem | None, now: datetime) -> dict[str, Any]:
    return {
        "identifier": name,
        "known_since": None if known is None else known.known_since,
        "last_execution": None if known is None else known.last_execution,
        "next_run": None if item is None else item.next_run(now),
        "task": None if item is None else item.task,
        "words": None if item is None else describe(item),
    }
