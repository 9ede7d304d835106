"""A PostgreSQL server of our own, for trying out, development and tests.

`EmbeddedServer` starts a real PostgreSQL from binaries that are on the machine (see `find_binaries`), shares it between
processes, and stops it when the last of them is gone, however that one ended. Linux and macOS.
"""

import sys

from backfill.errors import ConfigurationError

if sys.platform not in ("linux", "darwin"):
    raise ConfigurationError(
        f"The embedded PostgreSQL server runs on Linux and macOS, not on {sys.platform}. "
        "Set DATABASE_URL to a PostgreSQL server of your own."
    )

from backfill.embedded.binaries import find_binaries
from backfill.embedded.home import default_data_dir
from backfill.embedded.server import EmbeddedServer

__all__ = ["EmbeddedServer", "default_data_dir", "find_binaries"]
