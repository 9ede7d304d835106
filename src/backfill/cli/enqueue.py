"""``backfill enqueue``: add a job from the shell."""

from dataclasses import replace
from datetime import timedelta
from typing import Any

import click
import msgspec

from backfill.cli.common import Cli, common, database_time
from backfill.cli.output import job_document, print_json, shown
from backfill.cli.params import DURATION, MOMENT, PAYLOAD, PRIORITY, RETRY, Moment, Payload
from backfill.client import BackfillClient
from backfill.model import EnqueueOutcome, JobKeyMode, JobSpec, RetryPolicy


@click.command(no_args_is_help=True)
@click.argument("task")
@click.argument("payload", type=PAYLOAD, required=False)
@click.option("--priority", type=PRIORITY, help="-32768 to 32767, lower first, or a name such as FAST_HIGH.")
@click.option("--queue", metavar="NAME", help="A serial queue: its jobs run one at a time.")
@click.option("--run-at", type=MOMENT, help="2030-01-31T09:00:00+01:00, now, or +5m (ms s m h d w).")
@click.option("--key", metavar="KEY", help="A job key: only one job can wait under it.")
@click.option("--key-mode", type=click.Choice([mode.value for mode in JobKeyMode]), help="What a re-added key does.")
@click.option("--max-attempts", type=click.IntRange(1, 32767), help="Runs in all.  [else: the policy's, 8]")
@click.option("--retry", type=RETRY, help="default, fast, aggressive, conservative, or INITIAL/MAX/MULTIPLIER/JITTER.")
@click.option("--timeout", type=DURATION, help="How long a run may take: 90, 1.5s, 200ms, 5m.")
@click.option("--flag", "flags", multiple=True, metavar="NAME", help="A flag of the job; repeatable.")
@common()
def enqueue(
    cli: Cli,
    *,
    task: str,
    payload: Payload | None,
    run_at: Moment | None,
    key: str | None,
    key_mode: str | None,
    retry: RetryPolicy | None,
    max_attempts: int | None,
    timeout: timedelta | None,
    flags: tuple[str, ...],
    priority: int | None,
    queue: str | None,
) -> None:
    """Add a job of TASK.

    PAYLOAD is JSON, or @FILE for the JSON in a file, or - for the JSON on stdin; left out it is {}.
    """
    if key_mode is not None and key is None:
        raise click.UsageError("--key-mode says what happens to a job with the same key: give --key too")
    given = {"priority": priority, "job_key_mode": key_mode}
    spec = JobSpec(
        queue=queue,
        job_key=key,
        max_attempts=max_attempts,
        retry_policy=retry,
        timeout=timeout,
        flags=frozenset(flags),
        **{name: value for name, value in given.items() if value is not None},  # type: ignore[arg-type]  # checked by click
    )
    value: Any = msgspec.UNSET if payload is None else payload.value

    async def add(client: BackfillClient) -> EnqueueOutcome:
        due = spec
        if run_at is not None and not run_at.is_now:
            due = replace(spec, run_at=run_at.by(await database_time(client)))
        return await client.enqueue(task, value, due)

    outcome = cli.with_client(add)
    if cli.as_json:
        document = None if outcome.job is None else job_document(outcome.job)
        kind = "enqueued" if outcome.is_enqueued else "already_in_progress"
        print_json({"outcome": kind, "job_key": outcome.conflicting_job_key or key, "job": document})
    elif outcome.job is None:
        click.echo(f"nothing added: the job with key {shown(outcome.conflicting_job_key)} is running")
    else:
        due = "" if run_at is None or run_at.is_now else f", due {shown(outcome.job.run_at)}"
        click.echo(f"job {outcome.job.id} added: {shown(task)}{due}")
