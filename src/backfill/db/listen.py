"""One connection that listens, and the proof that it does.

A LISTEN can be dead without an error: the peer is gone and no packet says so, a pooler has handed the session on, or a
failover has left us on a server that nobody writes to. So hearing is proven, not assumed. States:

* **down**: no connection. The next attempt waits 0.1 s, 0.2 s, 0.4 s … up to 10 s, each times a random 0.5 to 1, so that
  a fleet does not come back all at once.
* **unproven**: connected, LISTEN sent. The proof: ``pg_listening_channels()`` names every channel, and a NOTIFY with a
  random payload, sent on this connection to a channel of its own, comes back in time.
* **proven**: up, until the connection ends or the proof, repeated every ``check_interval``, fails. Then it is down.
* **hopeless**: a connection pooler is in between, where LISTEN is of no use: in transaction mode it belongs to a session of the
  server that others use in turn, and may even seem to work. Nothing is tried any more.

A notification sent while it was not proven may be lost, so on each way up ``on_up`` is called for the caller to look for
itself. Polling must never depend on this class alone.
"""

import asyncio
import contextlib
import logging
import random
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any, Final

from backfill.db.errors import DRIVER_ERRORS
from backfill.db.limits import LISTEN
from backfill.db.session import Session
from backfill.errors import DatabaseError
from backfill.sql import text

logger = logging.getLogger(__name__)

_FIRST_PAUSE: Final = 0.1  # seconds
_LONGEST_PAUSE: Final = 10.0


