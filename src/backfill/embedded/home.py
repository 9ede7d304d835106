"""The folder of one embedded server, and the locks in it.

    start.lock       exclusive while a process starts or leaves the server: serialises them
    users.lock       shared by every process that uses the server; exclusive by the supervisor while it stops it
    supervisor.lock  exclusive for as long as a supervisor lives
    pgdata           PostgreSQL's data directory
    sockets          the unix sockets of PostgreSQL and of the supervisor; a link to a short folder if they don't fit here
    password         of the superuser, for TCP connections
    server.log, supervisor.log

All locks are flock's: the kernel frees them however a process ends. A folder that is removed is renamed first, so
whoever waited for one of its locks notices that it is no longer the file at that path, and begins again.
"""

import contextlib
import fcntl
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from backfill.embedded.account import SYSTEM_DIR, Account
from backfill.errors import ConfigurationError

MAX_SOCKET_PATH = 103  # bytes: macOS has 104 in sockaddr_un, Linux 108, both with the final NUL
LONGEST_NAME = "/.s.PGSQL.65535"


def default_data_dir(name: str) -> Path:
    """Return where the data of a kept server called `name` lives.

    That is `/var/lib/backfill/NAME` for root (root's home is closed to the account that runs the server),
    `~/Library/Application Support/backfill/NAME` on macOS, else `$XDG_DATA_HOME/backfill/NAME` or
    `~/.local/share/backfill/NAME`.
    """
    if os.geteuid() == 0:
        return SYSTEM_DIR / name
    if sys.platform == "darwin":
        return Path.home() / "Library/Application Support/backfill" / name
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local/share") / "backfill" / name


def temporary_folder(account: Account) -> Path:
    """Make a new folder for throw-away data where `account` can reach it."""
    for parent in (Path(tempfile.gettempdir()), Path("/tmp")):  # noqa: S108 - mkdtemp makes it private
        if not account.drops or account.first_closed(parent) is None:
            folder = Path(tempfile.mkdtemp(prefix="backfill-", dir=parent))
            break
    else:
        make_folders(SYSTEM_DIR, account)
        folder = Path(tempfile.mkdtemp(prefix="temporary-", dir=SYSTEM_DIR))
    _open_for(folder, account)
    return folder


def make_home(home: Path, account: Account) -> None:
    """Make `home` where it doesn't exist, and check that it is ours and reachable.

    Raises:
        ConfigurationError: the folder holds something else, or is not reachable.
    """
    try:
        make_folders(home, account)
        empty = not any(home.iterdir())
        strangers = not empty and not (home / "start.lock").exists()
        if empty:
            _open_for(home, account)
    except OSError as error:
        raise ConfigurationError(f"The data folder {home} can't be made or read: {error}.") from error
    if strangers:
        raise ConfigurationError(
            f"The folder {home} is not empty and was not made by backfill. Choose a new or an empty data folder."
        )
    if account.drops and (closed := account.first_closed(home)) is not None:
        raise ConfigurationError(
            f"As root, the embedded PostgreSQL server runs as the user {account.name}, who can't reach the data folder "
            f"{home}, as {closed} is closed. Choose a reachable place, such as {SYSTEM_DIR / home.name}."
        )


def make_folders(path: Path, account: Account) -> None:
    """Make `path` and its missing parents, private, but for root so that `account` can pass through."""
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    for folder in reversed(missing):
        # Under another name until its mode is right: another process that starts must not find it closed.
        new = Path(tempfile.mkdtemp(prefix="backfill-", dir=folder.parent))
        _open_for(new, account)
        try:
            new.rename(folder)
        except OSError:
            new.rmdir()
            if not folder.is_dir():
                raise


def _open_for(folder: Path, account: Account) -> None:
    if account.drops:
        folder.chmod(0o711)


def socket_folder(home: Path, account: Account) -> Path:
    """Return the folder of the sockets, made and private to the account; elsewhere if they don't fit."""
    link = home / "sockets"
    if link.is_symlink() and not link.exists():  # its short folder was cleaned away
        link.unlink()
    if not link.exists():
        if fits_socket(link):
            link.mkdir(mode=0o700)
        else:
            link.symlink_to(_short_folder(account))
        os.chown(link, account.uid, account.gid)
    return link.readlink() if link.is_symlink() else link


def _short_folder(account: Account) -> Path:
    for parent in (Path(tempfile.gettempdir()), Path("/tmp")):  # noqa: S108 - mkdtemp makes it private
        if fits_socket(parent / "backfill-12345678") and (not account.drops or account.first_closed(parent) is None):
            return Path(tempfile.mkdtemp(prefix="backfill-", dir=parent))
    raise ConfigurationError(
        "There is no folder for temporary files whose path is short enough for a unix socket; set TMPDIR to one."
    )


def fits_socket(folder: Path) -> bool:
    """Say whether PostgreSQL's socket can be in this folder: a path that is not too long, and that clients don't split."""
    return len(os.fsencode(folder)) + len(LONGEST_NAME) <= MAX_SOCKET_PATH and "," not in str(folder)


def lock_if_free(descriptor: int, mode: int) -> bool:
    """Try to lock an open file in `mode` (`fcntl.LOCK_EX` or `LOCK_SH`) without waiting; say whether it worked."""
    try:
        fcntl.flock(descriptor, mode | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def open_lock(path: Path) -> int:
    """Open a lock file, made if missing, and return its descriptor."""
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)


def is_at(descriptor: int, path: Path) -> bool:
    """Say whether the open file is still the one at `path`."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


@contextlib.contextmanager
def descriptor(path: Path) -> Iterator[int]:
    """Open a lock file for the length of a `with` block; closing it lets go of the lock."""
    opened = open_lock(path)
    try:
        yield opened
    finally:
        os.close(opened)
