"""``backfill workers``: who works, and on what."""

from datetime import timedelta
from typing import Any, Final

import click
import msgspec

from backfill.cli.common import Cli, common
from backfill.cli.output import cell, count_of, print_json, print_table
from backfill.model import RunningJob, WorkerInfo, WorkerState

_SHOWN: Final = 3  # running jobs of a worker; the JSON has all


@click.command()
@common()
def workers(cli: Cli) -> None:
    """List the workers: alive, draining (about to end) or lost, what each runs and for how long.

    A worker is lost when it has been silent for longer than its lease; another takes its jobs over.
    """
    found = cli.with_client(lambda client: client.workers())
    if cli.as_json:
        print_json({"workers": [_document(worker) for worker in found]})
        return
    if not found:
        click.echo("no workers")
        return
    columns = ("id", "state", "host", "pid", "up", "last beat", "lag", "slots", "running")
    print_table(columns, (_row(worker) for worker in found), right=("pid", "up", "last beat", "lag", "slots"))
    states = [f"{sum(worker.state == state for worker in found)} {state}" for state in WorkerState]
    click.echo(f"\n{count_of(len(found), 'worker')}: {', '.join(states)}")


def _row(worker: WorkerInfo) -> tuple[object, ...]:
    up = worker.heartbeat_at + worker.silent_for - worker.started_at
    slots = sum(lane["concurrency"] for lane in worker.lanes)
    more = len(worker.running) - _SHOWN
    running = [
        f"{job.id} {cell(job.task_identifier or '?')} {_span(job.running_for)}" for job in worker.running[:_SHOWN]
    ]
    if more > 0:
        running.append(f"and {more} more")
    return (
        worker.id,
        worker.state,
        worker.host,
        worker.pid,
        _span(up),
        f"{_span(worker.silent_for)} ago",
        _span(worker.loop_lag),
        slots,
        "; ".join(running),
    )


def _span(span: timedelta) -> str:
    """A time as people say it: its two largest units."""
    seconds = max(0, int(span.total_seconds()))
    if seconds < 60:
        return f"{seconds} s"
    minutes, seconds = divmod(seconds, 60)
    if minutes < 60:
        return f"{minutes} min {seconds} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours < 24 else f"{hours // 24} d {hours % 24} h"


def _document(worker: WorkerInfo) -> dict[str, Any]:
    document: dict[str, Any] = {name: getattr(worker, name) for name in worker.__struct_fields__}
    for name in ("silent_for", "lease", "loop_lag"):
        document[name] = document[name].total_seconds()
    document["running"] = [_running(job) for job in worker.running]
    return document


def _running(job: RunningJob) -> dict[str, Any]:
    return {**msgspec.structs.asdict(job), "running_for": job.running_for.total_seconds()}