class Listener:
    """Listens on some channels through a connection of its own, for as long as it is open.

    Attributes:
        hopeless: Whether it has given up, since there is a pooler in between.
        proven: Whether notifications are known to arrive now.
        connected_count: How often it came up, the first time included.
    """

    def __init__(
        self,
        connect: Callable[[], Awaitable[Session]],
        channels: Sequence[str],
        on_notify: Callable[[str, str], None],
        *,
        send: Callable[[str, str], Awaitable[None]] | None = None,
        on_up: Callable[[], None] | None = None,
        check_interval: float = 30.0,
        check_timeout: float = LISTEN.seconds,
    ) -> None:
        """Prepare it; ``start`` begins.

        Args:
            connect: Makes a new connection that this object then owns.
            channels: The channels to listen on.
            on_notify: Called with channel and payload of each notification. It must not block.
            send: Sends a notification with that channel and payload by the way that those of others come, where that is not the
                connection's own: then one of these has to arrive as well before it counts as proven.
            on_up: Called each time the connection has been proven anew.
            check_interval: Seconds between proofs.
            check_timeout: Seconds that a proof may take.
        """
        self.proven = False
        self.hopeless = False
        self.connected_count = 0
        self._connect = connect
        self._send = send
        self._channels = tuple(channels)
        self._on_notify = on_notify
        self._on_up = on_up
        self._check_interval = check_interval
        self._check_timeout = check_timeout
        self._own_channel = f"backfill:listen:{secrets.token_hex(9)}"
        self._echo: asyncio.Future[None] | None = None
        self._expected = ""
        self._became_proven = asyncio.Event()
        self._stirred = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin to listen in the background; returns at once. See ``wait_proven``."""
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name="backfill-listen")

    async def wait_proven(self) -> None:
        """Wait until it is proven; return at once if it is."""
        await self._became_proven.wait()

    def doubt(self) -> None:
        """Prove it again at once: another connection to the same server has been lost."""
        self._stirred.set()

    async def close(self) -> None:
        """Stop listening and close the connection. Safe to call twice, and before ``start``."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait([task])

    async def _run(self) -> None:
        failures = 0
        while True:
            came_up = self.connected_count
            try:
                await self._hold(await self._connect())
            except _HopelessError as error:
                self.hopeless = True
                logger.warning("%s", error)
                return
            except (DatabaseError, *DRIVER_ERRORS) as error:
                log = logger.warning if self.connected_count > came_up or failures == 0 else logger.debug
                log("LISTEN is down, polling goes on; will connect again: %s", str(error) or type(error).__name__)
            except Exception:
                logger.exception("LISTEN failed in an unforeseen way; will connect again")
            failures = 0 if self.connected_count > came_up else failures + 1
            await asyncio.sleep(_pause(failures))

    async def _hold(self, connection: Session) -> None:
        """Listen on the connection until it ends; always raises, and always closes it."""
        ended = asyncio.Event()
        connection.add_termination_listener(lambda _: self._lost(ended))
        try:
            if connection.has_pooler:
                raise _HopelessError(
                    "notifications do not come through a connection pooler: looking for jobs by polling alone. To be woken at"
                    " once, give a direct address to listen at: --listen-url, BACKFILL_LISTEN_URL or WorkerConfig.listen_url"
                )
            async with asyncio.timeout(self._check_timeout):
                for channel in (*self._channels, self._own_channel):
                    await connection.add_listener(channel, self._heard)
            await self._prove(connection)
            await self._prove_others()
            self._up()
            while True:
                # Not wait_for, which on Python 3.11 loses a cancellation that comes as the event is set.
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._check_interval):
                        await self._stirred.wait()
                self._stirred.clear()
                if ended.is_set():
                    raise DatabaseError("the server closed the connection that listens")
                await self._prove(connection)
        finally:
            self._down()
            await connection.leave()

    async def _prove(self, connection: Session) -> None:
        """Return if notifications arrive on the connection.

        Raises:
            DatabaseError: They do not.
        """
        async with self._awaited("a notification did not come back") as payload:
            heard = await connection.fetchrow(text("prove_listen", ""), self._own_channel, payload)
            if heard is None or heard["read_only"]:
                raise DatabaseError("the server takes no writes: it is not, or not any more, the primary")
            deaf = {*self._channels, self._own_channel} - set(heard["channels"])
            if deaf:
                raise DatabaseError(
                    f"the session does not listen on {', '.join(sorted(deaf))}: a pooler in transaction mode cannot"
                    " carry LISTEN; give the worker a direct address",
                )

    async def _prove_others(self) -> None:
        """Return if notifications arrive that are sent where those of others are.

        Raises:
            DatabaseError: They do not.
        """
        if self._send is not None:
            lost = "a notification sent through the database URL did not arrive; does listen_url lead to the same database?"
            async with self._awaited(lost) as payload:
                await self._send(self._own_channel, payload)

    @contextlib.asynccontextmanager
    async def _awaited(self, lost: str) -> AsyncIterator[str]:
        """A payload to send in the block, which ends when it has come back.

        Raises:
            DatabaseError: It took too long; the message begins with ``lost``.
        """
        self._expected = secrets.token_hex(8)
        self._echo = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(self._check_timeout):
                yield self._expected
                await self._echo
        except TimeoutError as error:
            raise DatabaseError(f"{lost} (waited {self._check_timeout:g} s, limit {LISTEN.name})") from error
        finally:
            self._echo = None

    def _heard(self, _connection: Any, _pid: int, channel: str, payload: Any) -> None:
        if channel != self._own_channel:
            self._on_notify(channel, str(payload))
        elif payload == self._expected and self._echo is not None and not self._echo.done():
            self._echo.set_result(None)

    def _up(self) -> None:
        self.proven = True
        self.connected_count += 1
        if self.connected_count > 1:
            logger.info("LISTEN is up again")
        self._became_proven.set()
        if self._on_up is not None:
            self._on_up()

    def _down(self) -> None:
        self.proven = False
        self._became_proven.clear()

    def _lost(self, ended: asyncio.Event) -> None:
        self._down()
        ended.set()
        self._stirred.set()


def _pause(failures: int) -> float:
    """Seconds to wait after that many attempts in a row that did not come up."""
    longest: float = min(_LONGEST_PAUSE, _FIRST_PAUSE * 2 ** min(failures, 10))
    return longest * random.uniform(0.5, 1.0)  # noqa: S311 - no secret


class _HopelessError(Exception):
    """Nothing can be heard here, now or later."""
