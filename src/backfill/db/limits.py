"""How long anything that is sent to the database may take: every limit has its name here, and errors say it.

A limit has two sides. The server ends a statement that takes too long (``statement_timeout``), which frees what it holds. The
client waits a little longer than that: an answer that has not come by then will not come, so the connection is given up. The
client's side alone notices a peer that is gone without a word.

Beside them the operating systems watch the connection itself: see ``TCP``.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

GRACE: Final = 3.0  # seconds that the client waits longer than the server


@dataclass(frozen=True, slots=True)
class Limit:
    """How long each statement of one purpose may take.

    Attributes:
        name: What errors call it.
        seconds: The server ends the statement after so long.
        lock_seconds: The server ends it when it has waited so long for one lock; None = as long as for the rest.
        by_server: Whether the server knows of it; else only the client does, and waits no longer than ``seconds``. For
            connections that users' statements share, which may set limits of their own.
    """

    name: str
    seconds: float
    lock_seconds: float | None = None
    by_server: bool = True

    @property
    def client_seconds(self) -> float:
        """The client gives the connection up after so long without an answer."""
        return self.seconds + GRACE if self.by_server else self.seconds

    @property
    def shown(self) -> str:
        """The server's side, for errors."""
        lock = "" if self.lock_seconds is None else f", {self.lock_seconds:g} s for a lock"
        return f"{self.seconds:g} s{lock}"

    def settings(self) -> dict[str, str]:
        """The server's side, as settings of a session or a transaction."""
        if not self.by_server:
            return {}
        waits = {} if self.lock_seconds is None else {"lock_timeout": f"{self.lock_seconds * 1000:.0f}ms"}
        return {"statement_timeout": f"{self.seconds * 1000:.0f}ms", **waits}


CLAIM: Final = Limit("claim", 15.0)
RELEASE: Final = Limit("release", 30.0, lock_seconds=0.2)  # no release waits for somebody's open transaction
LISTEN: Final = Limit("listen", 5.0)
MAINTENANCE: Final = Limit("maintenance", 60.0)
CALL: Final = Limit("client call", 60.0, by_server=False)

CONNECT: Final = 10.0  # seconds for an attempt to connect, sign-in included
CONNECT_EACH: Final = 5.0  # seconds for each host when the URL names several
ACQUIRE: Final = 60.0  # seconds that a call waits for a connection of its pool
START: Final = 30.0  # seconds that a worker waits at its start for a server that says "not yet"

_USER_TIMEOUT: Final = 10.0  # seconds that sent bytes may stay unacknowledged
_IDLE: Final = 10  # seconds of silence before the peer is asked whether it is there
_BETWEEN: Final = 5  # seconds between such questions
_QUESTIONS: Final = 3  # unanswered questions that end the connection


@dataclass(frozen=True, slots=True)
class Tcp:
    """How the operating systems at both ends find out that the other is gone.

    Keepalives find it on an idle connection. They do not run while sent bytes are unacknowledged, where by default a quarter of
    an hour passes: that is what ``user_timeout`` is for. The server needs both for the locks and the transactions of a client
    whose machine or network has died.

    Attributes:
        idle: Seconds of silence before the peer is asked whether it is there.
        interval: Seconds between such questions.
        count: Unanswered questions that end the connection.
        user_timeout: Seconds that sent bytes may stay unacknowledged.
        check_interval: Seconds between the server's looks, while a statement runs, whether its client is still connected.
    """

    idle: int
    interval: int
    count: int
    user_timeout: float
    check_interval: float

    def settings(self) -> Mapping[str, str]:
        """The server's side. Over a unix socket the first four change nothing, and 0 is shown."""
        return {
            "tcp_keepalives_idle": str(self.idle),
            "tcp_keepalives_interval": str(self.interval),
            "tcp_keepalives_count": str(self.count),
            "tcp_user_timeout": f"{self.user_timeout * 1000:.0f}",
            CHECK_INTERVAL: f"{self.check_interval * 1000:.0f}ms",
        }


CHECK_INTERVAL: Final = "client_connection_check_interval"
TCP: Final = Tcp(_IDLE, _BETWEEN, _QUESTIONS, _USER_TIMEOUT, check_interval=2.0)
