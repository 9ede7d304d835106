"""Starting, sharing, restarting and leaving a server, without violence."""

import asyncio
import contextlib
import fcntl
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

import asyncpg
import pytest
from tests.embedded.conftest import User, lives, query, until_supervisor_ends, wait_until_waited_for

from backfill.embedded import EmbeddedServer
from backfill.errors import ConfigurationError, DatabaseError


def test_a_throw_away_server_answers_and_leaves_nothing() -> None:
    with EmbeddedServer() as server:
        assert query(server.dsn(), "select 1") == 1
        home, pids = server.data_dir, (server.postmaster_pid, server.supervisor_pid)
        assert home.is_dir()
    assert not home.exists()
    assert not any(lives(pid) for pid in pids)


def test_it_can_be_started_again_after_a_stop() -> None:
    server = EmbeddedServer()
    homes = set()
    for _ in range(2):
        with server:
            assert query(server.dsn(), "select 1") == 1
            homes.add(server.data_dir)
    assert len(homes) == 2
    server.stop()


def test_starting_twice_is_starting_once() -> None:
    with EmbeddedServer() as server:
        pid = server.postmaster_pid
        assert server.start().postmaster_pid == pid


def test_kept_data_is_there_the_next_time(place: Path) -> None:
    with EmbeddedServer(place / "data") as server:
        query(server.dsn(), "create table kept (x int)", "insert into kept values (7)")
        pid = server.postmaster_pid
    assert not lives(pid)
    with EmbeddedServer(place / "data") as server:
        assert query(server.dsn(), "select x from kept") == 7
        assert query(server.dsn(), "show fsync") == "on"


def test_a_given_folder_can_be_temporary(place: Path) -> None:
    with EmbeddedServer(place / "data", temporary=True) as server:
        assert query(server.dsn(), "show fsync") == "off"
    assert not (place / "data").exists()


def test_processes_share_it_until_the_last_one_leaves(place: Path, user: Callable[..., User]) -> None:
    first, second = (user(place / "data").wait_started() for _ in range(2))
    with EmbeddedServer(place / "data") as server:
        assert {server.postmaster_pid} == {first.postmaster, second.postmaster}
        first.leave()
        assert query(server.dsn(), "select 1") == 1
    assert query(second.dsn, "select 1") == 1
    second.leave()
    assert not lives(second.postmaster)


def test_the_starter_may_leave_first(place: Path, user: Callable[..., User]) -> None:
    with EmbeddedServer(place / "data") as server:
        other = user(place / "data").wait_started()
        pid = server.postmaster_pid
    assert query(other.dsn, "select 1") == 1
    assert other.postmaster == pid


def test_a_forked_child_keeps_it_running(place: Path) -> None:
    # Forking a process with threads is deprecated, and pytest has threads: a fresh interpreter forks here.
    script = f"""
import os
from pathlib import Path
from backfill.embedded import EmbeddedServer
server = EmbeddedServer(Path({str(place / "data")!r})).start()
told, tell = os.pipe()
if os.fork() == 0:
    os.close(tell)
    os.read(told, 1)
    print(server.postmaster_pid, flush=True)
    os._exit(0)
print(server.postmaster_pid, flush=True)
server.stop()
os.close(tell)
os.wait()
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    parent, child = done.stdout.split()
    assert parent == child


def test_eight_processes_at_once_get_one_server(place: Path, user: Callable[..., User]) -> None:
    for _ in range(2):
        users = [user(place / "data", temporary=True) for _ in range(8)]
        assert len({one.wait_started().postmaster for one in users}) == 1
        for one in users:
            one.leave(wait=False)
        assert [one.process.wait() for one in users] == [0] * 8
        assert not lives(users[0].postmaster)
        assert list(place.iterdir()) == []


def test_starts_and_stops_race_with_the_removal_of_the_data(place: Path) -> None:
    def come_and_go() -> int:
        answers = 0
        for _ in range(6):
            with EmbeddedServer(place / "data", temporary=True) as server:
                answers += query(server.dsn(), "select 1")
        return answers

    async def race() -> list[int]:
        return await asyncio.gather(*(asyncio.to_thread(come_and_go) for _ in range(3)))

    assert asyncio.run(race()) == [6, 6, 6]
    assert list(place.iterdir()) == []


@contextlib.contextmanager
def locked(path: Path) -> Iterator[int]:
    """Hold a lock of a server's folder, in the place of another process."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield file.fileno()


def test_starters_take_turns(place: Path, user: Callable[..., User]) -> None:
    home = place / "data"
    home.mkdir(mode=0o711)
    with locked(home / "start.lock") as lock:
        one = user(home)
        wait_until_waited_for(lock)
        assert [path.name for path in home.iterdir()] == ["start.lock"]
    assert query(one.wait_started().dsn, "select 1") == 1


