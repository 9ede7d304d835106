"""Pieces of SQL that several statements of one file share, so that a rule is written once.

-- fragment: dead_letter_move
-- What it expects and does.
entry as materialized (…)

-- name: bury_jobs
…
with dead as (…),
-- include: dead_letter_move
select …

A fragment may include those that stand above it.
"""

import re

_FRAGMENT = re.compile(
    r"^-- fragment: *(?P<name>\w+) *\n(?P<body>.*?)(?=^-- (?:name|fragment):|\Z)", re.MULTILINE | re.DOTALL
)
_INCLUDE = re.compile(r"^-- include: *(?P<name>\w+) *$", re.MULTILINE)


def expand(content: str, file: str) -> str:
    """The file's text without its fragments, each ``-- include:`` line replaced by the fragment it names.

    Raises:
        ValueError: An include names no fragment of the file, or one that stands below it.
    """
    fragments: dict[str, str] = {}

    def include(match: re.Match[str]) -> str:
        if match["name"] not in fragments:
            raise ValueError(f"{file}: there is no fragment called {match['name']!r}")
        return fragments[match["name"]]

    for found in _FRAGMENT.finditer(content):
        fragments[found["name"]] = _INCLUDE.sub(include, found["body"].rstrip())
    return _INCLUDE.sub(include, _FRAGMENT.sub("", content))
