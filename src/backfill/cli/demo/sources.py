"""What the demo works on: the Python files of the standard library, and five that it breaks itself."""

import os
import sysconfig
from pathlib import Path
from typing import Final

import msgspec

_LEFT_OUT: Final = {"site-packages", "dist-packages", "__pycache__"}

BROKEN: Final = {
    "syntax_error.py": b"def broken(:\n    pass\n",
    "null_byte.py": b"x = 1\x00\n",
    "bad_encoding.py": b"# -*- coding: utf-8 -*-\nname = '\xff\xfe'\n",
    "bad_indentation.py": b"def f():\n    a = 1\n  b = 2\n",
    "unterminated_string.py": b"text = 'no end\n",
}


class Source(msgspec.Struct, frozen=True):
    """A file to look at: the payload of a ``count_source`` job.

    Attributes:
        path: Where it is.
        package: The package it belongs to.
    """

    path: str
    package: str


def standard_library(limit: int | None) -> list[Source]:
    """The Python files of the interpreter's standard library, without what was installed besides.

    Args:
        limit: How many at most, taken from all over it; None = all.
    """
    root = Path(sysconfig.get_path("stdlib"))
    found = []
    for folder, folders, names in os.walk(root):
        folders[:] = sorted(name for name in folders if name not in _LEFT_OUT)
        inside = Path(folder).relative_to(root).parts
        package = inside[0] if inside else "single modules"
        found += [Source(str(Path(folder, name)), package) for name in sorted(names) if name.endswith(".py")]
    if limit is None or limit >= len(found):
        return found
    return [found[number * len(found) // limit] for number in range(limit)]


def broken_sources(folder: Path) -> list[Source]:
    """Write the five broken files into a folder."""
    for name, content in BROKEN.items():
        (folder / name).write_bytes(content)
    return [Source(str(folder / name), "broken on purpose") for name in BROKEN]
