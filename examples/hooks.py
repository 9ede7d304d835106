"""Has a say in what a worker does, and watches it: a plugin that stamps and refuses jobs, and a stream of events.

DATABASE_URL=postgresql://… python examples/hooks.py
"""

import asyncio
import os

from backfill import HookRegistry, Plugin, WorkerConfig, WorkerRunner, task
from backfill.errors import JobScheduleFailed
from backfill.hooks import (
    BeforeJobRun,
    BeforeJobSchedule,
    Continue,
    EventStream,
    Fail,
    JobComplete,
    JobPermanentlyFail,
    Skip,
)


@task("send_email", max_attempts=1)
async def send_email(payload: dict[str, str]) -> None:
    if "@" not in payload["to"]:
        raise ConnectionError(f"no server for {payload['to']}")


class Postmaster(Plugin):
    """Signs emails, takes none for nobody, and leaves those to test addresses undone."""

    def register(self, registry: HookRegistry) -> None:
        registry.on(BeforeJobSchedule, self.sign)
        registry.on(BeforeJobRun, self.spare)

    async def sign(self, event: BeforeJobSchedule) -> Continue | Fail:
        if not event.payload.get("to"):
            return Fail("an email needs a recipient")
        return Continue({**event.payload, "from": "office@example.com"})

    def spare(self, event: BeforeJobRun) -> Skip | None:
        return Skip() if event.payload["to"].endswith(".test") else None


async def watch(events: EventStream) -> None:
    async for event in events:
        match event:
            case JobComplete(job=job):
                print("sent" if event.duration else "spared", job.payload)
            case JobPermanentlyFail():
                print("lost:", event.error)
    print("the worker has stopped")


async def main() -> None:
    config = WorkerConfig(database_url=os.environ["DATABASE_URL"])
    builder = WorkerRunner.builder(config).define_job(send_email).add_plugin(Postmaster())
    async with await builder.build() as runner:
        watching = asyncio.create_task(watch(runner.events(JobComplete, JobPermanentlyFail)))
        for to in ("ada@example.com", "bob@example.test", "the moon"):
            await runner.client.enqueue(send_email, {"to": to})
        try:
            await runner.client.enqueue(send_email, {"to": ""})
        except JobScheduleFailed as error:
            print("refused:", error.message)
        await runner.process_available_jobs()
        await watching


asyncio.run(main())