def test_who_waited_for_a_folder_that_was_removed_begins_again(place: Path, user: Callable[..., User]) -> None:
    home = place / "data"
    home.mkdir(mode=0o711)
    (home / "start.lock").touch()
    with locked(home / "users.lock") as lock:  # as a supervisor does while it stops the server
        one = user(home)
        wait_until_waited_for(lock)
        home.rename(place / "removed")
    one.wait_started()
    assert query(one.dsn, "select 1") == 1
    with EmbeddedServer(home) as server:
        assert server.postmaster_pid == one.postmaster
    assert {path.name for path in (place / "removed").iterdir()} == {"start.lock", "users.lock"}


def test_a_start_after_the_folder_was_deleted_begins_again(place: Path) -> None:
    with EmbeddedServer(place / "data", temporary=True) as server:
        with until_supervisor_ends(place / "data"):
            (place / "data").rename(place / "moved")
            assert server.start().data_dir == place / "data"
        # The end of the old server, which had no users any more, took nothing of the new one along.
        assert query(server.dsn(), "select 1") == 1
        assert (place / "data/pgdata").is_dir()


def test_a_python_that_is_gone_is_an_error_and_no_endless_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/nonexistent/python")
    with pytest.raises(FileNotFoundError, match="python"):
        EmbeddedServer().start()


def test_settings_reach_the_server() -> None:
    with EmbeddedServer(settings={"max_connections": "17", "fsync": "on"}) as server:
        assert query(server.dsn(), "show max_connections") == "17"
        assert query(server.dsn(), "show fsync") == "on"


def test_a_running_server_with_other_settings_is_refused(place: Path) -> None:
    with EmbeddedServer(place / "data", settings={"max_connections": "17"}) as server:
        with EmbeddedServer(place / "data", settings={"max_connections": "17"}), EmbeddedServer(place / "data"):
            pass
        with pytest.raises(ConfigurationError, match=r"max_connections = 17, not 18"):
            EmbeddedServer(place / "data", settings={"max_connections": "18"}).start()
        with pytest.raises(ConfigurationError, match=r"work_mem = its default, not 8MB"):
            EmbeddedServer(place / "data", settings={"work_mem": "8MB"}).start()
        with pytest.raises(ConfigurationError, match="without TCP"):
            EmbeddedServer(place / "data", tcp=True).start()
        assert query(server.dsn(), "select 1") == 1


@pytest.mark.parametrize("name", ["port", "listen_addresses", "no name", "x=y", ""])
def test_settings_that_it_cannot_take(name: str) -> None:
    with pytest.raises(ConfigurationError, match="can't be given"):
        EmbeddedServer(settings={name: "1"})


def test_a_server_that_cannot_start_says_why_and_leaves_nothing(place: Path) -> None:
    with pytest.raises(DatabaseError, match='unrecognized configuration parameter "no_such_setting"'):
        EmbeddedServer(place / "data", settings={"no_such_setting": "1"}, temporary=True).start()
    assert list(place.iterdir()) == []
    with EmbeddedServer(place / "data") as server:
        assert query(server.dsn(), "select 1") == 1


@pytest.mark.parametrize("mode", ["fast", "immediate"])
def test_restart_replaces_the_postmaster_under_all_its_users(
    mode: Literal["fast", "immediate"], place: Path, user: Callable[..., User]
) -> None:
    other = user(place / "data").wait_started()
    with EmbeddedServer(place / "data") as server:
        query(server.dsn(), "create table t (x int)", "insert into t values (1)")

        async def restart() -> str:
            connection = await asyncpg.connect(server.dsn())
            await asyncio.to_thread(server.restart, mode)
            with pytest.raises((asyncpg.PostgresConnectionError, asyncpg.AdminShutdownError, asyncpg.InterfaceError)):
                await connection.fetchval("select 1")
            connection.terminate()
            return (server.data_dir / "server.log").read_text()

        log = asyncio.run(restart())
        assert ("was not properly shut down" in log) == (mode == "immediate")
        assert not lives(other.postmaster)
        assert server.postmaster_pid != other.postmaster
        assert server.supervisor_pid == other.supervisor
        assert query(other.dsn, "select x from t") == 1


def test_dsn_quotes_the_name_of_a_database() -> None:
    name = 'a b/ü?&"%'
    quoted = '"' + name.replace('"', '""') + '"'
    with EmbeddedServer() as server:
        query(server.dsn(), f"create database {quoted}")
        assert query(server.dsn(name), "select current_database()") == name


def test_without_tcp_no_port_is_open() -> None:
    with EmbeddedServer() as server:
        assert query(server.dsn(), "show listen_addresses") == ""
        assert query(server.dsn(), "select inet_server_addr()") is None


def test_tcp_is_on_the_loopback_and_wants_the_password(place: Path) -> None:
    with EmbeddedServer(place / "data", tcp=True) as server, EmbeddedServer(place / "data") as local:
        assert str(query(server.dsn(), "select inet_server_addr()")) == "127.0.0.1"
        assert query(server.dsn(), "show listen_addresses") == "127.0.0.1"
        address = urlsplit(server.dsn())
        for wrong in (f"postgres@127.0.0.1:{address.port}", f"postgres:wrong@127.0.0.1:{address.port}"):
            with pytest.raises(asyncpg.PostgresError, match="password"):
                query(f"postgresql://{wrong}/postgres", "select 1")
        stored = "select rolpassword from pg_authid where rolname = 'postgres'"
        assert query(local.dsn(), stored).startswith("SCRAM-SHA-256$")
        assert query(local.dsn(), "select inet_server_addr()") is None
        server.restart()
        assert query(server.dsn(), "select 1") == 1
    with EmbeddedServer(place / "data", tcp=True) as server:
        assert query(server.dsn(), "select 1") == 1


