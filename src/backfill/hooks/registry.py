"""Who is told and asked: handlers by event.

A handler is a function of the event, sync or async, that runs where the event arises: in the event loop, so a sync one must not
block. Handlers of an observation are started together. One that raises is logged and counted in ``errors``; nobody else
notices. Handlers of a decision are asked one after the other. One that raises has answered ``Fail`` (for ``JobRecovery``,
which has no such answer: nothing), and so has one whose answer can't be one.
"""

import asyncio
import difflib
import inspect
import logging
import weakref
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final, Protocol, Self, TypeAlias, TypeVar, overload, runtime_checkable

import msgspec

from backfill.errors import ConfigurationError, JobScheduleFailed, JobScheduleSkipped
from backfill.hooks.events import (
    EVENTS,
    OBSERVATIONS,
    AfterJobRun,
    BeforeJobRun,
    BeforeJobSchedule,
    Event,
    JobFetch,
    JobRecovery,
    JobStart,
    Observation,
    RecoveryDecision,
    RunDecision,
    ScheduleDecision,
)
from backfill.hooks.results import (
    Continue,
    Fail,
    FailWithBackoff,
    HookResult,
    JobRecoveryResult,
    JobScheduleResult,
    Reschedule,
    Skip,
)
from backfill.hooks.stream import DEFAULT_BUFFER, EventStream
from backfill.model import JobSpec, checked_int

logger = logging.getLogger(__name__)

Handler: TypeAlias = Callable[[Any], Any]
F = TypeVar("F", bound=Handler)
N = TypeVar("N", bound=Observation)
R = TypeVar("R", bound=RunDecision)
S = TypeVar("S", bound=ScheduleDecision)
V = TypeVar("V", bound=RecoveryDecision)

_AROUND_RUNS: Final = frozenset({JobFetch, BeforeJobRun, JobStart, AfterJobRun, JobRecovery})
_MOST_BUFFERED: Final = 1_000_000


@runtime_checkable
class Plugin(Protocol):
    """A set of handlers that belong together."""

    def register(self, registry: "HookRegistry") -> None:
        """Register the handlers with ``registry.on``; called once, when the plugin is added."""
        ...


@dataclass(slots=True)
class Switches:
    """What a worker's release does besides, as plugins have switched it.

    Attributes:
        dlq_cleanup: A requeued job that is done takes its dead letter with it.
        permanent_failure: An error that is not worth another try ends its job at once.
    """

    dlq_cleanup: bool = True
    permanent_failure: bool = True


