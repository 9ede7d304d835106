"""Many short-lived processes that run a coroutine of the tests, cheaply: a server with everything imported forks them.

The server is a plain process without threads and without an event loop, so a fork of it is clean. It reads a JSON line with
the arguments for each child, and writes a line when the child has begun and one when it has ended. It kills its children
when its own input ends, however the tests ended.
"""

import asyncio
import contextlib
import gc
import importlib
import json
import os
import select
import signal
import sys
import traceback
from collections.abc import Callable, Coroutine
from pathlib import Path
from types import TracebackType
from typing import Any, Self

ROOT = Path(__file__).parents[2]
Target = Callable[..., Coroutine[Any, Any, None]]


class Child:
    """A forked process.

    Attributes:
        pid: Its process id.
    """

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.ended: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    def kill(self) -> None:
        """Kill it with SIGKILL; harmless if it has just ended."""
        if not self.ended.done():
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)

    async def wait(self) -> int:
        """Wait for its end; the exit code, or the negative number of the signal that ended it."""
        return await asyncio.shield(self.ended)


class ForkServer:
    """Forks children that run `await function(**arguments)` in an `async with` block."""

    def __init__(self, function: Target, warm_up: Callable[[], None] | None = None) -> None:
        """Prepare it.

        Args:
            function: A coroutine function at the top level of a module.
            warm_up: A function there that does beforehand, once, what each child would have to do at its start.
        """
        self._targets = [_name_of(function), *([_name_of(warm_up)] if warm_up is not None else [])]
        self._begun: dict[int, asyncio.Future[Child]] = {}
        self._children: dict[int, Child] = {}
        self._count = 0

    async def __aenter__(self) -> Self:
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-c",
            "import sys; from tests.support.forks import serve; serve(*sys.argv[1:])",
            *self._targets,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), *sys.path]))},
        )
        self._reader = asyncio.create_task(self._read())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        await self._process.wait()
        await self._reader

    async def start(self, **arguments: Any) -> Child:
        """Fork a child; its arguments must have a JSON form."""
        assert self._process.stdin is not None
        self._count += 1
        begun: asyncio.Future[Child] = asyncio.get_running_loop().create_future()
        self._begun[self._count] = begun
        self._process.stdin.write(json.dumps({"number": self._count, "arguments": arguments}).encode() + b"\n")
        return await begun

    async def _read(self) -> None:
        assert self._process.stdout is not None
        async for line in self._process.stdout:
            told = json.loads(line)
            if "pid" in told:
                child = self._children[told["pid"]] = Child(told["pid"])
                self._begun.pop(told["number"]).set_result(child)
            else:
                self._children.pop(told["ended"]).ended.set_result(told["code"])


def serve(target: str, warm_up: str | None = None) -> None:
    """Be the server: fork a child for each line of stdin, until it ends."""
    function: Target = _named(target)
    if warm_up is not None:
        _named(warm_up)()
    gc.collect()
    gc.freeze()  # so that the children's collector does not copy these pages
    woken, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    children: set[int] = set()
    rest = b""
    while True:
        ready = select.select([0, woken], [], [])[0]
        if woken in ready:
            os.read(woken, 4096)
            _reap(children)
        if 0 in ready:
            data = os.read(0, 65536)
            if not data:
                for pid in children:
                    os.kill(pid, signal.SIGKILL)
                return
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                children.add(_fork(function, json.loads(line)))


def _name_of(function: Callable[..., Any]) -> str:
    return f"{function.__module__}:{function.__qualname__}"


def _named(name: str) -> Any:
    module, _, attribute = name.partition(":")
    return getattr(importlib.import_module(module), attribute)


def _fork(function: Target, asked: dict[str, Any]) -> int:
    pid = os.fork()
    if pid == 0:
        _be_child(function, asked["arguments"])
    _tell({"number": asked["number"], "pid": pid})
    return pid


def _be_child(function: Target, arguments: dict[str, Any]) -> None:
    """Run the function and exit; never returns."""
    code = 1
    try:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(2, 1)
        asyncio.run(function(**arguments))
        code = 0
    except BaseException:  # noqa: BLE001 - whatever it is, this process ends here, and its code says so
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def _reap(children: set[int]) -> None:
    while children:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid == 0:
            return
        children.discard(pid)
        _tell({"ended": pid, "code": os.waitstatus_to_exitcode(status)})


def _tell(what: dict[str, Any]) -> None:
    os.write(1, json.dumps(what).encode() + b"\n")