def test_a_path_too_long_for_a_socket_gets_a_short_one(place: Path) -> None:
    home = place / ("long" * 20) / "data"
    for _ in range(2):
        with EmbeddedServer(home) as server:
            assert query(server.dsn(), "select 1") == 1
            short = (home / "sockets").readlink()
            assert short.stat().st_mode & 0o777 == 0o700
            with EmbeddedServer(home) as joined:
                assert joined.dsn() == server.dsn()
        assert not short.exists()


def test_a_vanished_short_folder_is_made_again(place: Path) -> None:
    home = place / ("long" * 20)
    with EmbeddedServer(home) as server:
        with until_supervisor_ends(home):
            os.kill(server.supervisor_pid, signal.SIGTERM)
        link = home / "sockets"
        old = link.readlink()
        for path in old.iterdir():
            path.unlink()
        old.rmdir()
        server.start()
        assert query(server.dsn(), "select 1") == 1
        assert link.readlink() != old


def test_a_path_with_odd_characters(place: Path) -> None:
    with EmbeddedServer(place / """a "b", 'c' ü%20&?#""") as server:
        assert query(server.dsn(), "select 1") == 1
        server.restart("immediate")
        assert query(server.dsn(), "select 1") == 1


def test_a_folder_of_something_else_is_refused(place: Path) -> None:
    (place / "thesis.txt").touch()
    with pytest.raises(ConfigurationError, match="not made by backfill"):
        EmbeddedServer(place, temporary=True).start()
    assert [path.name for path in place.iterdir()] == ["thesis.txt"]


def test_an_existing_empty_folder_is_used(place: Path) -> None:
    (place / "data").mkdir(mode=0o700)
    with EmbeddedServer(place / "data") as server:
        assert query(server.dsn(), "select 1") == 1


def test_the_environment_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LANG", "LC_ALL", "LC_MESSAGES", "LANGUAGE"):
        monkeypatch.setenv(name, "xx_YY.UTF-8")
    for name, value in {"PGPORT": "1", "PGDATA": "/nonexistent", "PGTZ": "Asia/Tokyo", "TZ": "Asia/Tokyo"}.items():
        monkeypatch.setenv(name, value)
    with EmbeddedServer() as server:
        assert query(server.dsn(), "show server_encoding") == "UTF8"
        assert query(server.dsn(), "show lc_messages") == "C"
        assert query(server.dsn(), "select datcollate from pg_database where datname = 'postgres'") == "C"
        assert query(server.dsn(), "select current_setting('log_timezone')") in ("UTC", "Etc/UTC")
        assert query(server.dsn(), "select reset_val from pg_settings where name = 'TimeZone'") in ("UTC", "Etc/UTC")


def test_only_throw_away_data_is_made_without_syncing(place: Path, wrapped: Path) -> None:
    for temporary in (True, False):
        with EmbeddedServer(place / "data", temporary=temporary):
            pass
    made = [line for line in (wrapped / "calls").read_text().splitlines() if line.startswith("initdb")]
    assert ["--no-sync" in line for line in made] == [True, False]
    assert all("--no-locale" in line for line in made)


def test_what_needs_a_started_server_says_so() -> None:
    server = EmbeddedServer()
    for use in (
        server.dsn,
        server.restart,
        lambda: server.postmaster_pid,
        lambda: server.supervisor_pid,
        lambda: server.data_dir,
    ):
        with pytest.raises(DatabaseError, match="not started"):
            use()


def test_a_second_starter_waits_for_the_first(place: Path, wrapped: Path) -> None:
    gate = place / "gate"
    subprocess.run(["mkfifo", "-m", "666", gate], check=True)
    program = wrapped / "initdb"
    program.write_text(program.read_text().replace("exec", f"cat {gate} > /dev/null\nexec"))
    pids: list[int] = []

    def start() -> None:
        with EmbeddedServer(place / "data") as server:
            pids.append(server.postmaster_pid)
            both.wait()

    both = threading.Barrier(2)
    threads = [threading.Thread(target=start) for _ in range(2)]
    for thread in threads:
        thread.start()
    gate.write_text("go")
    for thread in threads:
        thread.join()
    assert len(set(pids)) == 1
    assert (wrapped / "calls").read_text().count("initdb") == 1


def test_other_systems_are_refused_in_words() -> None:
    script = "import subprocess, sys, backfill.errors; sys.platform = 'win32'; import backfill.embedded"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "ConfigurationError: The embedded PostgreSQL server runs on Linux and macOS, not on win32" in done.stderr
