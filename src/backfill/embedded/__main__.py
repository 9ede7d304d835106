"""Runs an embedded server until Ctrl-C: ``python -m backfill.embedded [NAME | FOLDER/]``.

The data is kept from one start to the next, under that name (``trial`` if none is given) where this user's application data
lives, or in the folder. A name with a slash is a folder.
"""

import signal
import sys
from pathlib import Path

from backfill.embedded import EmbeddedServer, default_data_dir
from backfill.errors import BackfillError


def main(args: list[str]) -> int:
    """Start the server, print how to reach it, and wait for SIGINT or SIGTERM; the exit code."""
    if len(args) > 1 or any(arg.startswith("-") for arg in args):
        print(__doc__, file=sys.stderr)
        return 2
    signals = {signal.SIGINT, signal.SIGTERM}
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        with EmbeddedServer(_folder(args[0] if args else "trial")) as server:
            print(f"export DATABASE_URL='{server.dsn()}'", flush=True)
            print("PostgreSQL runs until you press Ctrl-C; set the variable above in other terminals.", file=sys.stderr)
            signal.sigwait(signals)
    except BackfillError as error:
        print(f"cannot run an embedded server: {error}", file=sys.stderr)
        return 1
    return 0


def _folder(name: str) -> Path:
    return Path(name).absolute() if "/" in name else default_data_dir(name)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
