"""``backfill worker``: run jobs."""

import asyncio
import re
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any, Final

import click

from backfill.cli.common import Cli, common, run
from backfill.cli.cron import read_crontab
from backfill.cli.failing import BREAKING_MIGRATION, report
from backfill.cli.load import Loaded, load
from backfill.cli.output import count_of, print_json
from backfill.cli.params import DURATION, ParamType
from backfill.cli.processes import run_processes
from backfill.cli.stopping import StopRequests, leave, leave_within
from backfill.cron import CronItem, parse_crontab
from backfill.errors import BreakingMigrationError, ConfigurationError
from backfill.worker import QueueConfig, WorkerConfig, WorkerRunner, WorkerRunnerBuilder
from backfill.worker.config import HIGHEST_PRIORITY, LOWEST_PRIORITY

_LINGER: Final = 5.0  # seconds between the end of the worker and that of the process, at most
_LANE: Final = re.compile(r"(?P<name>[^=,]+)=(?P<slots>\d+)(?:,(?P<what>priority|queue)=(?P<which>.+))?", re.DOTALL)
_RANGE: Final = re.compile(r"(?P<low>-?\d+)?(?P<dots>\.\.)?(?P<high>-?\d+)?")


class LaneType(ParamType[QueueConfig]):
    """``fast=10,priority=-32768..-1``, ``reports=1,queue=reports``, or ``rest=5`` for all that no other lane runs."""

    name = "lane"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> QueueConfig:
        """Read it."""
        if isinstance(value, QueueConfig):
            return value
        lane = _LANE.fullmatch(value)
        if lane is None:
            self.fail(f"{value!r} is no lane: write NAME=SLOTS, with ,priority=LOW..HIGH or ,queue=NAME", param, ctx)
        try:
            if lane["what"] == "queue":
                return QueueConfig(lane["name"], int(lane["slots"]), queue_name=lane["which"])
            given = None if lane["which"] is None else _range(lane["which"])
            return QueueConfig(lane["name"], int(lane["slots"]), priority_range=given)
        except (ConfigurationError, ValueError) as error:
            self.fail(str(error), param, ctx)


def _range(text: str) -> tuple[int, int]:
    """The ends of ``LOW..HIGH``, ``LOW..``, ``..HIGH`` or one number.

    Raises:
        ValueError: It is none of these.
    """
    found = _RANGE.fullmatch(text)
    if found is None or (not found["dots"] and (found["low"] is None or found["high"] is not None)):
        raise ValueError(f"{text!r} is no range of priorities: write LOW..HIGH, as in -32768..-1")
    low = LOWEST_PRIORITY if found["low"] is None else int(found["low"])
    if not found["dots"]:
        return low, low
    return low, HIGHEST_PRIORITY if found["high"] is None else int(found["high"])


@click.command(no_args_is_help=True)
@click.argument("targets", metavar="[MODULE[:OBJECT]...]", nargs=-1)
@click.option("--task-folder", "folders", metavar="DIR", multiple=True, help="Run its executable files; repeatable.")
@click.option("--once", is_flag=True, help="Run what is due now, and end.")
@click.option("--concurrency", metavar="N", type=click.IntRange(1, 10_000), help="One lane of N slots for all jobs.")
@click.option("--lane", "lanes", type=LaneType(), multiple=True, help="A lane; repeatable. See below.")
@click.option("--crontab", metavar="FILE", type=click.Path(path_type=Path), help="Add jobs at its times.")
@click.option("--processes", metavar="N", type=click.IntRange(1, 1000), help="N such workers, each a process.")
@click.option("--listen-url", metavar="URL", help="To be notified at, if DATABASE_URL is a pooler's.")
@click.option("--poll-interval", type=DURATION, help="Between looks at the database while LISTEN is down. [200ms]")
@click.option("--shutdown-timeout", type=DURATION, help="How long a stop may take in all.  [30s]")
@click.option("--forbid-flag", "forbidden_flags", metavar="NAME", multiple=True, help="Leave such jobs; repeatable.")
@click.option("--no-dlq", is_flag=True, help="Leave jobs that failed for good in the queue.")
@click.option("--log-jobs", is_flag=True, help="Log a line at INFO for each job that ends well.")
@common("INFO")
def worker(
    cli: Cli, /, *, targets: tuple[str, ...], once: bool, processes: int | None, crontab: Path | None, **options: Any
) -> int:
    """Run jobs with the tasks of each MODULE, which is looked for in the current folder first.

    OBJECT is a task, a list of tasks, a WorkerRunnerBuilder, or a function that makes one of a WorkerConfig. With
    --task-folder, tasks are executable files: reports/daily.sh in that folder is the task reports/daily.

    Lanes: a lane's slots run its jobs only. --lane fast=10,priority=-32768..-1 is for a range of priorities, --lane
    reports=1,queue=reports for one serial queue, --lane rest=5 for all else. Without --lane and --concurrency the
    environment decides: FAST_QUEUE_CONCURRENCY (10), BULK_QUEUE_CONCURRENCY (5), DEAD_LETTER_QUEUE_CONCURRENCY (2).

    SIGTERM or Ctrl-C: running jobs finish, within the shutdown timeout; a second one cuts them short and hands them back;
    a third ends the process on the spot.

    Exit code 57: somebody took the schema to a revision that this version cannot work with; the worker stopped in order.
    """
    folders: tuple[str, ...] = options.pop("folders")
    if not targets and not folders:
        raise click.UsageError("name a MODULE that has tasks, or a folder of executable files with --task-folder")
    if options["concurrency"] is not None and options["lanes"]:
        raise click.UsageError("--concurrency and --lane exclude each other: --concurrency N is --lane default=N")
    if once and processes is not None:
        raise click.UsageError("--once runs in one process: leave --processes out")
    if once and crontab is not None:
        raise click.UsageError("--once adds no jobs at set times: leave --crontab out")
    items = [] if crontab is None else parse_crontab(read_crontab(crontab))
    with nullcontext() if cli.url is None else cli.database(create=True) as url:
        work = partial(_work, cli, url, targets, folders, options, items=items)
        if processes is None:
            return work(once=once)
        ended = run_processes(processes, partial(_work_as_child, work))
    if cli.as_json:
        print_json({"processes": [{"pid": one.pid, "exit_code": one.code} for one in ended]})
    codes = {one.code for one in ended}
    return BREAKING_MIGRATION if BREAKING_MIGRATION in codes else int(codes != {0})


