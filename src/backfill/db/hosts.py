"""What a database URL says about where the database is."""

from dataclasses import dataclass
from urllib.parse import parse_qs, unquote, urlsplit


@dataclass(frozen=True, slots=True)
class Host:
    """One of the servers that a URL names.

    Attributes:
        name: Its name or address, or the folder of a unix socket.
        port: Its port; None = the default.
    """

    name: str
    port: int | None

    def __str__(self) -> str:
        if self.port is None or self.name.startswith("/"):
            return self.name
        return f"[{self.name}]:{self.port}" if ":" in self.name else f"{self.name}:{self.port}"


def hosts_of(url: str) -> tuple[Host, ...]:
    """The servers that a database URL names, in its order; empty when it leaves that to the environment.

    Raises:
        ValueError: It cannot be read.
    """
    parts = urlsplit(url)
    options = _options(parts.query)
    spec = options.get("host", "")
    named = parts.netloc.partition("@")[2] if "@" in parts.netloc else parts.netloc
    if named:
        return tuple(_host(unquote(piece)) for piece in named.split(","))
    if not spec:
        return ()
    found = [_host(piece) for piece in spec.split(",")]
    ports = [int(port) for port in options["port"].split(",")] if options.get("port") else []
    if not ports:
        return tuple(found)
    if len(ports) == 1:
        ports *= len(found)
    if len(ports) != len(found):
        raise ValueError("as many ports as hosts, or one for all")
    return tuple(Host(host.name, port) for host, port in zip(found, ports, strict=True))


def target(url: str) -> str:
    """Where a database URL leads, for messages: database, host and port, never user or password."""
    try:
        parts = urlsplit(url)
        options = _options(parts.query)
        database = options.get("dbname") or options.get("database") or unquote(parts.path.lstrip("/"))
        where = ", ".join(map(str, hosts_of(url))) or "the default host"
    except ValueError:
        return "the database of the database URL"
    return f"database {database!r} at {where}" if database else f"the default database at {where}"


def asks_for_kind(url: str) -> bool:
    """Whether the URL itself says which kind of server is wanted, by ``target_session_attrs``."""
    return "target_session_attrs" in _options(urlsplit(url).query)


def _options(query: str) -> dict[str, str]:
    return {key: values[-1] for key, values in parse_qs(query).items()}


def _host(spec: str) -> Host:
    """One ``host``, ``host:port`` or ``[address]:port``.

    Raises:
        ValueError: It is none of these.
    """
    if spec.startswith("/"):
        return Host(spec, None)
    if spec.startswith("["):
        name, closed, port = spec[1:].partition("]")
        if not closed or (port and not port.startswith(":")):
            raise ValueError("an address in brackets that do not close")
        port = port[1:]
    else:
        name, _, port = spec.partition(":")
    return Host(name, int(port) if port else None)
