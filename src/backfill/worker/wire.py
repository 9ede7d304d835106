"""What a worker and the processes of its ``executor="process"`` tasks say to each other over a socket.

A message is four bytes of length, most significant first, and msgpack. The worker sends one ``Run`` at a time; the process
answers each with ``Ended``, after any number of ``Logged``.
"""

import struct
from typing import Any, Final

import msgspec

from backfill.model import Job

LENGTH: Final = struct.Struct("!I")


class Run(msgspec.Struct, frozen=True):
    """Run one job.

    Attributes:
        module: The task's module.
        name: Its qualified name in there.
        job: The job as it was claimed.
        worker_id: The worker's id.
    """

    module: str
    name: str
    job: Job
    worker_id: str


class Logged(msgspec.Struct, frozen=True, tag=True):
    """A log record of the process, for the worker's own log."""

    record: dict[str, Any]


class Ended(msgspec.Struct, frozen=True, tag=True):
    """The job's run has ended.

    Attributes:
        failed: Whether the handler raised; the rest is about its error, as in ``claimed.Failure``.
    """

    failed: bool = False
    message: str = ""
    detail: str = ""
    retryable: bool = True
    payload: str | None = None


_encode: Final = msgspec.msgpack.Encoder().encode
orders: Final = msgspec.msgpack.Decoder(Run)
reports: Final = msgspec.msgpack.Decoder(Logged | Ended)


def frame(message: Run | Logged | Ended) -> bytes:
    """The message as bytes, its length first."""
    body = _encode(message)
    return LENGTH.pack(len(body)) + body
