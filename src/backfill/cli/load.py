"""From ``MODULE`` and ``MODULE:OBJECT`` to what a worker runs.

The current folder comes first on ``sys.path``, as with ``python -m``. A module stands for all tasks it defines or imports;
an object is a task, a collection of tasks, a builder, or a function that makes a builder of a WorkerConfig (this is how
hooks and schedules come in).
"""

import importlib
import inspect
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, TypeAlias

from backfill.errors import BackfillError, ConfigurationError
from backfill.model import Task, TaskHandler, options_of
from backfill.worker import WorkerConfig, WorkerRunnerBuilder

Handler: TypeAlias = Task[Any] | type[TaskHandler]
BuilderSource: TypeAlias = WorkerRunnerBuilder | Callable[[WorkerConfig], Any]


@dataclass(slots=True)
class Loaded:
    """What the targets came to.

    Attributes:
        handlers: The tasks, by identifier.
        source: The builder, or the function that makes one; None when no target was one.
        source_target: The target that it came from.
    """

    handlers: dict[str, Handler] = field(default_factory=dict)
    source: BuilderSource | None = None
    source_target: str = ""

    def builder(self, make_config: Callable[[], WorkerConfig]) -> WorkerRunnerBuilder:
        """The builder with all the tasks defined.

        Args:
            make_config: Makes the configuration, unless a ready builder has brought its own.

        Raises:
            ConfigurationError: The function gave no builder, or a task is not well defined.
        """
        if isinstance(self.source, WorkerRunnerBuilder):
            builder = self.source
        elif self.source is None:
            builder = WorkerRunnerBuilder(make_config())
        else:
            made = self.source(make_config())
            if not isinstance(made, WorkerRunnerBuilder):
                raise ConfigurationError(
                    f"{self.source_target} returned {made!r}, not a WorkerRunnerBuilder: it takes a WorkerConfig and returns"
                    " WorkerRunner.builder(config) with jobs defined"
                )
            builder = made
        for handler in self.handlers.values():
            builder.define_job(handler)
        return builder


def load(targets: Sequence[str]) -> Loaded:
    """Import the modules and find the tasks.

    Raises:
        ConfigurationError: A module or an object is not there or has no tasks, two tasks have one identifier, or more than
            one target is a builder.
        ModuleFailedError: A module raised while it was imported.
    """
    here = str(Path.cwd())
    if sys.path[:1] not in ([""], [here]):
        sys.path.insert(0, here)
    loaded = Loaded()
    for target in targets:
        module_name, colon, name = target.partition(":")
        module = _import(module_name)
        if not colon:
            handlers = list(_in_module(module))
            if not handlers:
                raise ConfigurationError(
                    f"module {module_name} has no tasks: put @task before a function, or name an object as {module_name}:name"
                )
            _add(loaded, handlers)
        else:
            _add_object(loaded, target, _attribute(module, module_name, name))
    return loaded


class ModuleFailedError(BackfillError):
    """A module of the user's raised while it was imported; the message has the traceback of its own code."""


def _import(name: str) -> ModuleType:
    if not name or name.endswith(".py") or "/" in name or not all(part.isidentifier() for part in name.split(".")):
        hint = name.removesuffix(".py").replace("/", ".").strip(".")
        meant = f": did you mean {hint}?" if hint.replace(".", "_").isidentifier() and hint != name else ""
        raise ConfigurationError(f"{name!r} is no module name, which is written as in an import{meant}")
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(f"{error.name}.")):
            raise ConfigurationError(
                f"there is no module {error.name!r} in {Path.cwd()} or elsewhere on Python's path"
            ) from error
        raise ModuleFailedError(_failure(name, error)) from error
    except (Exception, SystemExit) as error:
        raise ModuleFailedError(_failure(name, error)) from error


def _failure(name: str, error: BaseException) -> str:
    """The error with the part of its traceback that is the user's code."""
    shown = traceback.TracebackException.from_exception(error)
    pending = [shown]
    while pending:
        one = pending.pop()
        own = [frame for frame in one.stack if not _is_machinery(frame.filename)]
        one.stack = traceback.StackSummary.from_list(own)
        pending += [other for other in (one.__cause__, one.__context__) if other is not None]
    return f"module {name} cannot be imported:\n{''.join(shown.format()).rstrip()}"


def _is_machinery(filename: str) -> bool:
    return filename.startswith("<frozen ") or filename in (__file__, importlib.__file__)


def _attribute(module: ModuleType, module_name: str, name: str) -> Any:
    found = module
    for part in name.split("."):
        if not hasattr(found, part):
            raise ConfigurationError(f"module {module_name} has nothing called {name!r}")
        found = getattr(found, part)
    return found


def _in_module(module: ModuleType) -> Iterator[Handler]:
    for value in vars(module).values():
        if isinstance(value, Task) or (_is_handler_class(value) and not _is_base(value)):
            yield value


def _is_handler_class(value: object) -> bool:
    return inspect.isclass(value) and issubclass(value, TaskHandler) and value is not TaskHandler


def _is_base(cls: Any) -> bool:
    """Whether the class is there only for others to derive from; one that nothing derives from lacks its IDENTIFIER."""
    return not hasattr(cls, "IDENTIFIER") and bool(cls.__subclasses__())


def _add_object(loaded: Loaded, target: str, found: Any) -> None:
    if isinstance(found, Task) or _is_handler_class(found):
        _add(loaded, [found])
    elif isinstance(found, list | tuple | set | frozenset):
        wrong = [item for item in found if not isinstance(item, Task) and not _is_handler_class(item)]
        if wrong or not found:
            what = f"has {wrong[0]!r}, which is no task" if wrong else "is empty"
            raise ConfigurationError(f"{target} {what}: a list of tasks holds @task functions and TaskHandler classes")
        _add(loaded, found)
    elif isinstance(found, WorkerRunnerBuilder) or (callable(found) and not inspect.isclass(found)):
        if loaded.source is not None and loaded.source is not found:
            raise ConfigurationError(
                f"{loaded.source_target} and {target} both make a builder, and a worker has only one: name one of them"
            )
        loaded.source, loaded.source_target = found, target
    else:
        raise ConfigurationError(
            f"{target} is {found!r:.100}: name a task, a list of tasks, a WorkerRunnerBuilder, or a function from"
            " WorkerConfig to one"
        )


def _add(loaded: Loaded, handlers: Sequence[Handler] | set[Handler] | frozenset[Handler]) -> None:
    for handler in handlers:
        options = options_of(handler)
        other = loaded.handlers.setdefault(options.identifier, handler)
        if other is not handler:
            raise ConfigurationError(
                f"two tasks are called {options.identifier!r}: at {options_of(other).where} and at {options.where}"
            )
