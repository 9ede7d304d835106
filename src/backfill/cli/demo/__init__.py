"""``backfill demo``: real work on a PostgreSQL server of its own, and what came of it."""

from backfill.cli.demo.command import demo

__all__ = ["demo"]
