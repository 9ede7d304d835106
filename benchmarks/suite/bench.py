"""A run of the suite: its server, its databases, and rounds in which cases take turns."""

import os
import sys
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, Self

import asyncpg
from benchmarks.suite import machine
from benchmarks.suite.hosts import Peers

from backfill import BackfillClient
from backfill.embedded import EmbeddedServer
from backfill.embedded.binaries import DEBIAN

ROOT = Path(__file__).resolve().parents[2]
# Those of the side-by-side benchmark (its services.py); all else is PostgreSQL's default.
SETTINGS = {
    "max_connections": "300",
    "shared_buffers": "1GB",
    "max_wal_size": "4GB",
    "fsync": "on",
    "synchronous_commit": "on",
    "full_page_writes": "on",
    "autovacuum": "on",
}

NOISE = "noise"

Sample = Mapping[str, float]
Cases = dict[str, dict[str, list[float]]]  # case -> what was measured -> a value for each round


def tell(text: str) -> None:
    """Progress goes to stderr."""
    print(time.strftime("%H:%M:%S"), text, file=sys.stderr, flush=True)


def choose_binaries() -> None:
    """Have the embedded server take the PostgreSQL that the side-by-side benchmark takes, if there is one."""
    found = sorted(DEBIAN.glob("*/bin/postgres"))
    chosen = os.environ.get("PG_BIN") or (str(found[-1].parent) if found else "")
    if chosen:
        os.environ.setdefault("BACKFILL_PG_BIN", chosen)


class Bench:
    """The server and what parts share. An async context manager.

    Attributes:
        quick: Sizes are a tenth, and there is one round.
        rounds: How often each case is measured.
        peers: The others, where there is a side-by-side benchmark.
        options: The command line.
    """

    def __init__(self, *, quick: bool, rounds: int, peers: Peers, options: Any = None) -> None:
        self.quick = quick
        self.rounds = 1 if quick else rounds
        self.peers = peers
        self.options = options
        self._server: EmbeddedServer | None = None
        self._templates: set[str] = set()
        self._number = 0
        self._postmaster = 0

    async def __aenter__(self) -> Self:
        choose_binaries()
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._server is not None:
            self._server.stop()

    @property
    def server(self) -> EmbeddedServer:
        """The PostgreSQL server, which starts when first asked for."""
        if self._server is None:
            self._server = EmbeddedServer(temporary=True, tcp=True, settings=SETTINGS).start()
        return self._server

    def size(self, count: int) -> int:
        """So many jobs, or a tenth."""
        return max(1, count // 10) if self.quick else count

    def server_cpu(self) -> float:
        """CPU seconds of all of the server's processes so far."""
        return machine.cpu_of(self.postmaster)

    @property
    def postmaster(self) -> int:
        """The server's first process."""
        if not self._postmaster:
            self._postmaster = self.server.postmaster_pid
        return self._postmaster

    async def fresh(self, kind: str = "backfill") -> str:
        """The URL of a new database whose schema was installed by backfill, or by graphile-worker."""
        admin = await asyncpg.connect(self.server.dsn())
        try:
            template = f"template_{kind}"
            if kind not in self._templates:
                await admin.execute(f'create database "{template}"')
                if kind == "backfill":
                    async with BackfillClient(self.server.dsn(template)):
                        pass
                else:
                    await self.peers.call(kind, "default", self.server.dsn(template), "install")
                self._templates.add(kind)
            await admin.execute(f"drop database if exists measured_{self._number} with (force)")
            self._number += 1
            await admin.execute(f'create database measured_{self._number} template "{template}"')
        finally:
            await admin.close()
        return self.server.dsn(f"measured_{self._number}")

    async def in_rounds(self, cases: Mapping[str, Callable[[], Awaitable[Sample]]], rounds: int | None = None) -> Cases:
        """Measure each case once a round, forwards and backwards in turn.

        Args:
            cases: What to measure.
            rounds: How often, if not as often as all; for what does not vary.

        Returns:
            All values, with the ``noise``: how many cores other programs kept busy meanwhile.
        """
        rounds = self.rounds if rounds is None else rounds
        found: Cases = {name: {} for name in cases}
        for number in range(rounds):
            for name in list(cases)[:: -1 if number % 2 else 1]:
                others, began = self.others_cpu(), time.monotonic()
                sample = await cases[name]()
                noise = max(0.0, (self.others_cpu() - others) / (time.monotonic() - began))
                for what, value in {**sample, NOISE: noise}.items():
                    found[name].setdefault(what, []).append(value)
                shown = ", ".join(f"{what} {value:.4g}" for what, value in sample.items())
                tell(f"  {number + 1}/{rounds} {name}: {shown} (others' cores {noise:.2f})")
        return found

    def others_cpu(self) -> float:
        """CPU seconds of all that is neither this program, nor its children, nor its server."""
        return machine.busy() - machine.cpu_of(os.getpid(), self.postmaster)

    async def environment(self) -> dict[str, Any]:
        """Machine, versions and settings, to be kept with the results."""
        connection = await asyncpg.connect(self.server.dsn())
        version = await connection.fetchval("show server_version")
        await connection.close()
        return {
            **machine.description(),
            "postgresql": version.split()[0],
            "settings": SETTINGS,
            "asyncpg": asyncpg.__version__,
            "date": time.strftime("%Y-%m-%d", time.gmtime()),
        }


async def settle(dsn: str) -> None:
    """Statistics as a live table has them, and no checkpoint left from filling it."""
    connection = await asyncpg.connect(dsn)
    await connection.execute("vacuum analyze")
    await connection.execute("checkpoint")
    await connection.close()
