"""Tasks: what runs a job, and the settings it gives to its jobs.

Two spellings: `@task` on a function, or a payload class with `TaskHandler` mixed in. Either way the settings are one
`TaskOptions`, found by `options_of`. Nothing is registered by defining it.
"""

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Literal, TypeVar, overload

from backfill.errors import ConfigurationError, InvalidJob
from backfill.model.retry import RetryPolicy, checked_policy
from backfill.model.spec import JobSpec
from backfill.model.values import MAX_ATTEMPTS, checked_identifier, checked_int, checked_positive

PayloadT = TypeVar("PayloadT")


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskOptions:
    """The settings of a task.

    Attributes:
        identifier: The task's name in the database, 1 to 128 characters.
        retry_policy: When its failed jobs run again, unless the job says otherwise.
        max_attempts: How often they run, unless the job says otherwise; None is the policy's limit.
        timeout: How long one run may take, unless the job says otherwise.
        batch: Whether a payload is a list of items, each of which can fail by itself.
        where: Where the code is, `file:line`, for messages.

    Raises:
        InvalidJob: A value cannot be.
    """

    identifier: str
    retry_policy: RetryPolicy | None = None
    max_attempts: int | None = None
    timeout: timedelta | None = None
    batch: bool = False
    where: str

    def __post_init__(self) -> None:
        try:
            checked_identifier(self.identifier)
            if self.retry_policy is not None:
                checked_policy(self.retry_policy)
            if self.max_attempts is not None:
                checked_int("max_attempts", self.max_attempts, 1, MAX_ATTEMPTS)
            if self.timeout is not None:
                checked_positive("timeout", self.timeout)
        except InvalidJob as error:
            raise InvalidJob(f"the task at {self.where}: {error}") from error

    def apply_to(self, spec: JobSpec | None = None) -> JobSpec:
        """Return the spec with the task's settings where it has none of its own.

        A spec with a policy keeps the limit that came with it.
        """
        spec = spec or JobSpec()
        limit = self.max_attempts if spec.max_attempts is None else spec.max_attempts
        return replace(
            spec,
            retry_policy=spec.retry_policy or self.retry_policy,
            max_attempts=limit,
            timeout=spec.timeout or self.timeout,
        )


