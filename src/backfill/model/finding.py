"""What an examination of a database found."""

from collections.abc import Mapping
from enum import StrEnum
from typing import Any

import msgspec


class FindingLevel(StrEnum):
    """How much a finding matters."""

    OK = "ok"
    """As it should be."""
    ADVICE = "advice"
    """It works; it could be better, or will want a look."""
    PROBLEM = "problem"
    """Jobs suffer, or soon will."""


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that was looked at.

    Attributes:
        name: What, in a word: ``server``, ``workers`` …
        level: How much it matters.
        message: What was found and, unless all is well, what to do.
        values: The figures behind it.
    """

    name: str
    level: FindingLevel
    message: str
    values: Mapping[str, Any] = {}