class HookRegistry:
    """Handlers by event. One registry can serve several clients and runners.

    Attributes:
        errors: How many handlers have raised (or answered what can't be an answer), by the event's name.
        switches: What ``DlqCleanupPlugin`` and ``PermanentFailurePlugin`` have set.
        around_runs: Whether somebody is to be told or asked in a slot.
        around_adding: Whether somebody is to be asked before jobs are added.
    """

    def __init__(self, plugins: Iterable[Plugin] = ()) -> None:
        """Make a registry, with the handlers of some plugins.

        Args:
            plugins: Added in turn.
        """
        self.errors: Counter[str] = Counter()
        self.switches = Switches()
        self.around_runs = False
        self.around_adding = False
        self._handlers: dict[type[Event], tuple[Handler, ...]] = {}
        self._streams: list[weakref.ref[EventStream]] = []
        self._wanted: frozenset[type[Event]] = frozenset()
        for plugin in plugins:
            self.add_plugin(plugin)

    # -- registering ----------------------------------------------------------------------------

    def add_plugin(self, plugin: Plugin) -> Self:
        """Have a plugin register its handlers.

        Raises:
            ConfigurationError: It is no plugin, or registers what can't be.
        """
        if inspect.isclass(plugin):
            raise ConfigurationError(f"add_plugin takes an instance: write {plugin.__name__}()")
        if not isinstance(plugin, Plugin):
            raise ConfigurationError(f"{plugin!r:.100} is no plugin: it has no method register(registry)")
        plugin.register(self)
        return self

    @overload
    def on(self, event: type[N], handler: Callable[[N], object]) -> Callable[[N], object]: ...
    @overload
    def on(
        self, event: type[R], handler: Callable[[R], HookResult | Awaitable[HookResult]]
    ) -> Callable[[R], HookResult | Awaitable[HookResult]]: ...
    @overload
    def on(
        self, event: type[S], handler: Callable[[S], JobScheduleResult | Awaitable[JobScheduleResult]]
    ) -> Callable[[S], JobScheduleResult | Awaitable[JobScheduleResult]]: ...
    @overload
    def on(
        self, event: type[V], handler: Callable[[V], JobRecoveryResult | Awaitable[JobRecoveryResult]]
    ) -> Callable[[V], JobRecoveryResult | Awaitable[JobRecoveryResult]]: ...
    @overload
    def on(self, event: str, handler: F) -> F: ...
    @overload
    def on(self, event: type[Event] | str) -> Callable[[F], F]: ...
    def on(self, event: type[Event] | str, handler: Handler | None = None) -> Any:
        """Register a handler; without one, a decorator that does.

        Args:
            event: The event's class, or its name such as ``job_complete``.
            handler: A function of the event, sync or async.

        Returns:
            The handler, or the decorator.

        Raises:
            ConfigurationError: There is no such event, or the handler can't be called with one.
        """
        known = event_of(event)
        if handler is None:
            return partial(self._add, known)
        return self._add(known, handler)

    def subscribe(self, *events: type[Observation] | str, buffer: int = DEFAULT_BUFFER) -> EventStream:
        """Collect events in a stream, from now on, for as long as somebody holds it.

        Args:
            events: Classes or names of observations; none = all.
            buffer: How many may wait to be read, 1 to 1,000,000.

        Raises:
            ConfigurationError: There is no such event, or it is a decision, which is asked and not told.
            InvalidJob: The buffer's size is out of range.
        """
        checked_int("buffer", buffer, 1, _MOST_BUFFERED)
        wanted: list[type[Observation]] = []
        for event in events or OBSERVATIONS:
            known = event_of(event)
            if not issubclass(known, Observation):
                raise ConfigurationError(f"{known.name} is a decision and can't be subscribed to: register a handler")
            wanted.append(known)
        stream = EventStream(frozenset(wanted), buffer)
        self._streams.append(weakref.ref(stream, lambda _: self._refresh()))
        self._refresh()
        return stream

    def wants(self, event: type[Event]) -> bool:
        """Whether anybody is to be told of these events, or asked."""
        return event in self._wanted

    def _add(self, event: type[Event], handler: F) -> F:
        _check_handler(event, handler)
        self._handlers[event] = (*self._handlers.get(event, ()), handler)
        self._refresh()
        return handler

    def _refresh(self) -> None:
        """Note anew what is wanted."""
        self._streams = [ref for ref in self._streams if (stream := ref()) is not None and not stream.ended]
        streams = [stream for ref in self._streams if (stream := ref()) is not None]
        self._wanted = frozenset(self._handlers).union(*(stream.wanted for stream in streams))
        self.around_runs = not self._wanted.isdisjoint(_AROUND_RUNS)
        self.around_adding = BeforeJobSchedule in self._handlers

    # -- telling --------------------------------------------------------------------------------

    async def observe(self, event: Observation) -> None:
        """Tell of an event, and wait until all handlers have ended."""
        started = self.start(event)
        if len(started) == 1:
            await started[0]
        elif started:
            await asyncio.gather(*started)

    def start(self, event: Observation) -> list[Coroutine[Any, Any, None]]:
        """Tell of an event; what is returned is to be awaited, and never raises but for a cancellation."""
        kind = type(event)
        started: list[Coroutine[Any, Any, None]] = []
        for handler in self._handlers.get(kind, ()):
            try:
                result = handler(event)
            except (KeyboardInterrupt, GeneratorExit):
                raise
            except BaseException as error:  # noqa: BLE001 - whatever it is, it is the handler's alone
                self._log(event, handler, error)
                continue
            if inspect.isawaitable(result):
                started.append(self._end(event, handler, result))
        for ref in self._streams:
            stream = ref()
            if stream is not None and kind in stream.wanted:
                stream.put(event)
        return started

    async def _end(self, event: Event, handler: Handler, result: Awaitable[Any]) -> None:
        try:
            await result
        except (KeyboardInterrupt, GeneratorExit):
            raise
        except BaseException as error:
            if _is_meant_for_us(error):
                raise
            self._log(event, handler, error)

    def _log(self, event: Event, handler: Handler, error: BaseException) -> None:
        self.errors[event.name] += 1
        logger.error("the %s handler %s failed", event.name, _shown(handler), exc_info=error)

    # -- asking ---------------------------------------------------------------------------------

    async def ask_about_run(self, event: RunDecision) -> Skip | Fail | None:
        """What the handlers say about a run; None: nothing against it."""
        for handler in self._handlers.get(type(event), ()):
            answer = await self._answer(event, handler)
            if isinstance(answer, Continue) and answer.payload is not msgspec.UNSET:
                answer = self._no_answer(event, handler, answer)
            if isinstance(answer, Skip | Fail):
                return answer
        return None

    async def ask_about_recovery(self, event: RecoveryDecision) -> Reschedule | FailWithBackoff | Skip | None:
        """What the handlers say about an interrupted job; None: the default."""
        for handler in self._handlers.get(type(event), ()):
            answer = await self._answer(event, handler)
            if isinstance(answer, Reschedule | FailWithBackoff | Skip):
                return answer
        return None

    async def ask_before_adding(self, identifier: str, payload: Any, spec: JobSpec) -> Any:
        """The payload with which a job is to be added.

        Args:
            identifier: The task's.
            payload: The payload as a JSON value of its own: handlers may change it in place too.
            spec: The job's settings.

        Raises:
            JobScheduleSkipped: A handler said ``Skip``.
            JobScheduleFailed: A handler said ``Fail``, raised, or answered what can't be an answer.
        """
        event = BeforeJobSchedule(identifier=identifier, payload=payload, spec=spec)
        for handler in self._handlers.get(BeforeJobSchedule, ()):
            answer = await self._answer(event, handler)
            if isinstance(answer, Skip):
                raise JobScheduleSkipped(identifier)
            if isinstance(answer, Fail):
                raise JobScheduleFailed(identifier, answer.message) from answer.cause
            if isinstance(answer, Continue) and answer.payload is not msgspec.UNSET:
                event = replace(event, payload=answer.payload)
        return event.payload

    async def _answer(self, event: Event, handler: Handler) -> Any:
        """One handler's answer; ``Fail`` when it raises, or when its answer can't be one."""
        try:
            answer = handler(event)
            if inspect.isawaitable(answer):
                answer = await answer
        except (KeyboardInterrupt, GeneratorExit):
            raise
        except BaseException as error:
            if _is_meant_for_us(error):
                raise
            self._log(event, handler, error)
            message = f"the {event.name} handler {_shown(handler)} raised {type(error).__name__}: {error}"
            return Fail(message, cause=error)
        if answer is None or isinstance(answer, event.answers):
            return answer
        return self._no_answer(event, handler, answer)

    def _no_answer(self, event: Event, handler: Handler, answer: Any) -> Fail:
        self.errors[event.name] += 1
        may_be = ", ".join(kind.__name__ for kind in event.answers)
        message = f"the {event.name} handler {_shown(handler)} returned {answer!r:.100}, not None or one of {may_be}"
        logger.error("%s", message)
        return Fail(message)