def _work(
    cli: Cli,
    url: str | None,
    targets: tuple[str, ...],
    folders: tuple[str, ...],
    options: dict[str, Any],
    *,
    items: Sequence[CronItem],
    once: bool = False,
    orphaned: int | None = None,
) -> int:
    """Load the tasks and run jobs; return the exit code."""
    loaded = load(targets)
    if isinstance(loaded.source, WorkerRunnerBuilder):
        _refuse_settings(cli, loaded, options)
    builder = loaded.builder(partial(_config, cli, url, options))
    for folder in folders:
        builder.define_executables(folder)
    for item in items:
        builder.add_cron_schedule(item)
    if once:
        return run(_run_once(cli, builder))
    silent = orphaned is not None or not cli.as_json
    return run(_run_on(builder, orphaned, None if silent else print_json))


def _work_as_child(work: Callable[..., int], orphaned: int) -> int:
    try:
        return work(orphaned=orphaned)
    except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001 - the last place in this process
        return report(error, as_json=False)


def _config(cli: Cli, url: str | None, options: dict[str, Any]) -> WorkerConfig:
    """The configuration: options before the environment before the defaults."""
    given: dict[str, Any] = {
        "database_url": url or cli.required_url,
        "schema": cli.schema,
        "log_jobs": options["log_jobs"],
    }
    if options["concurrency"] is not None:
        given["queue_configs"] = [QueueConfig.default_queue(options["concurrency"])]
    elif options["lanes"]:
        given["queue_configs"] = options["lanes"]
    for name in ("poll_interval", "shutdown_timeout", "listen_url"):
        if options[name] is not None:
            given[name] = options[name]
    if options["forbidden_flags"]:
        given["forbidden_flags"] = options["forbidden_flags"]
    if options["no_dlq"]:
        given["dlq_processor_interval"] = None
    return WorkerConfig.from_env(**given)


def _refuse_settings(cli: Cli, loaded: Loaded, options: dict[str, Any]) -> None:
    """A ready builder has its configuration: options that would have to change it are refused."""
    given = {"database-url": cli.url_option, "schema": cli.schema_option, **options}
    for name, value in given.items():
        if value not in (None, False, ()):
            shown = {"lanes": "lane", "forbidden_flags": "forbid-flag"}.get(name, name.replace("_", "-"))
            raise click.UsageError(
                f"--{shown}: {loaded.source_target} is a builder with its own"
                " WorkerConfig; name a function that makes a builder of a WorkerConfig instead"
            )


async def _run_once(cli: Cli, builder: WorkerRunnerBuilder) -> int:
    async with await builder.build() as runner:
        running = asyncio.create_task(runner.process_available_jobs(abandon=True))
        requests = StopRequests(
            running.cancel, runner.hurry, "jobs that run are cancelled and handed back", on_signal=runner.signalled
        )
        try:
            runs = await running
        except asyncio.CancelledError:
            if requests.last is None:
                raise
            leave_within(_LINGER, 128 + requests.last)
            return 128 + requests.last
    if cli.as_json:
        print_json({"runs": runs})
    else:
        click.echo(f"{count_of(runs, 'job')} run")
    leave_within(_LINGER, 0)
    return 0


async def _run_on(
    builder: WorkerRunnerBuilder, orphaned: int | None, tell: Callable[[dict[str, int]], None] | None
) -> int:
    async with await builder.build() as runner:
        stop = asyncio.Event()
        requests = StopRequests(stop.set, runner.hurry, on_signal=runner.signalled)
        if orphaned is not None:
            requests.watch(orphaned)
        try:
            abandoned = await runner.run_until_cancelled(stop, abandon=True)
        except BreakingMigrationError:
            leave_within(_LINGER, BREAKING_MIGRATION)
            raise
        if tell is not None:
            tell({"runs": _runs(runner), "abandoned": abandoned})
        if abandoned:  # their handlers run on, in threads or against their cancellation, and have no job any more
            leave(0)
    leave_within(_LINGER, 0)
    return 0


def _runs(runner: WorkerRunner) -> int:
    return 0 if runner.worker is None else runner.worker.releaser.ran
