"""From what users define to what a slot calls: which parameter is the payload, of which type, and which the context."""

import inspect
import sys
import typing
from collections.abc import Callable
from typing import Any, Final

from backfill.errors import ConfigurationError
from backfill.model import Task, TaskHandler, TaskOptions, options_of, payload_decoder
from backfill.worker.batch import items_decoder
from backfill.worker.context import WorkerContext

_CONTEXT_NAMES: Final = {"WorkerContext", "backfill.WorkerContext"}  # as written under `if TYPE_CHECKING`


class Handler:
    """What runs the jobs of one task.

    Attributes:
        options: The task's settings.
        function: What is called; a coroutine function unless ``in_thread``.
        in_thread: Whether it is a plain function, to be run in a thread.
        in_process: Its module and its name there, if it is to be run in a process.
        is_batch: Whether the payload is a list of items, each of which can fail by itself.
        decode: From the payload's JSON text to the value that the function takes; None when it takes none.
        shape: The function's parameters in order: ``payload`` and ``context``, each at most once.
        is_simple: Whether it is awaited with the payload, and that is all there is to it.
    """

    __slots__ = (
        "decode",
        "function",
        "identifier",
        "in_process",
        "in_thread",
        "is_batch",
        "is_simple",
        "options",
        "shape",
        "timeout",
    )

    def __init__(
        self,
        options: TaskOptions,
        function: Callable[..., Any],
        *,
        in_thread: bool,
        in_process: tuple[str, str] | None = None,
        decode: Callable[[str], Any] | None,
        shape: tuple[str, ...],
    ) -> None:
        self.options = options
        self.is_batch = options.batch
        self.identifier = options.identifier
        self.timeout = options.timeout.total_seconds() if options.timeout is not None else None
        self.function = function
        self.in_thread = in_thread
        self.in_process = in_process
        self.decode = decode
        self.shape = shape
        self.is_simple = (
            not (in_thread or in_process or options.batch) and shape == ("payload",) and self.timeout is None
        )

    def arguments(self, payload: str, make_context: Callable[[], WorkerContext]) -> tuple[Any, ...]:
        """The function's arguments for a payload.

        Raises:
            MalformedData: The payload does not fit the parameter's type.
        """
        shape = self.shape
        if shape == ("payload",):
            return (self.decode(payload),) if self.decode else ()
        made = {"payload": self.decode, "context": lambda _: make_context()}
        return tuple(make(payload) for name in shape if (make := made[name]) is not None)


def make_handler(defined: Task[Any] | type[TaskHandler]) -> Handler:
    """The handler of a ``@task`` function or of a ``TaskHandler`` class.

    Raises:
        ConfigurationError: It cannot run jobs; the message says where it is defined and what to change.
    """
    options = options_of(defined)
    if isinstance(defined, Task):
        return _of_function(defined, options)
    return _of_class(defined, options)


def _of_function(defined: Task[Any], options: TaskOptions) -> Handler:
    where = f"task {options.identifier!r} at {options.where}"
    shape: list[str] = []
    payload_type: Any = Any
    for parameter in inspect.signature(defined.fn).parameters.values():
        annotation = _annotation(defined.fn, parameter, where)
        kind = "context" if _is_context(annotation) else "payload"
        if parameter.kind not in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD):
            raise ConfigurationError(
                f"{where}: parameter {parameter.name!r} must be a plain one: a handler is called with its payload and,"
                " if it asks for it, its context"
            )
        if kind in shape:
            hint = "annotate the context as WorkerContext" if kind == "payload" else "one context is enough"
            raise ConfigurationError(f"{where}: parameter {parameter.name!r} is one too many: {hint}")
        if kind == "payload":
            payload_type = Any if annotation is parameter.empty else annotation
        shape.append(kind)
    if options.batch and "payload" not in shape:
        raise ConfigurationError(f"{where}: a batch task takes its items: give it a parameter annotated as list[...]")
    return Handler(
        options,
        defined.fn,
        in_thread=defined.executor == "thread",
        in_process=_importable(defined, where) if defined.executor == "process" else None,
        decode=_decoder(payload_type, where, batch=options.batch) if "payload" in shape else None,
        shape=tuple(shape),
    )


def _of_class(defined: type[TaskHandler], options: TaskOptions) -> Handler:
    where = f"task {options.identifier!r} at {options.where}"
    takes = list(inspect.signature(defined.run).parameters)
    if len(takes) not in (1, 2):
        raise ConfigurationError(f"{where}: run takes (self) or (self, ctx), not ({', '.join(takes)})")
    return Handler(
        options,
        defined.run,
        in_thread=False,
        decode=_decoder(defined, where),
        shape=("payload", "context")[: len(takes)],
    )


def _importable(defined: Task[Any], where: str) -> tuple[str, str]:
    """By which module and name another process finds the task."""
    module, name = defined.fn.__module__, defined.fn.__qualname__
    found: Any = sys.modules.get(module)
    for part in name.split("."):
        found = getattr(found, part, None)
    if found is not defined or module == "__main__":
        raise ConfigurationError(
            f"{where}: executor='process' needs a task that another process can import, and {module}.{name} is not:"
            " define it at the top level of a module that is not the script itself"
        )
    return module, name


def _decoder(payload_type: Any, where: str, *, batch: bool = False) -> Callable[[str], Any]:
    try:
        return items_decoder(payload_type) if batch else payload_decoder(payload_type)
    except ConfigurationError as error:
        raise ConfigurationError(f"{where}: {error}") from error


def _annotation(function: Callable[..., Any], parameter: inspect.Parameter, where: str) -> Any:
    annotation = parameter.annotation
    if not isinstance(annotation, str):
        return annotation
    if annotation in _CONTEXT_NAMES:
        return WorkerContext
    try:
        return _read(inspect.unwrap(function), parameter.name)
    except (NameError, AttributeError, TypeError, SyntaxError) as error:
        raise ConfigurationError(
            f"{where}: the annotation of {parameter.name!r}, {annotation!r}, cannot be read ({error}): it must be"
            " importable at run time, outside `if TYPE_CHECKING` and outside functions"
        ) from error


def _read(function: Any, name: str) -> Any:
    """What one parameter's annotation means; another one that can't be read does not matter."""
    stand_in = type("_", (), {"__annotations__": {name: function.__annotations__[name]}})
    return typing.get_type_hints(stand_in, globalns=function.__globals__, include_extras=True)[name]


def _is_context(annotation: Any) -> bool:
    return inspect.isclass(annotation) and issubclass(annotation, WorkerContext)
