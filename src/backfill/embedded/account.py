"""Which operating system account runs the server.

PostgreSQL refuses to run as root. As root, the server runs as the user `postgres` where there is one, else as `nobody`;
the owner of data that exists already wins. No user is made and no folder's mode is changed: what the account can't
reach is an error that names the closed folder.
"""

import dataclasses
import os
import pwd
import stat
from pathlib import Path
from typing import TypedDict

from backfill.errors import ConfigurationError

SYSTEM_DIR = Path("/var/lib/backfill")
UNPRIVILEGED = ("postgres", "_postgres", "nobody")


class PopenOptions(TypedDict, total=False):
    """The arguments of `subprocess.Popen` that drop privileges."""

    user: int
    group: int
    extra_groups: list[int]


@dataclasses.dataclass(frozen=True)
class Account:
    """An account: its name, ids, and whether we must drop privileges to become it."""

    name: str
    uid: int
    gid: int
    drops: bool

    def popen_options(self) -> PopenOptions:
        """Return the arguments that make `subprocess.Popen` run a program as this account."""
        return PopenOptions(user=self.uid, group=self.gid, extra_groups=[]) if self.drops else PopenOptions()

    def first_closed(self, path: Path) -> Path | None:
        """Return the first existing folder on the way to `path` (itself included) that this account can't enter."""
        path = path.resolve()
        for folder in (*reversed(path.parents), path):
            try:
                status = folder.stat()
            except FileNotFoundError:
                return None
            if status.st_uid == self.uid:
                needed = stat.S_IXUSR
            elif status.st_gid == self.gid:
                needed = stat.S_IXGRP
            else:
                needed = stat.S_IXOTH
            if not status.st_mode & needed:
                return folder
        return None


def choose_account(data: Path | None) -> Account:
    """Choose who runs the server.

    Args:
        data: PostgreSQL's data folder, if there is one already; its owner wins.

    Raises:
        ConfigurationError: the data belongs to another user, or the user id has no passwd entry.
    """
    me = os.geteuid()
    try:
        owner = None if data is None else data.stat().st_uid
    except FileNotFoundError:
        owner = None
    except OSError as error:
        raise ConfigurationError(f"The data folder {data} can't be read: {error}.") from error
    if me != 0:
        if owner not in (None, me):
            raise ConfigurationError(
                f"{data} belongs to user id {owner}, and this process runs as {me}. Use another data folder, or run "
                "as its owner."
            )
        return _account(me, drops=False)
    if owner == 0:
        raise ConfigurationError(f"{data} belongs to root, and PostgreSQL refuses to run as root. chown it.")
    if owner is not None:
        return _account(owner, drops=True)
    for name in UNPRIVILEGED:
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        return Account(name, entry.pw_uid, entry.pw_gid, drops=True)
    raise ConfigurationError(
        f"PostgreSQL refuses to run as root, and none of the users {', '.join(UNPRIVILEGED)} exists to run it. "
        "Run as an ordinary user, or set DATABASE_URL to a server of your own."
    )


def _account(uid: int, *, drops: bool) -> Account:
    try:
        entry = pwd.getpwuid(uid)
    except KeyError:
        raise ConfigurationError(
            f"The user id {uid} has no passwd entry, and PostgreSQL's initdb insists on one. Run as a user that "
            "exists, add an entry for this id to /etc/passwd, or set DATABASE_URL to a server of your own."
        ) from None
    return Account(entry.pw_name, uid, entry.pw_gid, drops)
