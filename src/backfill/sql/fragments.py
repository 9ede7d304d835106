"""Pieces of SQL that several statements share, of one file or of several, so that a rule is written once.

-- fragment: dead_letter_move
-- What it expects and does.
entry as materialized (…)

-- name: bury_jobs
…
with dead as (…),
-- include: dead_letter_move
select …

A fragment may include others. The names of all fragments of the package are known in each file.

A statement may have a variant with more in it: the lines that begin with ``--+`` are part of the variant alone, so that
the plain statement costs nothing for what it does not do.

-- name: claim
-- variant: claim_some
--+ -- takes: names text[]
select … where true
--+  and name = any($1)
"""

import re
from collections.abc import Mapping

_FRAGMENT = re.compile(
    r"^-- fragment: *(?P<name>\w+) *\n(?P<body>.*?)(?=^-- (?:name|fragment):|\Z)", re.MULTILINE | re.DOTALL
)
_STATEMENT = re.compile(r"^(?=-- name:)", re.MULTILINE)
_VARIANT = re.compile(r"^-- variant: *(?P<name>\w+) *\n", re.MULTILINE)
_NAME = re.compile(r"^-- name:.*$", re.MULTILINE)
_MORE = re.compile(r"^(?P<indent> *)--\+ ?(?P<line>.*)$", re.MULTILINE)
_MORE_LINE = re.compile(r"^ *--\+.*\n", re.MULTILINE)
_INCLUDE = re.compile(r"^-- include: *(?P<name>\w+) *$", re.MULTILINE)


def fragments_of(content: str) -> dict[str, str]:
    """The fragments that a file defines, by name."""
    return {found["name"]: found["body"].rstrip() for found in _FRAGMENT.finditer(content)}


def expand(content: str, file: str, fragments: Mapping[str, str] | None = None) -> str:
    """The file's text without its fragments, each ``-- include:`` line replaced by the fragment it names, variants written out.

    Args:
        content: The file's text.
        file: Its name, for error messages.
        fragments: What can be included; the file's own if left out.

    Raises:
        ValueError: An include names no fragment, or fragments include each other.
    """
    known = fragments_of(content) if fragments is None else fragments

    def included(text: str, inside: tuple[str, ...]) -> str:
        def include(match: re.Match[str]) -> str:
            name = match["name"]
            if name not in known:
                raise ValueError(f"{file}: there is no fragment called {name!r}")
            if name in inside:
                raise ValueError(f"{file}: the fragment {name!r} includes itself")
            return included(known[name], (*inside, name))

        return _INCLUDE.sub(include, text)

    whole = included(_FRAGMENT.sub("", content), ())
    return "".join(_with_variant(part) for part in _STATEMENT.split(whole))


def _with_variant(statement: str) -> str:
    """The statement without what is its variant's, and after it the variant, if it has one."""
    declared = _VARIANT.search(statement)
    plain = _MORE_LINE.sub("", _VARIANT.sub("", statement))
    if declared is None:
        return plain
    named = _NAME.sub(f"-- name: {declared['name']}", _VARIANT.sub("", statement), count=1)
    return plain + _MORE.sub(r"\g<indent>\g<line>", named)
