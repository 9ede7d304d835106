"""``backfill jobs``: look at jobs, and change those that do not run."""

from collections.abc import Awaitable, Callable, Sequence

import click

from backfill.cli.common import Cli, common, database_time
from backfill.cli.output import (
    count_of,
    job_document,
    print_fields,
    print_json,
    print_table,
    shown,
    total_of,
)
from backfill.cli.params import MOMENT, PRIORITY, Moment
from backfill.client import BackfillClient, Cancelled
from backfill.errors import BackfillError
from backfill.model import Job, JobState


@click.group()
def jobs() -> None:
    """Look at jobs, cancel them, have them run again or at another time."""


@jobs.command("list")
@click.option("--state", type=click.Choice([state.value for state in JobState]), help="Only jobs in this state.")
@click.option("--task", metavar="TASK", help="Only jobs of this task.")
@click.option("--queue", metavar="NAME", help="Only jobs of this serial queue; '' is the parallel queue.")
@click.option("--key", metavar="KEY", help="Only the job of this key.")
@click.option("--after", metavar="ID", type=int, help="Only jobs with a greater id: the next page.")
@click.option("--limit", type=click.IntRange(1, 10_000), default=50, show_default=True, help="How many at most.")
@common()
def list_(
    cli: Cli,
    *,
    state: str | None,
    task: str | None,
    queue: str | None,
    key: str | None,
    after: int | None,
    limit: int,
) -> None:
    """List jobs by id."""

    async def look(client: BackfillClient) -> tuple[list[Job], int | None]:
        page = await client.list_jobs(state=state, task=task, queue=queue, key=key, after=after or 0, limit=limit)
        return page, await client.count_jobs(state=state, task=task, queue=queue, key=key)

    found, total = cli.with_client(look)
    following = found[-1].id if len(found) == limit else None
    if cli.as_json:
        print_json({"jobs": [job_document(job) for job in found], "total": total, "next": following})
        return
    if not found:
        click.echo("no jobs")
        return
    columns = ("id", "task", "state", "queue", "priority", "run at", "attempts", "key", "last error")
    print_table(columns, (_row(job) for job in found), right=("id", "priority", "attempts"))
    more = "" if following is None else f"; the next page: --after {following}"
    click.echo(f"\n{len(found)} of {total_of(total)} in all{more}")


@jobs.command()
@click.argument("job_id", metavar="ID", type=int)
@common()
def show(cli: Cli, job_id: int) -> None:
    """Show one job with its payload."""

    async def look(client: BackfillClient) -> Job | None:
        return await client.get_job(job_id)

    job = cli.with_client(look)
    if job is None:
        raise BackfillError(
            f"there is no job {job_id} in schema {cli.schema}: it is done or was removed, or it is in the dead letter"
            " queue (backfill dlq list)"
        )
    if cli.as_json:
        print_json(job_document(job))
        return
    fields = {name.replace("_", " "): value for name, value in job_document(job).items()}
    attempts = f"{job.attempts} of {job.max_attempts}"
    print_fields({**fields, "payload": job.payload_text, "attempts": attempts, "max attempts": None}.items())


@jobs.command()
@click.argument("ids", metavar="ID...", type=int, nargs=-1, required=True)
@click.option("--dead-letter", is_flag=True, help="Move them to the dead letter queue instead of deleting them.")
@click.option("--reason", metavar="TEXT", help="Why; for the dead letter queue.")
@common()
def cancel(cli: Cli, *, ids: tuple[int, ...], dead_letter: bool, reason: str | None) -> int:
    """Take jobs out of the queue; a running one's handler is cancelled, and the job ends with it."""
    if reason is not None and not dead_letter:
        raise click.UsageError("--reason is for dead letters: give --dead-letter, too")

    async def do(client: BackfillClient) -> tuple[Cancelled, list[int]]:
        done = await client.cancel_jobs(ids, dead_letter=dead_letter, reason=reason)
        known = {job.id for job in (*done.cancelled, *done.requested)}
        return done, [job_id for job_id in dict.fromkeys(ids) if job_id not in known]

    done, missing = cli.with_client(do)
    if cli.as_json:
        print_json(
            {
                "cancelled": [job_document(job) for job in done.cancelled],
                "requested": [job_document(job) for job in done.requested],
                "skipped": [{"id": job_id, "reason": "there is no such job"} for job_id in missing],
            }
        )
        return 1 if missing else 0
    for job in done.cancelled:
        click.echo(f"job {job.id} ({shown(job.task_identifier)}) cancelled")
    for job in done.requested:
        click.echo(f"job {job.id} ({shown(job.task_identifier)}) is running: {_who_was_told(job)}")
    for job_id in missing:
        click.echo(f"job {job_id} was not cancelled: there is no such job")
    return 1 if missing else 0


