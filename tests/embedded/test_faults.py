"""Whoever is killed, by SIGKILL: the others go on, the data is intact, and nothing is left behind."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import asyncpg
import pytest
from tests.embedded.conftest import User, kill, lives, query, until_process_ends, until_supervisor_ends

from backfill.embedded import EmbeddedServer, find_binaries
from backfill.embedded.account import choose_account
from backfill.embedded.supervisor import clean_environment
from backfill.errors import DatabaseError

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="only Linux ties a child's life to its parent's")


def test_the_only_user_killed_ends_the_server_and_removes_its_data(user: Callable[..., User]) -> None:
    one = user(None).wait_started()
    home = Path(one.home)
    with until_supervisor_ends(home):
        one.kill()
    assert not lives(one.postmaster)
    assert not home.exists()


def test_the_only_user_killed_leaves_kept_data(place: Path, user: Callable[..., User]) -> None:
    one = user(place / "data").wait_started()
    query(one.dsn, "create table kept ()")
    with until_supervisor_ends(place / "data"):
        one.kill()
    assert not lives(one.postmaster)
    with EmbeddedServer(place / "data") as server:
        assert query(server.dsn(), "select 'kept'::regclass::text") == "kept"


def test_one_of_two_users_killed_changes_nothing(place: Path, user: Callable[..., User]) -> None:
    starter, other = (user(place / "data", temporary=True).wait_started() for _ in range(2))
    starter.kill()
    with EmbeddedServer(place / "data") as server:  # joins, so the supervisor has had its chance to err
        assert server.postmaster_pid == starter.postmaster
    assert query(other.dsn, "select 1") == 1
    with until_supervisor_ends(place / "data"):
        other.kill()
    assert list(place.iterdir()) == []


def test_a_user_killed_while_the_data_is_made(place: Path, wrapped: Path, user: Callable[..., User]) -> None:
    reached, gate = (place / name for name in ("reached", "gate"))
    subprocess.run(["mkfifo", "-m", "666", reached, gate], check=True)
    program = wrapped / "initdb"
    program.write_text(program.read_text().replace("exec", f"echo > {reached}; cat {gate} > /dev/null\nexec"))
    one = user(place / "data", temporary=True)
    reached.read_text()
    with until_supervisor_ends(place / "data"):
        one.kill()
        gate.write_text("go")
    assert not (place / "data").exists()


@linux_only
def test_the_supervisor_killed_takes_the_server_along_and_a_start_brings_it_back(place: Path) -> None:
    with EmbeddedServer(place / "data") as server:
        query(server.dsn(), "create table kept ()")
        postmaster = server.postmaster_pid
        with until_process_ends(postmaster):
            kill(server.supervisor_pid)
        for use in (server.restart, lambda: server.postmaster_pid):
            with pytest.raises(DatabaseError, match=r"was killed.*Call start\(\)"):
                use()
        server.start()
        assert server.postmaster_pid != postmaster
        assert query(server.dsn(), "select 'kept'::regclass::text") == "kept"


@linux_only
def test_the_supervisor_killed_while_the_data_is_made(
    place: Path, wrapped: Path, user: Callable[..., User], monkeypatch: pytest.MonkeyPatch
) -> None:
    reached, gate = (place / name for name in ("reached", "gate"))
    subprocess.run(["mkfifo", "-m", "666", reached, gate], check=True)
    program = wrapped / "initdb"
    # $4 is not a folder of its own: initdb -D FOLDER. What is in it then, initdb would refuse.
    program.write_text(
        program.read_text().replace("exec", f"touch $2/junk; echo $PPID $$ > {reached}; cat {gate} > /dev/null\nexec")
    )
    one = user(place / "data")
    supervisor, initdb = map(int, reached.read_text().split())
    with until_process_ends(initdb):
        kill(supervisor)
    assert one.process.wait() == 1
    assert (place / "data/pgdata.unfinished/junk").exists()
    monkeypatch.delenv("BACKFILL_PG_BIN")
    with EmbeddedServer(place / "data") as server:
        assert query(server.dsn(), "select 1") == 1


@linux_only
def test_after_the_supervisor_was_killed_the_last_user_removes_the_data() -> None:
    with EmbeddedServer() as server:
        home = server.data_dir
        with until_process_ends(server.postmaster_pid):
            kill(server.supervisor_pid)
            server.stop()
    assert not home.exists()


def test_the_supervisor_told_to_end_stops_the_server_in_order(place: Path) -> None:
    with EmbeddedServer(place / "data") as server:
        postmaster = server.postmaster_pid
        with until_supervisor_ends(place / "data"):
            os.kill(server.supervisor_pid, signal.SIGTERM)
        assert not lives(postmaster)
        server.start()
        assert query(server.dsn(), "select 1") == 1
        assert "was not properly shut down" not in (place / "data/server.log").read_text()


def test_an_orphaned_postmaster_is_replaced(place: Path) -> None:
    with EmbeddedServer(place / "data") as server:
        query(server.dsn(), "create table kept ()")
    data = place / "data/pgdata"
    command = [f"{find_binaries()}/postgres", "-D", str(data), "-c", "listen_addresses=", "-c"]
    orphan = subprocess.Popen(
        [*command, f"unix_socket_directories={place}/data/sockets"],
        env=clean_environment(),
        stderr=subprocess.PIPE,
        cwd="/",
        **choose_account(data).popen_options(),
    )
    assert orphan.stderr is not None
    with orphan.stderr:
        assert any(b"ready to accept connections" in line for line in orphan.stderr)
        with EmbeddedServer(place / "data") as server:
            assert orphan.wait() == 0  # ended by a fast shutdown, not by force
            assert server.postmaster_pid != orphan.pid
            assert query(server.dsn(), "select 'kept'::regclass::text") == "kept"


async def connect_again(server: EmbeddedServer, lost: int) -> asyncpg.Connection:
    """Connect to the postmaster that follows `lost`."""
    while server.postmaster_pid == lost:
        pass  # the kernel delivers a signal when it likes; then each question waits until there is a new one
    connection: asyncpg.Connection = await asyncpg.connect(server.dsn())
    return connection


async def test_the_postmaster_killed_is_started_again(place: Path) -> None:
    with EmbeddedServer(place / "data") as server:
        connection = await asyncpg.connect(server.dsn())
        await connection.execute("create table kept ()")
        postmaster, supervisor = server.postmaster_pid, server.supervisor_pid
        os.kill(postmaster, signal.SIGKILL)
        again = await connect_again(server, postmaster)
        assert await again.fetchval("select 'kept'::regclass::text") == "kept"
        assert server.supervisor_pid == supervisor
        await again.close()
        connection.terminate()
    assert "database system was interrupted" in (place / "data/server.log").read_text()


@linux_only
async def test_the_postmaster_killed_while_a_backend_is_busy(place: Path) -> None:
    with EmbeddedServer(place / "data") as server:
        connection = await asyncpg.connect(server.dsn())
        watcher = await asyncpg.connect(server.dsn())
        backend, postmaster = connection.get_server_pid(), server.postmaster_pid
        # No time limit and no parent: it would compute on, and keep the data directory locked, for a long time.
        busy = asyncio.ensure_future(connection.fetchval("select count(*) from generate_series(1, 100000000000)"))
        while await watcher.fetchval("select state from pg_stat_activity where pid = $1", backend) != "active":
            pass
        watcher.terminate()
        with until_process_ends(backend):
            os.kill(postmaster, signal.SIGKILL)
        with pytest.raises((asyncpg.PostgresError, OSError)):
            await busy
        connection.terminate()
        again = await connect_again(server, postmaster)
        await again.close()


def test_a_postmaster_that_always_ends_is_given_up(place: Path) -> None:
    with EmbeddedServer(place / "data") as server:

        def kill_always() -> None:
            while True:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(server.postmaster_pid, signal.SIGKILL)

        with pytest.raises(DatabaseError, match="ended 5 times within a second of its start"):
            kill_always()
        with pytest.raises(DatabaseError, match="ended 5 times"):
            server.restart()
    with EmbeddedServer(place / "data") as server:
        assert query(server.dsn(), "select 1") == 1


@pytest.mark.parametrize("content", ["all", "empty"])
def test_stale_lock_files_that_name_a_foreign_process(content: str, place: Path) -> None:
    with EmbeddedServer(place / "data") as server:
        postmaster = server.postmaster_pid
        sockets = Path(parse_qs(urlsplit(server.dsn()).query)["host"][0])
        locks = {
            path: path.read_text() for path in (place / "data/pgdata/postmaster.pid", sockets / ".s.PGSQL.5432.lock")
        }
    foreigner = subprocess.Popen(["sleep", "1000"])
    try:
        for path, text in locks.items():
            assert text.startswith(f"{postmaster}\n")
            path.write_text(text.replace(str(postmaster), str(foreigner.pid), 1) if content == "all" else "")
        with EmbeddedServer(place / "data") as server:
            assert server.postmaster_pid != foreigner.pid
            assert query(server.dsn(), "select 1") == 1
        assert foreigner.poll() is None
    finally:
        foreigner.kill()
        foreigner.wait()


def test_a_damaged_data_directory_is_reported_and_not_made_anew(place: Path) -> None:
    with EmbeddedServer(place / "data"):
        pass
    control = place / "data/pgdata/global/pg_control"
    control.rename(control.with_name("lost"))
    with pytest.raises(DatabaseError, match=r"pg_control"):
        EmbeddedServer(place / "data").start()
    control.with_name("lost").rename(control)
    with EmbeddedServer(place / "data") as server:
        assert query(server.dsn(), "select 1") == 1


def test_a_folder_deleted_by_hand_stops_nobody(place: Path) -> None:
    with EmbeddedServer(place / "data", temporary=True) as server:
        postmaster = server.postmaster_pid
        with until_supervisor_ends(place / "data"):
            (place / "data").rename(place / "moved")
            server.stop()
    assert not lives(postmaster)
