"""A part of the suite: something measured by itself, and what it says in the tables."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from benchmarks.suite.bench import Bench
from benchmarks.suite.rows import Cases, Row


@dataclass(frozen=True)
class Part:
    """One part.

    Attributes:
        name: For ``--only``, and its key in the results.
        about: What is measured, in a line.
        measure: Measures it.
        rows: Its lines of the table of targets.
        table: A table of its own, in Markdown; "" for none.
    """

    name: str
    about: str
    measure: Callable[[Bench], Awaitable[Cases]]
    rows: Callable[[Cases], list[Row]]
    table: Callable[[Cases], str] = lambda _: ""
