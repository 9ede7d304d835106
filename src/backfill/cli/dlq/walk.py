"""Commands that change many entries: how far they are, and how they are interrupted.

Progress goes to stderr: a bar on a terminal, else a line now and then. The first Ctrl-C (or SIGTERM) ends the command after
the batch that is under way, which says what was done and how to go on; the second ends it at once.
"""

import asyncio
import contextlib
import functools
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

import click
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from backfill.cli.output import console
from backfill.model import DlqProgress

T = TypeVar("T")

_PAUSE: Final = 2.0  # seconds between lines, where stderr is no terminal
_MOST_SHOWN: Final = 20  # ids of entries that were skipped


@dataclass(frozen=True, slots=True)
class Bounds:
    """How much at once, as the options say.

    Attributes:
        limit: How many entries at most.
        after: Only those with a greater id.
        rate: How many a second at most.
        dry_run: Change nothing.
    """

    limit: int | None
    after: int | None
    rate: float | None
    dry_run: bool

    @property
    def is_any(self) -> bool:
        """Whether nothing was asked for."""
        return self == Bounds(None, None, None, dry_run=False)


def bounded(function: Callable[..., T]) -> Callable[..., T]:
    """Give a command the options that bound a change of many entries; its function gets them as ``bounds``."""

    @click.option("--limit", type=click.IntRange(min=1), help="How many of the chosen at most, the oldest first.")
    @click.option("--after", metavar="ID", type=int, help="Only entries with a greater id: goes on where a run ended.")
    @click.option("--rate", type=click.FloatRange(min=0, min_open=True), help="How many entries a second at most.")
    @click.option("--dry-run", is_flag=True, help="Change nothing; say how many entries are meant, and show the first.")
    @functools.wraps(function)
    def command(
        *args: Any, limit: int | None, after: int | None, rate: float | None, dry_run: bool, **options: Any
    ) -> T:
        return function(*args, bounds=Bounds(limit, after, rate, dry_run=dry_run), **options)

    return command


@dataclass(slots=True)
class Walk:
    """One run of such a command.

    Attributes:
        word: What is done to the entries, as in "requeued".
        stop: Set once the command is to end.
        last: How far it came; None before the first batch.
        skipped_ids: The first of the entries that stayed.
    """

    word: str
    stop: asyncio.Event = field(default_factory=asyncio.Event)
    last: DlqProgress | None = None
    skipped_ids: list[int] = field(default_factory=list)
    _bar: Progress | None = None
    _task: TaskID | None = None
    _told: float = field(default_factory=time.monotonic)

    @property
    def interrupted(self) -> bool:
        """Whether it ended before its end because it was asked to."""
        through = self.last is not None and self.last.done + self.last.skipped >= self.last.total
        return self.stop.is_set() and not through

    def watch(self, progress: DlqProgress) -> None:
        """Note and show how far it is."""
        self.last = progress
        self.skipped_ids += progress.skipped_ids[: _MOST_SHOWN - len(self.skipped_ids)]
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=progress.done + progress.skipped, total=progress.total)
        elif time.monotonic() - self._told >= _PAUSE:
            self._told = time.monotonic()
            click.echo(self._line(progress), err=True)

    def where(self) -> dict[str, Any]:
        """What the JSON document says of an interruption: nothing when there was none."""
        return {"interrupted": True, "last_id": self.last.last_id if self.last else None} if self.interrupted else {}

    def tell_interruption(self) -> None:
        """Say how to go on, if it was interrupted."""
        if not self.interrupted:
            return
        behind = f"; with --after {self.last.last_id} without those that failed again since" if self.last else ""
        click.echo(f"interrupted: the same command goes on{behind}", err=True)

    @contextlib.contextmanager
    def shown(self) -> Iterator[None]:
        """Show progress and listen for signals for the length of a ``with`` block in the event loop."""
        bar = _bar() if sys.stderr.isatty() else None
        with self._interruptible(), bar or contextlib.nullcontext():
            if bar is not None:
                self._bar, self._task = bar, bar.add_task(self.word, total=None)
            yield

    @contextlib.contextmanager
    def _interruptible(self) -> Iterator[None]:
        loop, main = asyncio.get_running_loop(), asyncio.current_task()

        def ask() -> None:
            if self.stop.is_set() and main is not None:
                main.cancel()
            elif not self.stop.is_set():
                self.stop.set()
                click.echo("stopping after this batch; once more ends it at once", err=True)

        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, ask)
        try:
            yield
        except asyncio.CancelledError:
            raise click.Abort from None
        finally:
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.remove_signal_handler(number)

    def _line(self, progress: DlqProgress) -> str:
        skipped = f", {progress.skipped:,} skipped" if progress.skipped else ""
        return f"{progress.done:,} of {progress.total:,} {self.word}{skipped}, up to entry {progress.last_id}"


def _bar() -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console(stderr=True))
