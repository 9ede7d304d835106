"""What is left of a server: its processes, its lock files, its folder; and their removal.

A pid from a file is never signalled: only a process whose own command line and working directory say that it is
PostgreSQL on our data directory. Used by the supervisor, and by the last user where that was killed. Like the
supervisor, it imports only what it must.
"""
# ruff: noqa: PTH104, PTH108, PTH112, PTH114, PTH115, PTH118, PTH123, PTH208 - see above

import os
import signal
import subprocess
import sys
import time

POLL_SECONDS = 0.005
ORPHAN_PATIENCE_SECONDS = 30.0


def take_over(path: str) -> None:
    """Write our pid into a stale lock file of PostgreSQL's, of which we know that no server stands behind it.

    Its pid may be another process's by now, and PostgreSQL then refuses to start if that one has the same user. The pid
    of its own parent it takes as stale. The rest of the file it still needs, to find the dead server's shared memory.
    """
    try:
        with open(path, "r+", encoding="utf-8") as stream:
            _, end, rest = stream.read().partition("\n")
            stream.seek(0)
            stream.write(f"{os.getpid()}{end or os.linesep}{rest}")
            stream.truncate()
    except FileNotFoundError:
        return


def end_leftovers(data: str) -> list[int]:
    """End every process of a PostgreSQL server on `data`, and return their pids.

    That is a postmaster whose supervisor was killed, which gets time to shut down in order, or the busy backends of one
    that was killed itself: they would keep the data locked until their queries end.
    """
    found = server_processes(data)
    for pid, is_postmaster in found.items():
        if is_postmaster:
            kill(pid, signal.SIGINT)
    deadline = time.monotonic() + ORPHAN_PATIENCE_SECONDS
    while any((left := server_processes(data)).values()) and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)
    while left:
        for pid in left:
            kill(pid, signal.SIGKILL)
        time.sleep(POLL_SECONDS)
        left = server_processes(data)
    return list(found)


def kill(pid: int, number: signal.Signals) -> None:
    """Send a signal to a process that may have ended."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return


def server_processes(data: str) -> dict[int, bool]:
    """Return the pids of live PostgreSQL processes whose data directory is `data`, and whether each is a postmaster.

    On Linux these are all processes that work in that directory; elsewhere only postmasters, by their arguments.
    """
    found = {}
    if sys.platform == "linux":
        for name in os.listdir("/proc"):
            if name.isdecimal():
                try:
                    if os.readlink(f"/proc/{name}/cwd") == data:
                        with open(f"/proc/{name}/cmdline", "rb") as stream:
                            program = stream.read().split(b"\0")[0]
                        # Others call themselves "postgres: checkpointer" and the like.
                        if program.endswith(b"/postgres") or program.startswith(b"postgres:"):
                            found[int(name)] = program.endswith(b"/postgres")
                except OSError:  # it ended, or is not ours to look at
                    continue
        return found
    listed = subprocess.run(["ps", "-axww", "-o", "pid=,command="], capture_output=True, text=True, check=True)  # noqa: S607 - ps is where PATH says
    for line in listed.stdout.splitlines():
        pid, _, command = line.strip().partition(" ")
        if f"/postgres -D {data} " in command:
            found[int(pid)] = True
    return found


def discard(home: str) -> None:
    """Remove a folder of throw-away data with all that belongs to it."""
    end_leftovers(os.path.join(home, "pgdata"))
    remove_short_folder(home)
    # Renamed first: who waits for one of its locks must not find them again at their path.
    removed = f"{home}.removed-{os.getpid()}"
    os.rename(home, removed)
    remove_tree(removed)


def remove_short_folder(home: str) -> None:
    """Remove the folder of the sockets if it is elsewhere, because the path of `home` is too long for them."""
    link = os.path.join(home, "sockets")
    if os.path.islink(link):
        remove_tree(os.readlink(link))
        os.unlink(link)


def remove_tree(folder: str) -> None:
    """Remove a folder and all below it, if it is there."""
    import shutil  # noqa: PLC0415 - not needed at the start, see above

    if os.path.isdir(folder):
        shutil.rmtree(folder)
