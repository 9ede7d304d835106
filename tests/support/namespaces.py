"""A worker on a machine of its own, as far as the network goes: three network namespaces in a row.

``worker`` - ``router`` - ``gate``. A process at the gate listens there and passes bytes on to the tests' server, which it
reaches in the machine's own network. The router drops what it would pass on while there is a partition: nobody is told.
All addresses are inside these namespaces.
"""

import contextlib
import ctypes
import os
import shutil
import socket
import subprocess
import sys
import threading
import uuid
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import parse_qs, urlsplit

import pytest

PROGRAM = "ip"
WORKER, GATE = "10.203.1.2", "10.203.2.2"
ROUTER = ("10.203.1.1", "10.203.2.1")
PORT = 5432
CLONE_NEWNET = 0x40000000


def unavailable(reason: str) -> None:
    """Skip the test; where `CI` is set it fails."""
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


def ip(*arguments: str) -> None:
    """Run the program."""
    done = subprocess.run([PROGRAM, *arguments], check=False, capture_output=True, text=True)
    if done.returncode:
        raise OSError(f"ip {' '.join(arguments)}: {done.stderr.strip()}")


class Partition:
    """A way to a database, in a `with` block, that can be interrupted without a word.

    Attributes:
        prefix: A command that runs another on the worker's side.
        dsn: The database's URL there.
    """

    def __init__(self, dsn: str) -> None:
        if os.geteuid() != 0 or sys.platform != "linux":
            unavailable("network namespaces need root on Linux")
        if shutil.which(PROGRAM) is None and shutil.which("apt-get"):
            quiet = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
            subprocess.run(["apt-get", "install", "-y", "-qq", "iproute2"], env=quiet, check=False, capture_output=True)
        if shutil.which(PROGRAM) is None:
            unavailable("network namespaces need the program ip: apt-get install iproute2")
        name = f"bf{uuid.uuid4().hex[:6]}"
        self._names = {part: f"{name}{part[0]}" for part in ("worker", "router", "gate")}
        self._links = [f"{name}{number}" for number in range(4)]
        self.prefix = (PROGRAM, "netns", "exec", self._names["worker"])
        self._server = dsn
        parts = urlsplit(dsn)
        account = f"{parts.username}:{parts.password}" if parts.password else parts.username
        self.dsn = f"{parts.scheme}://{account}@{GATE}:{PORT}{parts.path}?sslmode=disable"
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        try:
            for name in self._names.values():
                ip("netns", "add", name)
        except OSError as error:
            self._remove()
            unavailable(f"no network namespaces here: {error}")
        try:
            self._connect("worker", WORKER, ROUTER[0], self._links[:2])
            self._connect("gate", GATE, ROUTER[1], self._links[2:])
            self.heal()
            self._open_gate()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        self._remove()

    def cut(self) -> None:
        """Drop all packets from now on."""
        self._forward("0")

    def heal(self) -> None:
        """Let packets through."""
        self._forward("1")

    def _connect(self, part: str, address: str, router: str, links: list[str]) -> None:
        here, there = links
        own, middle = self._names[part], self._names["router"]
        ip("link", "add", here, "netns", own, "type", "veth", "peer", "name", there, "netns", middle)
        for name, link, at in ((own, here, address), (middle, there, router)):
            ip("-n", name, "address", "add", f"{at}/24", "dev", link)
            ip("-n", name, "link", "set", link, "up")
            ip("-n", name, "link", "set", "lo", "up")
        ip("-n", own, "route", "add", "default", "via", router)

    def _forward(self, value: str) -> None:
        write = f"echo {value} > /proc/sys/net/ipv4/ip_forward"
        done = subprocess.run(
            [PROGRAM, "netns", "exec", self._names["router"], "sh", "-c", write], check=False, capture_output=True
        )
        if done.returncode:
            unavailable(f"the network namespace's settings can't be written: {done.stderr.decode().strip()}")

    def _open_gate(self) -> None:
        command = [*self.prefix[:3], self._names["gate"], sys.executable, __file__, str(os.getpid()), self._server]
        self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
        assert self._process.stdout is not None
        with self._process.stdout as said:
            assert said.readline() == b"open\n", "the gate did not open"

    def _remove(self) -> None:
        for name in self._names.values():
            if Path(f"/run/netns/{name}").exists():
                ip("netns", "delete", name)


def connect(dsn: str) -> socket.socket:
    """A connection to the server."""
    parts = urlsplit(dsn)
    options = {name: values[-1] for name, values in parse_qs(parts.query).items()}
    host = options.get("host") or parts.hostname or "localhost"
    port = int(options.get("port") or parts.port or 5432)
    if not host.startswith("/"):
        return socket.create_connection((host, port))
    made = socket.socket(socket.AF_UNIX)
    made.connect(f"{host}/.s.PGSQL.{port}")
    return made


def pass_on(source: socket.socket, target: socket.socket) -> None:
    """Pass bytes on until one side ends."""
    with contextlib.suppress(OSError):
        while data := source.recv(1 << 16):
            target.sendall(data)
    for side in (source, target):
        with contextlib.suppress(OSError):
            side.shutdown(socket.SHUT_RDWR)


def main() -> None:
    """Listen in this process's network, and reach the server in that of the process given."""
    listening = socket.create_server((GATE, PORT))
    with Path(f"/proc/{sys.argv[1]}/ns/net").open() as home:
        if ctypes.CDLL(None, use_errno=True).setns(home.fileno(), CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "setns")
    sys.stdout.write("open\n")
    sys.stdout.flush()
    while True:
        client, _ = listening.accept()
        server = connect(sys.argv[2])
        for pair in ((client, server), (server, client)):
            threading.Thread(target=pass_on, args=pair, daemon=True).start()


if __name__ == "__main__":
    main()
