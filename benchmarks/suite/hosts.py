"""Other job queues, each in a process: the adapters and hosts of the side-by-side benchmark, spoken to as they are.

A host takes one action and answers in lines of JSON; ``work`` goes on telling how many jobs have run. See the README there.
"""

import asyncio
import contextlib
import json
import os
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import asyncpg
from benchmarks.suite import machine

ROOT = Path(__file__).resolve().parents[2]
NODE_DIR = Path(tempfile.gettempdir()) / "bench-node"  # where its envs.py installs
KEYED = "graphile_worker_keyed"  # an adapter of ours for the same package
LONGEST = 120.0  # seconds for one action


class MissingError(Exception):
    """Something outside this repository is not there; the message says what and how to get it."""


class Peers:
    """The side-by-side benchmark's folder.

    Args:
        folder: Where it is; it need not be there until a peer is asked for.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def check(self) -> None:
        """Install what the peers need, on the first call.

        Raises:
            MissingError: There is no such folder, or their packages cannot be installed.
        """
        if not (self.folder / "run.py").exists():
            raise MissingError(
                f"the side-by-side benchmark (run.py, host.py, peers/) is not at {self.folder}: name its folder with --bench, "
                "or leave the parts out that need it (--only)"
            )

    async def ready(self) -> None:
        """Install the peers' packages unless they are."""
        self.check()
        if (NODE_DIR / ".done").exists():
            return
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", "import envs; envs.ensure()", cwd=self.folder, stdout=sys.stderr
        )
        if await process.wait():
            raise MissingError(f"envs.py in {self.folder} could not install the peers; it says why above")

    def command(self, peer: str, mode: str, dsn: str, action: str, count: int) -> tuple[list[str], dict[str, str]]:
        """What to run, and its environment."""
        env = {**os.environ, "BENCH_PROJECT": str(ROOT), "NODE_PATH": str(NODE_DIR / "node_modules")}
        if peer.startswith("graphile"):
            here = ROOT / "benchmarks" / "suite" / peer
            name = os.path.relpath(here, self.folder / "peers") if peer == KEYED else peer
            program = [str(NODE_DIR / "node_modules" / ".bin" / "node"), str(self.folder / "host.js")]
        else:
            name, program = peer, [sys.executable, str(self.folder / "host.py")]
        return [*program, name, mode, dsn, action, str(count)], env

    async def call(self, peer: str, mode: str, dsn: str, action: str, count: int = 0) -> dict[str, Any]:
        """One action and its one answer."""
        async with self.host(peer, mode, dsn, action, count) as host, asyncio.timeout(LONGEST):
            return await host.line()

    @contextlib.asynccontextmanager
    async def host(self, peer: str, mode: str, dsn: str, action: str, count: int = 0) -> AsyncIterator["Host"]:
        """A process for one action, which ends with the block."""
        await self.ready()
        command, env = self.command(peer, mode, dsn, action, count)
        process = await asyncio.create_subprocess_exec(
            *command, env=env, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
        )
        host = Host(f"{peer}:{mode} {action}", process)
        try:
            yield host
        finally:
            await host.finish()

    async def rate(self, peer: str, mode: str, dsn: str, action: str, count: int) -> dict[str, float]:
        """Jobs a second of ``single`` or ``bulk``."""
        told = await self.call(peer, mode, dsn, action, count)
        return {"rate": count / told["seconds"], "cpu_client": told["cpu"] / count * 1e6}

    async def drain(self, peer: str, mode: str, dsn: str, jobs: int, *, longest: float = LONGEST) -> dict[str, float]:
        """Jobs a second from the first handler call to the last of so many jobs, or until that takes too long."""
        async with self.host(peer, mode, dsn, "work") as host:
            await host.line()
            told: dict[str, Any] = {"n": 0}
            began = time.monotonic()
            host.go()
            while told["n"] < jobs and time.monotonic() < began + longest:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(1):
                        told = await host.line()
            if not told["n"]:
                raise RuntimeError(f"{host.name}: no job began within {longest:g} s")
            cpu = machine.cpu_of(host.process.pid) - told["cpu0"]
            return {
                "rate": told["n"] / (told["t"] - told["first"]),
                "jobs": told["n"],
                "cpu_worker": cpu / told["n"] * 1e6,
            }


class Host:
    """A running host."""

    def __init__(self, name: str, process: asyncio.subprocess.Process) -> None:
        self.name = name
        self.process = process

    async def line(self) -> dict[str, Any]:
        """The next answer; other output is passed over."""
        assert self.process.stdout is not None
        while True:
            text = await self.process.stdout.readline()
            if not text:
                raise RuntimeError(f"{self.name} ended with {await self.process.wait()}")
            if text.startswith(b"{"):
                answer: dict[str, Any] = json.loads(text)
                return answer

    def go(self) -> None:
        """Have ``work`` begin."""
        assert self.process.stdin is not None
        self.process.stdin.write(b"go\n")

    async def finish(self) -> None:
        """End it in order, or else by force."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        try:
            async with asyncio.timeout(20):
                await self.process.communicate()
        except TimeoutError:
            self.process.kill()
            await self.process.wait()


async def unfinished(dsn: str) -> int:
    """How many jobs the queue holds."""
    connection = await asyncpg.connect(dsn)
    try:
        count: int = await connection.fetchval("select count(*) from graphile_worker._private_jobs")
        return count
    finally:
        await connection.close()
