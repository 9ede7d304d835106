"""Which errors are worth another try, and how an error is written down."""

import asyncio
import json
import traceback
from typing import Any

import pytest

from backfill import errors
from backfill.errors import WorkerError
from backfill.worker import JobTimeoutError
from backfill.worker import slot as slot_module
from backfill.worker.classify import describe, detail, is_retryable, storable

NEVER = ("InvalidInput", "MalformedData", "Unauthorized", "Forbidden", "ResourceNotFound", "ValidationFailed")
AGAIN = (
    "ConnectionTimeout",
    "NetworkError",
    "ServiceUnavailable",
    "RateLimitExceeded",
    "TemporaryUnavailable",
    "JobFailed",
)


class OwnFinalError(WorkerError):
    is_retryable = False


class OwnValueError(ValueError):
    pass


class UnprintableError(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


def undecodable() -> UnicodeDecodeError:
    return UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad")


@pytest.mark.parametrize("name", NEVER)
def test_worker_errors_that_are_never_tried_again(name: str) -> None:
    assert not is_retryable(getattr(errors, name)("connection timed out"))


@pytest.mark.parametrize("name", AGAIN)
def test_worker_errors_that_are_tried_again(name: str) -> None:
    assert is_retryable(getattr(errors, name)("no"))


@pytest.mark.parametrize(
    "error",
    [
        OSError("disk"),
        FileNotFoundError("gone"),
        PermissionError("no"),
        ConnectionResetError("reset"),
        BrokenPipeError("pipe"),
        TimeoutError(),
        asyncio.CancelledError(),
        asyncio.QueueFull(),
        RuntimeError("whatever"),
        RecursionError("deep"),
        MemoryError(),
        AssertionError("wrong"),
        EOFError(),
        SystemExit(1),
        Exception("unknown"),
        WorkerError("plain"),
        JobTimeoutError("30 s"),
        UnprintableError(),
    ],
    ids=repr,
)
def test_tried_again(error: BaseException) -> None:
    assert is_retryable(error)


@pytest.mark.parametrize(
    "error",
    [
        TypeError("x"),
        ValueError("x"),
        OwnValueError("x"),
        undecodable(),
        json.JSONDecodeError("x", "doc", 0),
        LookupError("x"),
        KeyError("x"),
        IndexError("x"),
        AttributeError("x"),
        NameError("x"),
        UnboundLocalError("x"),
        ArithmeticError("x"),
        ZeroDivisionError("x"),
        OverflowError("x"),
        SyntaxError("x"),
        IndentationError("x"),
        NotImplementedError("x"),
        OwnFinalError("connection lost"),
    ],
    ids=repr,
)
def test_never_tried_again(error: BaseException) -> None:
    assert not is_retryable(error)


@pytest.mark.parametrize(
    "message",
    [
        "timed out",
        "read timeout",
        "Time-out",
        "temporarily down",
        "Service Unavailable",
        "connection refused",
        "cannot connect to host",
        "network is unreachable",
        "Too Many Requests",
        "rate limit exceeded",
        "rate-limited",
        "request was throttled",
        "please try again",
        "deadlock detected",
        "serialization failure",
        "HTTP 429",
        "status=502",
        "got 503.",
        "504",
    ],
)
def test_a_message_can_make_a_final_error_retryable(message: str) -> None:
    assert is_retryable(ValueError(message))
    assert is_retryable(KeyError(message))


@pytest.mark.parametrize(
    "message",
    ["", "500", "15020 rows", "1429", "no such user", "timeless", "reconnected", "line 502", "at position 504"],
)
def test_other_messages_change_nothing(message: str) -> None:
    assert not is_retryable(ValueError(message))
    assert is_retryable(RuntimeError(message))


def test_no_message_makes_an_error_final() -> None:
    assert is_retryable(OSError("invalid value, permission denied, not found"))


def test_a_group_is_retryable_if_one_of_its_errors_is() -> None:
    final, passing = ValueError("x"), OSError("x")
    assert not is_retryable(ExceptionGroup("g", [final, KeyError("k")]))
    assert is_retryable(ExceptionGroup("g", [final, passing]))
    assert is_retryable(ExceptionGroup("g", [final, ExceptionGroup("inner", [passing])]))
    assert not is_retryable(ExceptionGroup("connection", [ExceptionGroup("timed out", [final])]))
    assert is_retryable(BaseExceptionGroup("g", [final, asyncio.CancelledError()]))


def test_describe_names_the_type() -> None:
    assert describe(ValueError("no such thing")) == "ValueError: no such thing"
    assert describe(TimeoutError()) == "TimeoutError"
    assert describe(UnprintableError()) == "UnprintableError: (its text raised RuntimeError)"


@pytest.mark.parametrize(
    ("text", "stored"),
    [("a\x00b", "ab"), ("half \ud800 pair", "half ? pair"), ("\udcff", "?"), ("𐍈 ü", "𐍈 ü"), ("", "")],
)
def test_what_postgresql_cannot_store_is_left_out(text: str, stored: str) -> None:
    assert storable(text, 100) == stored


def test_long_texts_are_cut_and_say_so() -> None:
    assert storable("x" * 100, 100) == "x" * 100
    assert storable("x" * 103, 100) == "x" * 100 + " [3 characters left out]"
    assert storable("a" * 50 + "z" * 100, 100, keep_end=True) == "[50 characters left out] " + "z" * 100
    assert len(describe(ValueError("y" * 10_000_000))) < 10_100


def parsed(error: BaseException, **more: Any) -> dict[str, Any]:
    value = json.loads(detail(error, **more))
    assert isinstance(value, dict)
    return value


def raised(error: BaseException) -> BaseException:
    try:
        raise error  # noqa: TRY301 - to give it a traceback
    except BaseException as caught:  # noqa: BLE001 - the error with its traceback
        return caught


def test_detail_has_all_there_is_to_know() -> None:
    value = parsed(raised(errors.InvalidInput("bad")), attempt=2, worker_id="w")
    assert value["type"] == "backfill.errors.InvalidInput"
    assert value["message"] == "bad"
    assert value["retryable"] is False
    assert "in raised" in value["traceback"]
    assert (value["attempt"], value["worker_id"]) == (2, "w")
    assert parsed(ValueError("x"))["type"] == "ValueError"


@pytest.mark.parametrize("text", ["a\x00b", "\ud800", "m" * 10_000_000])
def test_detail_is_small_valid_json_whatever_the_message(text: str) -> None:
    encoded = detail(raised(RuntimeError(text)))
    assert "\\u0000" not in encoded
    assert len(encoded.encode()) < 40_000
    assert json.loads(encoded)["type"] == "RuntimeError"


def broken_syntax_error() -> SyntaxError:
    error = SyntaxError("odd")
    error.lineno, error.offset, error.text, error.filename = "one", "two", 3, 4  # type: ignore[assignment] # that is the test
    return error


def error_with_odd_notes() -> Exception:
    error = ValueError("noted")
    error.__notes__ = 5  # type: ignore[assignment] # that is the test
    return error


@pytest.mark.parametrize("error", [UnprintableError(), broken_syntax_error(), error_with_odd_notes()], ids=repr)
def test_errors_that_cannot_be_formatted_are_described_all_the_same(error: BaseException) -> None:
    value = parsed(raised(error))
    assert value["type"].endswith(type(error).__name__)
    assert describe(error).startswith(type(error).__name__)


def test_a_dead_letters_traceback_begins_in_the_handler() -> None:
    slot = compile("def run(handler):\n    handler()\n", slot_module.__file__, "exec")
    names: dict[str, Any] = {}
    exec(slot, names)

    def handler() -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no") as caught:
        names["run"](handler)
    shown = json.loads(detail(caught.value))["traceback"]
    assert "in handler" in shown
    assert "slot.py" not in shown


def fails_in_two_places(way: int, inner: Exception | None = None) -> None:
    if way == 0:
        raise ValueError("first")
    if way == 1:
        raise OSError("second") from inner
    [1, 2, 3].index(way * 10 + len("some text") // 2)


@pytest.mark.parametrize("way", [0, 1, 2])
@pytest.mark.parametrize("inner", [None, KeyError("cause")])
def test_a_traceback_is_the_same_each_time_it_is_shown(way: int, inner: Exception | None) -> None:
    """What is kept of one place must fit the errors of that place, and no others."""
    for _ in range(3):
        with pytest.raises((ValueError, OSError)) as caught:
            fails_in_two_places(way, inner)
        caught.value.add_note("and a note")
        assert json.loads(detail(caught.value))["traceback"] == "".join(traceback.format_exception(caught.value))


def test_the_same_function_in_two_files_is_told_apart() -> None:
    for file in ("/one.py", "/other.py"):
        names: dict[str, Any] = {}
        exec(compile("def handler():\n    raise ValueError('no')\n", file, "exec"), names)
        with pytest.raises(ValueError, match="no") as caught:
            names["handler"]()
        assert file in json.loads(detail(caught.value))["traceback"]
