"""From a task to what a slot calls: parameters, payload types, and definitions that cannot run jobs."""

import dataclasses
from collections.abc import Callable
from types import ModuleType
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, TypedDict

import msgspec
import pytest

from backfill.errors import ConfigurationError, MalformedData
from backfill.model import Task, TaskHandler, task
from backfill.worker import WorkerContext
from backfill.worker.handler import Handler, make_handler

if TYPE_CHECKING:
    from pathlib import Path

CONTEXT: Any = object()


class Mail(TypedDict):
    to: str


class Letter(msgspec.Struct):
    to: str
    copies: int = 1


@dataclasses.dataclass
class Resize(TaskHandler):
    IDENTIFIER: ClassVar[str] = "resize"
    width: int

    async def run(self, ctx: WorkerContext) -> None:
        raise NotImplementedError


class Crop(msgspec.Struct, TaskHandler):
    IDENTIFIER: ClassVar[str] = "crop"
    width: int

    async def run(self) -> None:  # type: ignore[override] # not typed, but it runs
        raise NotImplementedError


def arguments(handler: Handler, payload: str) -> tuple[Any, ...]:
    return handler.arguments(payload, lambda: CONTEXT)


def source(folder: "Path", code: str) -> ModuleType:
    """A module of that code that `sys.modules` does not have, as when a file is run."""
    file = folder / "some_tasks.py"
    file.write_text(code)
    module = ModuleType("some_tasks_of_this_test")
    exec(compile(code, str(file), "exec"), module.__dict__)
    return module


@task
async def payload_only(payload: Any) -> None: ...


@task
async def unannotated(payload) -> None: ...  # type: ignore[no-untyped-def] # as users may write it


@task
async def payload_and_context(payload: dict[str, int], ctx: WorkerContext) -> None: ...


@task
async def context_and_payload(ctx: WorkerContext, payload: dict[str, int]) -> None: ...


@task
async def context_only(ctx: WorkerContext) -> None: ...


@task
async def nothing() -> None: ...


@task
async def positional_only(payload: list[int], /, ctx: "WorkerContext") -> None: ...


@task
async def with_defaults(payload: int = 3, ctx: WorkerContext | None = None) -> None: ...


@task
def in_a_thread(payload: Annotated[int, msgspec.Meta(ge=0)]) -> None: ...


@pytest.mark.parametrize(
    ("defined", "payload", "expected"),
    [
        (payload_only, '{"a": [1]}', ({"a": [1]},)),
        (payload_only, "null", (None,)),
        (unannotated, "[1.5]", ([1.5],)),
        (payload_and_context, '{"a": 1}', ({"a": 1}, CONTEXT)),
        (context_and_payload, '{"a": 1}', (CONTEXT, {"a": 1})),
        (context_only, '{"a": 1}', (CONTEXT,)),
        (nothing, '{"a": 1}', ()),
        (positional_only, "[1]", ([1], CONTEXT)),
        (in_a_thread, "7", (7,)),
    ],
)
def test_arguments(defined: Task[Any], payload: str, expected: tuple[Any, ...]) -> None:
    assert arguments(make_handler(defined), payload) == expected


def test_plain_functions_run_in_threads() -> None:
    assert make_handler(in_a_thread).in_thread
    assert not make_handler(payload_only).in_thread


@pytest.mark.parametrize(
    ("payload_type", "payload", "expected"),
    [
        (Mail, '{"to": "a"}', {"to": "a"}),
        (Letter, '{"to": "a"}', Letter("a", 1)),
        (int, "3", 3),
        (str | None, "null", None),
        (list[Letter], '[{"to": "a"}]', [Letter("a")]),
    ],
)
def test_payload_types(payload_type: Any, payload: str, expected: Any) -> None:
    async def fn(payload) -> None: ...  # type: ignore[no-untyped-def] # annotated below

    fn.__annotations__["payload"] = payload_type
    assert arguments(make_handler(task("typed")(fn)), payload) == (expected,)


@pytest.mark.parametrize("payload", ['{"to": 3}', "{}", "[]", "null", '"x"'])
def test_a_payload_that_does_not_fit_is_malformed(payload: str) -> None:
    @task
    async def send(payload: Mail) -> None: ...

    with pytest.raises(MalformedData, match="Mail"):
        arguments(make_handler(send), payload)


