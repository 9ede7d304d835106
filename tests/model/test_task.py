import inspect
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest

from backfill.errors import ConfigurationError, InvalidJob
from backfill.model import (
    JobSpec,
    RetryPolicy,
    Task,
    TaskHandler,
    TaskOptions,
    decode_payload,
    encode_payload,
    options_of,
    task,
)


@dataclass
class Mail:
    to: str


@task
async def send(payload: Mail) -> str:
    """Send it."""
    return payload.to


@task("crunch-numbers", retry_policy=RetryPolicy.fast(), max_attempts=4, timeout=timedelta(seconds=30))
def crunch(payload: list[int], ctx: object) -> int:
    return sum(payload)


def test_a_bare_decorator_takes_the_function_s_name() -> None:
    assert isinstance(send, Task)
    assert (send.identifier, send.executor) == ("send", "inline")
    assert (send.options.retry_policy, send.options.max_attempts, send.options.timeout) == (None, None, None)


def test_settings_are_carried() -> None:
    assert (crunch.identifier, crunch.executor) == ("crunch-numbers", "thread")
    options = crunch.options
    assert (options.retry_policy, options.max_attempts, options.timeout) == (
        RetryPolicy.fast(),
        4,
        timedelta(seconds=30),
    )


async def test_a_task_is_still_the_function() -> None:
    assert crunch([1, 2], None) == 3
    assert await send(Mail("a@example.com")) == "a@example.com"
    assert (vars(send)["__name__"], send.__doc__) == ("send", "Send it.")
    assert list(inspect.signature(crunch).parameters) == ["payload", "ctx"]


def test_a_task_knows_where_it_was_defined() -> None:
    file, line = crunch.options.where.rsplit(":", 1)
    source = Path(file).read_text().splitlines()
    assert "crunch" in "".join(source[int(line) - 1 : int(line) + 1])
    assert crunch.options.where in repr(crunch)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"identifier": ""}, "identifier"),
        ({"identifier": "x" * 129}, "identifier"),
        ({"identifier": "a\x00"}, "identifier"),
        ({"identifier": 5}, "identifier"),
        ({"max_attempts": 0}, "max_attempts"),
        ({"timeout": timedelta(0)}, "timeout"),
        ({"timeout": 5}, "timeout"),
        ({"retry_policy": "fast"}, "retry_policy"),
    ],
)
def test_settings_that_cannot_be_are_refused_with_the_place(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidJob, match=rf"test_task\.py:\d+: .*{words}"):

        @task(**settings)
        def refused(payload: object) -> None: ...


def test_what_cannot_run_a_job_is_no_task() -> None:
    with pytest.raises(ConfigurationError, match="generator"):

        @task
        def counts(payload: object) -> Iterator[int]:
            yield 1

    with pytest.raises(ConfigurationError, match="generator"):

        @task
        async def streams(payload: object) -> AsyncIterator[int]:
            yield 1

    with pytest.raises(ConfigurationError, match="TaskHandler"):
        task("name")(Mail)


OPTIONS = TaskOptions(
    identifier="t", retry_policy=RetryPolicy.fast(), max_attempts=4, timeout=timedelta(seconds=30), where="here:1"
)


def test_a_spec_takes_what_it_does_not_say_from_the_task() -> None:
    spec = OPTIONS.apply_to()
    assert (spec.retry_policy, spec.max_attempts, spec.timeout) == (RetryPolicy.fast(), 4, timedelta(seconds=30))
    assert OPTIONS.apply_to(JobSpec(job_key="k", priority=5)) == JobSpec(
        job_key="k", priority=5, retry_policy=RetryPolicy.fast(), max_attempts=4, timeout=timedelta(seconds=30)
    )


def test_what_a_spec_says_wins() -> None:
    assert OPTIONS.apply_to(JobSpec(max_attempts=9)).max_attempts == 9
    assert OPTIONS.apply_to(JobSpec(timeout=timedelta(1))).timeout == timedelta(1)
    spec = OPTIONS.apply_to(JobSpec(retry_policy=RetryPolicy.conservative()))
    assert (spec.retry_policy, spec.max_attempts) == (RetryPolicy.conservative(), 5)


def test_without_a_limit_of_its_own_the_task_s_policy_gives_it() -> None:
    assert (
        TaskOptions(identifier="t", retry_policy=RetryPolicy.aggressive(), where="here:1").apply_to().max_attempts == 12
    )
    assert TaskOptions(identifier="t", where="here:1").apply_to() == JobSpec()


@dataclass(slots=True)
class Resize(TaskHandler):
    IDENTIFIER = "resize"
    RETRY_POLICY = RetryPolicy.fast()
    MAX_ATTEMPTS = 6
    TIMEOUT = timedelta(seconds=5)

    width: int
    height: int = 100

    async def run(self, ctx: object) -> int:
        return self.width * self.height


class Crop(TaskHandler, msgspec.Struct, frozen=True):
    width: int

    IDENTIFIER = "crop"

    async def run(self, ctx: object) -> int:
        return self.width


@pytest.mark.parametrize(("cls", "area"), [(Resize, 200), (Crop, 2)])
async def test_a_handler_class_is_its_own_payload(cls: Any, area: int) -> None:
    encoded = encode_payload(cls(width=2))
    payload = decode_payload(encoded, cls)
    assert payload == cls(width=2)
    assert await payload.run(None) == area
    assert set(msgspec.json.decode(encoded)) <= {"width", "height"}, "the settings are no part of the payload"


def test_a_handler_class_and_its_instances_have_options() -> None:
    options = options_of(Resize)
    assert options is options_of(Resize(1))
    assert (options.identifier, options.retry_policy, options.max_attempts) == ("resize", RetryPolicy.fast(), 6)
    assert options.timeout == timedelta(seconds=5)
    assert "test_task.py:" in options.where
    assert options_of(Crop).identifier == "crop"
    assert options_of(send) is send.options


class Nameless(TaskHandler):
    async def run(self, ctx: object) -> None: ...


class Idle(TaskHandler):
    IDENTIFIER = "idle"


class Hasty(TaskHandler):
    IDENTIFIER = "hasty"
    TIMEOUT = timedelta(0)

    async def run(self, ctx: object) -> None: ...


def test_incomplete_handlers_are_refused_with_their_place() -> None:
    with pytest.raises(ConfigurationError, match=r"Nameless at .*test_task\.py:\d+ has no IDENTIFIER"):
        options_of(Nameless)
    with pytest.raises(ConfigurationError, match=r"Idle at .* has no `async def run"):
        options_of(Idle)
    with pytest.raises(InvalidJob, match=r"test_task\.py:\d+: timeout"):
        options_of(Hasty)
    with pytest.raises(ConfigurationError, match="is no task"):
        options_of(cast("Any", Mail))
