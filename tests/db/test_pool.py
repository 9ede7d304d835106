import asyncio
import json
import socket
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, quote, urlsplit

import pytest

from backfill.db import WORKER_SETTINGS, Limit, connect, open_pool, target
from backfill.errors import ConfigurationError, DatabaseError

if TYPE_CHECKING:
    from tests.conftest import Database

SECRET = "s3cr3t-p4ss"


def with_user(dsn: str, user: str, password: str) -> str:
    parts = urlsplit(dsn)
    host = parts.netloc.rpartition("@")[2]
    return parts._replace(netloc=f"{user}:{quote(password)}@{host}").geturl()


@pytest.fixture
def deaf_port() -> Iterator[int]:
    """A port where nobody listens, for as long as the test runs."""
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        yield holder.getsockname()[1]


async def test_a_connection_has_the_settings_given(empty_db: "Database") -> None:
    connection = await connect(empty_db.dsn, settings=WORKER_SETTINGS)
    try:
        for name, value in WORKER_SETTINGS.items():
            assert await connection.fetchval(f"show {name}") == value
        assert await connection.fetchval("show application_name") == "backfill"
        await connection.reset()
        assert await connection.fetchval("show plan_cache_mode") == "force_generic_plan"
    finally:
        await connection.close()


async def test_a_pools_connections_have_the_settings_given(empty_db: "Database") -> None:
    pool = await open_pool(empty_db.dsn, min_size=0, max_size=2, settings={"application_name": "mine", "jit": "off"})
    async with pool:
        for _ in range(2):
            async with pool.acquire() as connection:
                assert await connection.fetchval("show application_name") == "mine"
                assert await connection.fetchval("show jit") == "off"
        assert (pool.get_min_size(), pool.get_max_size()) == (0, 2)


async def test_codecs_of_the_pool_change_no_payload_that_travels_as_text(empty_db: "Database") -> None:
    async with await open_pool(empty_db.dsn) as pool, pool.acquire() as connection:
        await connection.set_type_codec("json", encoder=lambda _: '"encoded"', decoder=json.loads, schema="pg_catalog")
        payload = '{"a":  1e400000}'
        assert await connection.fetchval("select ($1::text::json)::text", payload) == payload


async def test_a_limit_ends_a_statement(empty_db: "Database") -> None:
    connection = await connect(empty_db.dsn, limit=Limit("test", 0.05, by_server=False))
    try:
        with pytest.raises(TimeoutError):
            await connection.fetchval("select pg_sleep(60)")
    finally:
        await connection.close()


@pytest.mark.parametrize("opener", [connect, open_pool])
async def test_a_refused_connection_says_where_and_what_to_do(opener: Any, deaf_port: int) -> None:
    with pytest.raises(DatabaseError) as caught:
        await opener(f"postgresql://someone:{SECRET}@127.0.0.1:{deaf_port}/jobs")
    said = str(caught.value)
    assert f"cannot connect to database 'jobs' at 127.0.0.1:{deaf_port}" in said
    assert "is PostgreSQL running there" in said
    assert SECRET not in said


@pytest.mark.parametrize("opener", [connect, open_pool])
async def test_a_missing_database_says_so(opener: Any, empty_db: "Database") -> None:
    parts = urlsplit(empty_db.dsn)
    with pytest.raises(DatabaseError, match=r"database 'no such' at .* does not exist .*create the database first"):
        await opener(parts._replace(path="/no%20such").geturl())


async def test_a_missing_role_says_so_without_the_password(empty_db: "Database") -> None:
    with pytest.raises(DatabaseError, match="check the user name and the password") as caught:
        await connect(with_user(empty_db.dsn, "nobody-of-that-name", SECRET))
    assert SECRET not in str(caught.value)


async def test_a_missing_socket_says_so() -> None:
    with pytest.raises(DatabaseError, match=r"database 'x' at /nowhere/at/all: .*the socket's folder"):
        await connect("postgresql:///x?host=/nowhere/at/all")


async def test_a_host_that_does_not_resolve_says_so() -> None:
    with pytest.raises(DatabaseError, match=r"no-such-host\.invalid"):
        await connect("postgresql://no-such-host.invalid/x")


async def test_a_server_that_does_not_answer_says_so() -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        url = f"postgresql://someone@127.0.0.1:{silent.getsockname()[1]}/x?sslmode=disable"
        with pytest.raises(DatabaseError, match="no answer in time"):
            await connect(url, connect_timeout=0.05)


async def test_a_server_that_does_not_answer_does_not_take_the_time_of_the_next(empty_db: "Database") -> None:
    parts = urlsplit(empty_db.dsn)
    options = parse_qs(parts.query)
    host = options["host"][0] if "host" in options else str(parts.hostname)
    port = options["port"][0] if "port" in options else str(parts.port or 5432)
    user = parts.netloc.rpartition("@")[0]
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        silent_port = silent.getsockname()[1]
        url = f"postgresql://{user}@{parts.path}?host=127.0.0.1,{quote(host)}&port={silent_port},{port}&sslmode=disable"
        connection = await connect(url, connect_timeout=0.5)
        assert await connection.fetchval("select 1") == 1
        await connection.close()


@pytest.mark.parametrize(
    "url",
    [
        f"postgresql://someone:{SECRET}/x@localhost/x",
        f"postgresql+asyncpg://someone:{SECRET}@localhost/x",
        f"postgresql://someone:{SECRET}@localhost:{SECRET}/x",
        f"{SECRET}",
    ],
)
@pytest.mark.parametrize("opener", [connect, open_pool])
async def test_a_url_that_cannot_be_read_is_not_quoted(opener: Any, url: str) -> None:
    with pytest.raises(ConfigurationError, match="write postgresql://user:password@host:port/database") as caught:
        await opener(url)
    assert SECRET not in str(caught.value)
    assert caught.value.__suppress_context__


@pytest.mark.parametrize(("smallest", "largest"), [(3, 2), (-1, 2), (0, 0)])
async def test_sizes_that_do_not_fit_are_refused(smallest: int, largest: int) -> None:
    with pytest.raises(ConfigurationError, match=f"a pool of {smallest} to {largest} connections"):
        await open_pool("postgresql://localhost/x", min_size=smallest, max_size=largest)


@pytest.mark.parametrize(
    ("url", "where"),
    [
        (f"postgresql://u:{SECRET}@db.example:6000/jobs", "database 'jobs' at db.example:6000"),
        (f"postgresql://u:{SECRET}@db.example", "the default database at db.example"),
        (f"postgresql://u:{SECRET}@/jobs?host=/run/pg&port=5433", "database 'jobs' at /run/pg"),
        ("postgresql:///jobs", "database 'jobs' at the default host"),
        ("postgresql://h:x/y", "the database of the database URL"),
    ],
)
def test_where_a_url_leads_is_told_without_user_and_password(url: str, where: str) -> None:
    assert target(url) == where


async def test_many_can_wait_for_a_small_pool(empty_db: "Database") -> None:
    async with await open_pool(empty_db.dsn, max_size=1) as pool:
        assert sum(await asyncio.gather(*(pool.fetchval("select 1") for _ in range(20)))) == 20
