"""What must hold for the repository itself: no addresses or paths of a machine in it, and no dead links."""

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
_LINK = re.compile(r"\[[^\]]*\]\((?!https?://|#)([^)#\s]+)(?:#([\w-]+))?\)")


def tracked() -> list[Path]:
    """The files that git tracks; all files where there is no git, as in an unpacked release."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        return [path for path in ROOT.rglob("*") if path.is_file() and ".venv" not in path.parts]
    return [ROOT / name for name in listed.stdout.splitlines() if (ROOT / name).exists()]


def test_lock_files_name_no_host_and_no_path() -> None:
    lock = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    assert "--hash=sha256:" in lock
    assert "://" not in lock
    assert "find-links" not in lock
    assert not [path.name for path in tracked() if path.name in ("uv.lock", "pylock.toml")]


def test_every_requirement_is_locked() -> None:
    lock = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    pyproject = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    wanted = re.findall(r'^    "([A-Za-z0-9-]+)[><=]', pyproject, re.MULTILINE)
    wanted += re.findall(r'= \["([A-Za-z0-9-]+)[><=]', pyproject)
    assert "asyncpg" in wanted
    assert [name for name in wanted if not re.search(rf"^{name}==", lock, re.MULTILINE)] == []


@pytest.mark.parametrize("page", [str(path.relative_to(ROOT)) for path in tracked() if path.suffix == ".md"])
def test_links_lead_somewhere(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    dead = []
    for target, heading in _LINK.findall(text):
        found = (ROOT / page).parent / target
        if not found.exists() or (heading and heading not in headings(found)):
            dead.append(f"{target}#{heading}")
    assert dead == []


def headings(page: Path) -> set[str]:
    """The anchors that a Markdown page's headings make."""
    lines = page.read_text(encoding="utf-8").splitlines()
    titles = [line.lstrip("#").strip() for line in lines if line.startswith("#")]
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
