"""The fenced code blocks of a Markdown file."""

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
_BLOCK = re.compile(r"^```(?P<language>\w+)\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    language: str
    code: str
    line: int

    @property
    def file(self) -> str | None:
        """The file's name that its first line gives it: `# file: mytasks.py`."""
        named = re.match(r"# file: ([\w.]+)", self.code)
        return named[1] if named else None

    @property
    def commands(self) -> list[str]:
        """What a console block types."""
        return [line[2:] for line in self.code.splitlines() if line.startswith("$ ")]


def blocks_of(path: str) -> list[Block]:
    text = (ROOT / path).read_text(encoding="utf-8")
    return [
        Block(match["language"], match["code"], text[: match.start()].count("\n") + 2)
        for match in _BLOCK.finditer(text)
    ]