class Task(Generic[PayloadT]):
    """A function that runs jobs, made by `@task`; called, it is the function.

    Attributes:
        fn: The function itself.
        options: The task's settings.
        executor: Where it runs: `inline` in the event loop for `async def`, `thread` for `def`, `process` if that was asked.
    """

    fn: Callable[..., Any]
    options: TaskOptions
    executor: Literal["inline", "thread", "process"]

    def __init__(
        self, fn: Callable[..., Any], options: TaskOptions, executor: Literal["process"] | None = None
    ) -> None:
        functools.update_wrapper(self, fn)
        self.fn = fn
        self.options = options
        self.executor = executor or ("inline" if inspect.iscoroutinefunction(fn) else "thread")

    @property
    def identifier(self) -> str:
        """The task's name in the database."""
        return self.options.identifier

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the function itself."""
        return self.fn(*args, **kwargs)

    def __repr__(self) -> str:
        return f"<Task {self.identifier!r} at {self.options.where}>"


class _Decorator:
    """What `@task(...)` returns: makes the task of the function below it."""

    __slots__ = ("_executor", "_identifier", "_settings")

    def __init__(
        self, identifier: str | None, settings: dict[str, Any], executor: Literal["process"] | None = None
    ) -> None:
        self._identifier = identifier
        self._settings = settings
        self._executor = executor

    @overload
    def __call__(self, fn: Callable[[], Any]) -> Task[Any]: ...
    @overload
    def __call__(self, fn: Callable[[PayloadT], Any]) -> Task[PayloadT]: ...
    @overload
    def __call__(self, fn: Callable[[PayloadT, Any], Any]) -> Task[PayloadT]: ...
    def __call__(self, fn: Callable[..., Any]) -> Task[Any]:
        where = _where(fn)
        if inspect.isclass(fn) or not inspect.isroutine(fn):
            raise ConfigurationError(f"@task stands before {fn!r}, which is no function; classes use TaskHandler")
        if inspect.isgeneratorfunction(fn) or inspect.isasyncgenfunction(fn):
            raise ConfigurationError(f"the task at {where} is a generator, which would never run: remove its yield")
        identifier = fn.__name__ if self._identifier is None else self._identifier
        if self._executor not in (None, "process"):
            raise ConfigurationError(
                f"the task at {where}: executor is 'process' or left out, not {self._executor!r}"
                " (async def runs in the event loop, def in a thread)"
            )
        return Task(fn, TaskOptions(identifier=identifier, where=where, **self._settings), self._executor)


@overload
def task(identifier: Callable[[], Any], /) -> Task[Any]: ...
@overload
def task(identifier: Callable[[PayloadT], Any], /) -> Task[PayloadT]: ...
@overload
def task(identifier: Callable[[PayloadT, Any], Any], /) -> Task[PayloadT]: ...
@overload
def task(
    identifier: str | None = None,
    *,
    retry_policy: RetryPolicy | None = None,
    max_attempts: int | None = None,
    timeout: timedelta | None = None,
    executor: Literal["process"] | None = None,
    batch: bool = False,
) -> _Decorator: ...
def task(
    identifier: str | Callable[..., Any] | None = None,
    *,
    retry_policy: RetryPolicy | None = None,
    max_attempts: int | None = None,
    timeout: timedelta | None = None,
    executor: Literal["process"] | None = None,
    batch: bool = False,
) -> Any:
    """Make a task of a function: `@task`, or `@task("name", ...)` with settings.

    The function takes the payload, as the type it is annotated with, and, if it wants it, a `WorkerContext`.

    Parameters:
        identifier: The task's name in the database, 1 to 128 characters; the function's name when left out.
        retry_policy: When its failed jobs run again, unless the job says otherwise.
        max_attempts: How often they run in all, 1 to 32767, unless the job says otherwise.
        timeout: How long one run may take, unless the job says otherwise.
        executor: "process" runs it in a process of its own, for code that computes for long, may crash, or must be
            stoppable; left out, `async def` runs in the event loop and `def` in a thread.
        batch: The payload is a list of items (annotate it as `list[...]`), each of which can fail by itself: return None
            when all are done, or a list with a result for each item, in their order. An exception there, or an awaitable
            that raises one, is an item that failed; the job then runs again with those alone.

    Raises:
        InvalidJob: A setting cannot be.
        ConfigurationError: It does not stand before a function that can run a job.
    """
    if callable(identifier):
        return _Decorator(None, {})(identifier)
    settings = {"retry_policy": retry_policy, "max_attempts": max_attempts, "timeout": timeout, "batch": batch}
    return _Decorator(identifier, settings, executor)


class TaskHandler:
    """Mix-in for a payload class that runs itself: a dataclass, Struct, attrs or pydantic class with `run`.

    The subclass sets IDENTIFIER and defines `async def run(self, ctx)`; the instance is the payload.

    Attributes:
        IDENTIFIER: The task's name in the database, 1 to 128 characters.
        RETRY_POLICY: When its failed jobs run again, unless the job says otherwise.
        MAX_ATTEMPTS: How often they run in all, 1 to 32767, unless the job says otherwise.
        TIMEOUT: How long one run may take, unless the job says otherwise.
    """

    __slots__ = ()

    IDENTIFIER: ClassVar[str]
    RETRY_POLICY: ClassVar[RetryPolicy | None] = None
    MAX_ATTEMPTS: ClassVar[int | None] = None
    TIMEOUT: ClassVar[timedelta | None] = None

    if TYPE_CHECKING:  # at run time its absence is what tells that a subclass has none

        async def run(self, ctx: Any) -> Any:
            """Run the job that this payload is of."""


def options_of(handler: Task[Any] | TaskHandler | type[TaskHandler]) -> TaskOptions:
    """Return the settings of a task, a TaskHandler class or an instance of one.

    Raises:
        ConfigurationError: It is none of these, or the class has no IDENTIFIER or no `async def run`.
        InvalidJob: A setting of the class cannot be.
    """
    if isinstance(handler, Task):
        return handler.options
    cls: Any = handler if inspect.isclass(handler) else type(handler)
    if not issubclass(cls, TaskHandler):
        raise ConfigurationError(f"{handler!r} is no task: put @task before the function or mix in TaskHandler")
    return _class_options(cls)


@functools.lru_cache(maxsize=1024)
def _class_options(cls: Any) -> TaskOptions:
    where = _where(cls)
    if not hasattr(cls, "IDENTIFIER"):
        raise ConfigurationError(f"{cls.__qualname__} at {where} has no IDENTIFIER: set the task's name")
    if not inspect.iscoroutinefunction(getattr(cls, "run", None)):
        raise ConfigurationError(f"{cls.__qualname__} at {where} has no `async def run(self, ctx)`")
    return TaskOptions(
        identifier=cls.IDENTIFIER,
        retry_policy=cls.RETRY_POLICY,
        max_attempts=cls.MAX_ATTEMPTS,
        timeout=cls.TIMEOUT,
        where=where,
    )


def _where(code: Any) -> str:
    """Return `file:line` of a function or class, or the best name there is."""
    try:
        source = inspect.getsourcefile(code) or inspect.getfile(code)
        return f"{source}:{inspect.getsourcelines(code)[1]}"
    except (OSError, TypeError):
        return f"{getattr(code, '__module__', '?')}.{getattr(code, '__qualname__', code)}"
