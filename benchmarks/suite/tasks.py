"""What the measured worker processes run: backfill worker tasks."""

import sys
import time

from backfill import task


@task("nothing")
async def nothing() -> None: ...


@task("stamp")
async def stamp() -> None:
    """Say when it ran, by the clock that all processes of the machine share."""
    sys.stdout.write(f"{time.monotonic()}\n")
    sys.stdout.flush()
