"""Executable files as tasks: a folder of scripts and programs in any language, as Graphile Worker has it.

A task's name is the file's path in the folder without its extensions: ``reports/daily.sh`` is ``reports/daily``. A job runs the
file in the worker's current folder, without arguments, the payload as JSON on stdin, the rest in environment variables. Exit
code 0 is success; another code, or a signal, is a failure worth another try, with the end of its stderr as the error.

What of the folder is no task:

* Names with other characters than ``A-Z a-z 0-9 _ -`` and dots before extensions, links to folders, and files that can't be
  executed: left out, each with a line in the log.
* Modules for Node (``.js .cjs .mjs .ts .mts``), which Graphile Worker loads as such even if they are executable: left out.
* A file that begins with ``#!`` and is not executable, one that only others may execute, a link to nowhere, two files for one
  name: mistakes; the worker does not start.
"""

import logging
import os
import re
import signal
import stat
from collections import deque
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from backfill.errors import ConfigurationError, InvalidJob, WorkerError
from backfill.model import Job, TaskOptions
from backfill.worker.classify import storable
from backfill.worker.context import WorkerContext
from backfill.worker.handler import Handler
from backfill.worker.program import Lines, run_program

logger = logging.getLogger(__name__)

TIME_LIMIT: Final = timedelta(hours=4)
_FOLDER: Final = re.compile(r"[A-Za-z0-9_-]+")
_FILE: Final = re.compile(r"(?P<name>[A-Za-z0-9_-]+)(?:\.[A-Za-z0-9_-]+)*")
_NODE: Final = (".js", ".cjs", ".mjs", ".ts", ".mts")
_TAIL_LINES: Final = 20  # of stderr, for the error
_TAIL: Final = 2_000  # characters
_PREFIX: Final = "GRAPHILE_WORKER_"


class ExecutableFailedError(WorkerError):
    """The program of an executable task ended with another code than 0, was killed, or could not be run; retryable."""


class Executable:
    """The handler function of an executable file."""

    def __init__(self, path: Path) -> None:
        self._path = path

    async def run(self, ctx: WorkerContext) -> None:
        """Run it for a job.

        Raises:
            ExecutableFailedError: It failed.
        """
        job = ctx.job
        about = {"job_id": job.id, "task": job.task_identifier, "attempt": job.attempts}
        tail: deque[str] = deque(maxlen=_TAIL_LINES)

        def say(level: int, line: str) -> None:
            logger.log(level, "job %d (%s): %s", job.id, job.task_identifier, line, extra=about)

        def complain(line: str) -> None:
            tail.append(line)
            say(logging.ERROR, line)

        given = f'{{"payload":{job.payload_text}}}'.encode()
        out, err = Lines(lambda line: say(logging.INFO, line)), Lines(complain)
        try:
            code = await run_program(self._path, given, environment(job), out, err)
        except OSError as error:
            raise ExecutableFailedError(
                f"{self._path} cannot be run: {error.strerror or error} (a script needs a first line such as #!/bin/sh, and the"
                " program that this names)"
            ) from error
        if code:
            raise ExecutableFailedError(_failure(code, tail))


def executables(folder: str | os.PathLike[str]) -> list[Handler]:
    """A handler for each executable file of a folder.

    Raises:
        ConfigurationError: There is no such folder, nothing in it can be a task, or something is wrong with a file; the
            message names all such files.
    """
    root = Path(folder).absolute()
    if not root.is_dir():
        raise ConfigurationError(f"the task folder {root} {'is no folder' if root.exists() else 'does not exist'}")
    wrong: list[str] = []
    handlers = []
    for name, path in _find(root, wrong).items():
        try:
            options = TaskOptions(identifier=name, timeout=TIME_LIMIT, where=str(path))
        except InvalidJob as error:
            wrong.append(str(error))
        else:
            run = Executable(path).run
            handlers.append(Handler(options, run, in_thread=False, decode=None, shape=("context",)))
    if wrong:
        raise ConfigurationError("; ".join(wrong))
    if not handlers:
        raise ConfigurationError(f"the task folder {root} has no executable file: chmod +x those that are tasks")
    return handlers


def _find(root: Path, wrong: list[str]) -> dict[str, Path]:
    """The executable files by task name; mistakes are added to a list."""
    found: dict[str, Path] = {}
    for path in _files(root, wrong):
        fault = _fault(path)
        if fault is None:
            name = _task_name(path, root)
            other = found.setdefault(name, path)
            if other is not path:
                wrong.append(f"{other} and {path} are both the task {name!r}: rename one")
        elif fault.startswith("left out"):
            logger.info("%s is no task: %s", path, fault)
        else:
            wrong.append(f"{path} {fault}")
    return found


def environment(job: Job) -> dict[str, str]:
    """The environment of a program for a job: the worker's own, and what Graphile Worker tells of a job."""
    values = {
        "PAYLOAD_FORMAT": "json",
        "TASK_IDENTIFIER": job.task_identifier,
        "JOB_ID": str(job.id),
        "JOB_ATTEMPTS": str(job.attempts),
        "JOB_MAX_ATTEMPTS": str(job.max_attempts),
        "JOB_PRIORITY": str(int(job.priority)),
        "JOB_RUN_AT": _iso(job.run_at),
    }
    inherited = {name: value for name, value in os.environ.items() if name != f"{_PREFIX}JOB_KEY"}
    if job.key is not None:
        values["JOB_KEY"] = job.key
    return {**inherited, **{f"{_PREFIX}{name}": value for name, value in values.items()}}


def _iso(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _failure(code: int, tail: deque[str]) -> str:
    if code > 0:
        how = f"exit code {code}"
    else:
        known = -code in signal.valid_signals() and -code in {number.value for number in signal.Signals}
        how = f"killed by {signal.Signals(-code).name}" if known else f"killed by signal {-code}"
    said = storable("\n".join(tail), _TAIL, keep_end=True)
    return f"{how}, and this at the end of its stderr:\n{said}" if said else f"{how}, and nothing on its stderr"


def _files(folder: Path, wrong: list[str]) -> Iterator[Path]:
    """The files of a folder and of those in it, in the order of their names."""
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        wrong.append(f"{folder} cannot be read: {error.strerror}")
        return
    for entry in entries:
        path = Path(entry.path)
        is_folder = entry.is_dir()
        if (_FOLDER if is_folder else _FILE).fullmatch(entry.name) is None:
            logger.info("%s is no task: its name has other characters than A-Z a-z 0-9 _ -", path)
        elif is_folder and entry.is_symlink():
            logger.info("%s is no task: links to folders are not followed", path)
        elif is_folder:
            yield from _files(path, wrong)
        else:
            yield path


def _fault(path: Path) -> str | None:
    """What keeps a file from being a task: something that begins with ``left out``, or a mistake. None when nothing does."""
    try:
        mode = path.stat().st_mode
    except OSError as error:
        return f"is a link to nowhere, or cannot be looked at: {error.strerror}"
    if not stat.S_ISREG(mode):
        return "left out, it is no regular file"
    if path.suffix in _NODE:
        return "left out, it is a module for Node"
    if mode & stat.S_IXUSR:
        return None if os.access(path, os.X_OK) else "may not be executed by the user that runs the worker"
    try:
        with path.open("rb") as file:
            begins = file.read(2)
    except OSError:
        begins = b""
    return "begins with #! and is not executable: chmod +x it" if begins == b"#!" else "left out, it is not executable"


def _task_name(path: Path, root: Path) -> str:
    parts = list(path.relative_to(root).parts)
    parts[-1] = parts[-1].partition(".")[0]
    return "/".join(parts)