def _who_was_told(job: Job) -> str:
    worker = (job.locked_by or "").partition("/")[0]
    if worker.startswith("backfill-"):
        return f"worker {worker} has been told to end it"
    return (
        f"{worker or 'its worker'} is not a worker of backfill's and can't be told; the job ends when it lets go of it"
    )


@jobs.command()
@click.argument("ids", metavar="ID...", type=int, nargs=-1, required=True)
@common()
def retry(cli: Cli, ids: tuple[int, ...]) -> int:
    """Have jobs run again from the beginning, now: no attempts used, due at once."""
    return _change(cli, "retried", ids, lambda client: client.retry_jobs(ids))


@jobs.command()
@click.argument("ids", metavar="ID...", type=int, nargs=-1, required=True)
@click.option("--run-at", type=MOMENT, help="2030-01-31T09:00:00+01:00, now, or +5m (ms s m h d w).")
@click.option("--priority", type=PRIORITY, help="-32768 to 32767, lower first, or a name such as FAST_HIGH.")
@click.option("--attempts", type=click.IntRange(0, 32767), help="How many runs count as used.")
@click.option("--max-attempts", type=click.IntRange(1, 32767), help="How many runs they may have.")
@common()
def reschedule(
    cli: Cli,
    *,
    ids: tuple[int, ...],
    run_at: Moment | None,
    priority: int | None,
    attempts: int | None,
    max_attempts: int | None,
) -> int:
    """Change when, how urgently and how often jobs run; those that run now are left alone."""
    if run_at is None and priority is None and attempts is None and max_attempts is None:
        raise click.UsageError("nothing to change: give --run-at, --priority, --attempts or --max-attempts")

    async def change(client: BackfillClient) -> Sequence[Job]:
        due = None if run_at is None else run_at.by(await database_time(client))
        return await client.reschedule_jobs(
            ids, run_at=due, priority=priority, attempts=attempts, max_attempts=max_attempts
        )

    return _change(cli, "rescheduled", ids, change)


def _change(
    cli: Cli, done: str, ids: tuple[int, ...], change: Callable[[BackfillClient], Awaitable[Sequence[Job]]]
) -> int:
    """Change jobs, and say which of them were not and why; 1 if there is one."""

    async def do(client: BackfillClient) -> tuple[Sequence[Job], dict[int, str]]:
        changed = await change(client)
        left = dict.fromkeys(ids)
        for job in changed:
            left.pop(job.id, None)
        return changed, {job_id: await _why_not(client, job_id) for job_id in left}

    changed, left = cli.with_client(do)
    if cli.as_json:
        skipped = [{"id": job_id, "reason": reason} for job_id, reason in left.items()]
        print_json({done: [job_document(job) for job in changed], "skipped": skipped})
    else:
        for job in changed:
            due = f", due {shown(job.run_at)}" if done == "rescheduled" else ""
            click.echo(f"job {job.id} ({shown(job.task_identifier)}) {done}{due}")
        for job_id, reason in left.items():
            click.echo(f"job {job_id} was not {done}: {reason}")
        if len(ids) > 1:
            click.echo(f"{count_of(len(changed), 'job')} {done}")
    return 1 if left else 0


async def _why_not(client: BackfillClient, job_id: int) -> str:
    job = await client.get_job(job_id)
    if job is None:
        return "there is no such job"
    return f"it is running, held by {job.locked_by}" if job.locked_by else "it was running just now: try again"


def _row(job: Job) -> tuple[object, ...]:
    attempts = f"{job.attempts}/{job.max_attempts}"
    return (
        job.id,
        job.task_identifier,
        job.state,
        job.queue_name,
        job.priority,
        job.run_at,
        attempts,
        job.key,
        job.last_error,
    )
