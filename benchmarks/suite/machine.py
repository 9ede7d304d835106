"""What is measured on: the machine, and the CPU time and memory of processes, read from /proc (Linux only)."""

import os
import platform
from collections.abc import Iterator
from pathlib import Path
from typing import Any

TICK = os.sysconf("SC_CLK_TCK")
MIB = 1 << 20


def family(pid: int) -> Iterator[int]:
    """The process and its descendants, as far as they live."""
    parents: dict[int, list[int]] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        fields = stat(int(folder.name))
        if fields:
            parents.setdefault(int(fields[1]), []).append(int(folder.name))
    waiting = [pid]
    while waiting:
        one = waiting.pop()
        yield one
        waiting += parents.get(one, ())


def stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat from the third on; nothing if there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return []


def cpu_of(*pids: int) -> float:
    """CPU seconds of these processes, of those below them, and of those that have ended there."""
    ticks = 0
    for one in {one for pid in pids for one in family(pid)}:
        fields = stat(one)
        ticks += sum(int(field) for field in fields[11:15])  # user, system; those of ended children
    return ticks / TICK


def memory_of(pid: int, what: str = "VmRSS") -> float:
    """Resident MiB of the process and those below it: at the moment, or with ``VmHWM`` the most there has been."""
    kib = 0
    for one in family(pid):
        try:
            lines = Path(f"/proc/{one}/status").read_text().splitlines()
        except (FileNotFoundError, ProcessLookupError):
            continue
        kib += sum(int(line.split()[1]) for line in lines if line.startswith(f"{what}:"))
    return kib * 1024 / MIB


def busy() -> float:
    """CPU seconds that the machine has worked since it started."""
    user, nice, system, _idle, _wait, interrupts, soft, steal = (
        int(field) for field in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]
    )
    return (user + nice + system + interrupts + soft + steal) / TICK


def description() -> dict[str, Any]:
    """The machine, as the tables tell it."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "cores": os.cpu_count(),
        "cpu": models[0] if models else platform.machine(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / (1 << 30)),
        "kernel": platform.release(),
        "python": platform.python_version(),
    }
