"""Finding and reading the named statements; the format is described in the package's docstring."""

import difflib
import re
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib.resources import files

from backfill.sql.fragments import expand, fragments_of
from backfill.sql.quoting import with_schema

_HEADER = re.compile(r"--\s*(?P<marker>name|takes|gives)\s*:(?P<value>.*)")
_NAME = re.compile(r"[a-z][a-z0-9_]*")
_COLUMN = re.compile(r"([a-z_][a-z0-9_]*)\s+([a-z_][a-z0-9_]*(?:\[\])?)")

Columns = tuple[tuple[str, str], ...]


class UnknownStatementError(KeyError):
    """There is no statement of that name."""

    def __str__(self) -> str:
        return str(self.args[0])


@dataclass(frozen=True, slots=True)
class Statement:
    """One statement of ours, as its file has it.

    Attributes:
        name: What the code calls it by; unique over all files.
        doc: What it does, from the comment above it.
        takes: Name and type of each parameter, in order.
        gives: Name and type of each column of the result, in order; empty when it gives no rows.
        sql: The text, for the schema ``graphile_worker``, comments included.
        file: The file it stands in.
    """

    name: str
    doc: str
    takes: Columns
    gives: Columns
    sql: str
    file: str


@dataclass(slots=True)
class _Block:
    """The lines of one statement while its file is read."""

    name: str
    file: str
    line: int
    doc: list[str]
    markers: dict[str, list[str]]
    sql: list[str]

    def add(self, line: str, header: re.Match[str] | None) -> None:
        """Take one more line: of the comment at the top, or of the SQL, whose own comments are part of it."""
        if self.sql or not line.lstrip().startswith("--"):
            self.sql.append(line)
        elif header is not None:
            self.markers.setdefault(header["marker"], []).append(header["value"].strip())
        else:
            self.doc.append(line.strip().lstrip("-").strip())


def parse(content: str, file: str) -> list[Statement]:
    """The named statements of one file, in order.

    Args:
        content: The file's text.
        file: Its name, for error messages.

    Raises:
        ValueError: The file breaks the format; the message names the file and the line.
    """
    blocks: list[_Block] = []
    for number, line in enumerate(content.splitlines(), start=1):
        header = _HEADER.fullmatch(line.strip())
        if header is not None and header["marker"] == "name":
            name = header["value"].strip()
            if not _NAME.fullmatch(name):
                raise ValueError(f"{file}:{number}: {name!r} is no name for a statement (small letters, digits, _)")
            blocks.append(_Block(name, file, number, [], {}, []))
        elif blocks:
            blocks[-1].add(line, header)
        elif line.strip() and not line.lstrip().startswith("--"):
            raise ValueError(f"{file}:{number}: SQL before the first '-- name:' line")
    return [_finish(block) for block in blocks]


def _finish(block: _Block) -> Statement:
    where = f"{block.file}:{block.line}: statement {block.name}"
    sql = "\n".join(block.sql).strip().removesuffix(";").rstrip()
    if not sql:
        raise ValueError(f"{where} has no SQL")
    if not any(block.doc):
        raise ValueError(f"{where} has no comment that says what it does")
    if "gives" not in block.markers:
        raise ValueError(f"{where} does not say what it gives (write '-- gives: nothing' when no rows come back)")
    return Statement(
        name=block.name,
        doc="\n".join(block.doc).strip(),
        takes=_columns(block.markers.get("takes", []), where, "takes"),
        gives=_columns(block.markers["gives"], where, "gives"),
        sql=sql,
        file=block.file,
    )


def _columns(values: list[str], where: str, marker: str) -> Columns:
    if values == ["nothing"]:
        return ()
    columns: list[tuple[str, str]] = []
    for part in ", ".join(value.rstrip(",") for value in values).split(","):
        column = _COLUMN.fullmatch(part.strip())
        if column is None:
            if values:
                raise ValueError(f"{where}: {part.strip()!r} in its '{marker}' is not a name and a type")
            continue
        columns.append((column[1], column[2]))
    return tuple(columns)


@cache
def statements() -> dict[str, Statement]:
    """All statements of the package by name. The dictionary is shared: do not change it.

    Raises:
        ValueError: A file breaks the format, or two statements, or two fragments, have one name.
    """
    entries = sorted(files("backfill.sql").iterdir(), key=lambda entry: entry.name)
    contents = {entry.name: entry.read_text(encoding="utf-8") for entry in entries if entry.name.endswith(".sql")}
    fragments: dict[str, str] = {}
    for file, content in contents.items():
        for name, body in fragments_of(content).items():
            if fragments.setdefault(name, body) is not body:
                raise ValueError(f"{file}: another fragment is called {name!r}")
    by_name: dict[str, Statement] = {}
    for file, content in contents.items():
        for found in parse(expand(content, file, fragments), file):
            other = by_name.setdefault(found.name, found)
            if other is not found:
                raise ValueError(f"two statements are called {found.name}: in {other.file} and in {found.file}")
    return by_name


def statement(name: str) -> Statement:
    """The statement of that name.

    Raises:
        UnknownStatementError: There is none; a KeyError that suggests what may have been meant.
    """
    known = statements()
    if name in known:
        return known[name]
    close = difflib.get_close_matches(name, known, n=1)
    hint = f"; did you mean {close[0]}?" if close else ""
    raise UnknownStatementError(f"there is no SQL statement called {name!r}{hint}")


# A process works with one schema, seldom with a few; tests come by with many.
@lru_cache(maxsize=4096)
def text(name: str, schema: str) -> str:
    """The SQL of the statement for the schema of that name (unquoted), without comments. Cached.

    Raises:
        UnknownStatementError: There is no statement of that name.
    """
    return with_schema(statement(name).sql, schema)
