"""Workers as an operator runs them: processes of `backfill worker`, which tests kill, freeze and cut off."""

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

import asyncpg
from tests.support.until import until

from backfill.db import quote_ident

ROOT = Path(__file__).resolve().parents[2]
LEASE = 5  # seconds, the shortest there is
SETTINGS = (
    "DATABASE_URL",
    "GRAPHILE_WORKER_SCHEMA",
    "POLL_INTERVAL_MS",
    "SHUTDOWN_TIMEOUT_SECS",
    "DLQ_PROCESSOR_INTERVAL_SECS",
)


@dataclass
class WorkerProcess:
    """One of them.

    Attributes:
        process: The process.
        log: What it has logged.
    """

    process: asyncio.subprocess.Process
    log_file: Path

    @property
    def pid(self) -> int:
        """Its process id."""
        return self.process.pid

    @property
    def log(self) -> str:
        """What it has logged."""
        return self.log_file.read_text(errors="replace")

    @property
    def runs(self) -> bool:
        """Whether it has not ended."""
        return self.process.returncode is None

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        self.process.send_signal(number)

    async def ended(self, limit: float = 60.0) -> int:
        """Wait for its end; its exit code."""
        async with asyncio.timeout(limit):
            return await self.process.wait()

    async def kill(self) -> None:
        """SIGKILL, and wait for its end."""
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()
        await self.process.wait()


@dataclass
class Fleet:
    """Starts workers; in an `async with` block, at whose end those that still run are killed.

    Attributes:
        workers: All that were started.
    """

    dsn: str
    schema: str
    folder: Path
    environment: dict[str, str] = field(default_factory=dict)
    workers: list[WorkerProcess] = field(default_factory=list)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await asyncio.gather(*(worker.kill() for worker in self.workers))

    async def start(
        self, *arguments: object, prefix: Sequence[str] = (), dsn: str | None = None, **environment: str
    ) -> WorkerProcess:
        """Start one, and go on at once.

        Args:
            arguments: For `backfill worker`, besides the tasks.
            prefix: A command that runs it, in the same process.
            dsn: Another way to the database.
            environment: More variables.
        """
        clean = {name: value for name, value in os.environ.items() if name not in SETTINGS}
        ours = {
            "DATABASE_URL": dsn or self.dsn,
            "GRAPHILE_WORKER_SCHEMA": self.schema,
            "BACKFILL_LEASE_SECS": str(LEASE),
            "SHUTDOWN_TIMEOUT_SECS": "6",
            "PYTHONPATH": str(ROOT),
        }
        command = (*prefix, sys.executable, "-m", "backfill", "worker", "tests.support.handlers")
        log_file = self.folder / f"worker-{len(self.workers)}.log"
        with log_file.open("wb") as log:
            process = await asyncio.create_subprocess_exec(
                *command,
                *map(str, arguments),
                cwd=self.folder,
                env={**clean, **ours, **self.environment, **environment},
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        worker = WorkerProcess(process, log_file)
        self.workers.append(worker)
        return worker

    async def started(
        self, count: int, connection: asyncpg.Connection, *arguments: object, **environment: str
    ) -> list[WorkerProcess]:
        """Start some and wait until each is registered."""
        workers = [await self.start(*arguments, **environment) for _ in range(count)]
        for worker in workers:
            await self.registered(worker, connection)
        return workers

    async def registered(self, worker: WorkerProcess, connection: asyncpg.Connection) -> str:
        """Wait until it is registered; its id."""
        sql = f"select id from {quote_ident(self.schema)}.backfill_workers where pid = $1 and dead_at is null"

        async def found() -> str | None:
            assert worker.runs, worker.log[-3000:]
            return str(row["id"]) if (row := await connection.fetchrow(sql, worker.pid)) else None

        return str(await until(found, f"worker process {worker.pid} is registered", limit=60))

    async def stopped(self) -> list[int]:
        """Have those that run stop in order; all exit codes."""
        for worker in self.workers:
            if worker.runs:
                worker.signal(signal.SIGTERM)
        return [await worker.ended() for worker in self.workers]
