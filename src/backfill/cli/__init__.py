"""The command line: one module per group of commands. Nothing else in the package imports it."""

from backfill.cli.app import main

__all__ = ["main"]