def event_of(event: type[Event] | str) -> type[Event]:
    """The event's class, of the class or the name.

    Raises:
        ConfigurationError: There is no such event; the message names those that are like it.
    """
    if isinstance(event, str):
        if event in EVENTS:
            return EVENTS[event]
        close = difflib.get_close_matches(event.lower(), EVENTS, n=2, cutoff=0.5)
        hint = f"did you mean {' or '.join(close)}?" if close else f"there are {', '.join(EVENTS)}"
        raise ConfigurationError(f"there is no event {event!r}: {hint}")
    if event in EVENTS.values():
        return event
    raise ConfigurationError(f"{event!r:.100} is no event: give one of the classes of backfill.hooks, or its name")


def _check_handler(event: type[Event], handler: Any) -> None:
    if not callable(handler):
        raise ConfigurationError(f"a handler of {event.name} must be a function of the event, not {handler!r:.100}")
    if inspect.isgeneratorfunction(handler) or inspect.isasyncgenfunction(handler):
        raise ConfigurationError(f"the {event.name} handler {_shown(handler)} yields; it must return")
    try:
        signature = inspect.signature(handler)
    except (TypeError, ValueError):  # some builtins have none
        return
    try:
        signature.bind(event)
    except TypeError as error:
        raise ConfigurationError(
            f"the {event.name} handler {_shown(handler)}{signature} can't be called with the event alone: {error}"
        ) from error


def _shown(handler: Any) -> str:
    module, name = getattr(handler, "__module__", None), getattr(handler, "__qualname__", None)
    return repr(handler) if module is None or name is None else f"{module}.{name}"


def _is_meant_for_us(error: BaseException) -> bool:
    """Whether it is the cancellation of the task that runs, and not one that a handler has let out."""
    task = asyncio.current_task()
    return isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling() > 0