def test_a_class_is_its_payload() -> None:
    resize, crop = make_handler(Resize), make_handler(Crop)
    assert arguments(resize, '{"width": 4}') == (Resize(4), CONTEXT)
    assert arguments(crop, '{"width": 4}') == (Crop(4),)
    assert (resize.identifier, resize.function, resize.in_thread) == ("resize", Resize.run, False)
    with pytest.raises(MalformedData, match="Resize"):
        arguments(resize, '{"height": 4}')


def test_a_typed_dict_may_be_a_class_of_the_payload_but_not_the_handler() -> None:
    with pytest.raises(ConfigurationError, match="no task"):
        make_handler(Mail)  # type: ignore[arg-type] # that is the test


def too_many_payloads() -> Any:
    @task
    async def both(first: int, second: int) -> None: ...

    return both


def too_many_contexts() -> Any:
    @task
    async def both(first: WorkerContext, second: WorkerContext) -> None: ...

    return both


def keyword_only() -> Any:
    @task  # type: ignore[arg-type] # that is the test
    async def odd(*, payload: int) -> None: ...

    return odd


def star_arguments() -> Any:
    @task
    async def odd(*payload: int) -> None: ...

    return odd


def optional_context() -> Any:
    return with_defaults


def impossible_payload() -> Any:
    @task
    async def odd(payload: Callable[[], None]) -> None: ...

    return odd


def unreadable_annotation() -> Any:
    @task
    async def odd(payload: "NoSuchType") -> None: ...  # type: ignore[name-defined] # noqa: F821 - that is the test

    return odd


def run_with_three() -> Any:
    class Odd(TaskHandler):
        IDENTIFIER: ClassVar[str] = "odd"

        async def run(self, ctx: Any, more: Any) -> None: ...  # type: ignore[override] # that is the test

    return Odd


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (too_many_payloads, "'second' is one too many: annotate the context as WorkerContext"),
        (too_many_contexts, "'second' is one too many: one context is enough"),
        (optional_context, "'ctx' is one too many: annotate"),
        (keyword_only, "'payload' must be a plain one"),
        (star_arguments, "'payload' must be a plain one"),
        (impossible_payload, "cannot be a payload's type"),
        (unreadable_annotation, "'NoSuchType', cannot be read"),
        (run_with_three, r"run takes \(self\) or \(self, ctx\), not \(self, ctx, more\)"),
    ],
)
def test_a_definition_that_cannot_run_is_refused_with_its_place(make: Callable[[], Any], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words) as caught:
        make_handler(make())
    assert f"{__file__}:" in str(caught.value)


def test_annotations_as_text(tmp_path: "Path") -> None:
    module = source(
        tmp_path,
        "from __future__ import annotations\n"
        "import msgspec\n"
        "from typing import TYPE_CHECKING\n"
        "from backfill.model import task\n"
        "if TYPE_CHECKING:\n"
        "    import backfill\n"
        "    from backfill.worker import WorkerContext\n"
        "class Letter(msgspec.Struct):\n"
        "    to: str\n"
        "@task\n"
        "async def send(payload: Letter, ctx: WorkerContext) -> None: ...\n"
        "@task\n"
        "async def other(ctx: backfill.WorkerContext, payload: list[int] | None) -> None: ...\n",
    )
    assert arguments(make_handler(module.send), '{"to": "a"}') == (module.Letter("a"), CONTEXT)
    assert arguments(make_handler(module.other), "null") == (CONTEXT, None)


def test_an_annotation_that_is_only_there_for_type_checkers_says_so(tmp_path: "Path") -> None:
    module = source(
        tmp_path,
        "from __future__ import annotations\n"
        "from typing import TYPE_CHECKING\n"
        "from backfill.model import task\n"
        "if TYPE_CHECKING:\n"
        "    from decimal import Decimal\n"
        "\n"
        "@task\n"
        "async def send(payload: Decimal) -> None: ...\n",
    )
    with pytest.raises(
        ConfigurationError, match=r"some_tasks\.py:7: the annotation of 'payload', 'Decimal', cannot be read"
    ):
        make_handler(module.send)


def test_the_return_type_need_not_be_readable(tmp_path: "Path") -> None:
    module = source(
        tmp_path,
        "from backfill.model import task\n@task\nasync def send(payload: int) -> 'NoSuchType': ...\n",
    )
    assert arguments(make_handler(module.send), "3") == (3,)
