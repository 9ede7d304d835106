import pickle

import pytest

import backfill.errors as errors_module
from backfill.errors import (
    AlreadyInProgressError,
    BackfillError,
    CrontabError,
    CrontabProblem,
    DlqEntryNotFound,
    InvalidJob,
    KeyInUse,
    WorkerError,
)

FINAL = {"InvalidInput", "MalformedData", "Unauthorized", "Forbidden", "ResourceNotFound", "ValidationFailed"}
RETRYABLE = {
    "ConnectionTimeout",
    "NetworkError",
    "ServiceUnavailable",
    "RateLimitExceeded",
    "TemporaryUnavailable",
    "JobFailed",
}
OURS = {"ClaimLost"}  # raised by the context, not by handlers


def test_the_worker_errors_are_those_of_the_contract_and_say_whether_to_retry() -> None:
    ours = [kind for kind in WorkerError.__subclasses__() if kind.__module__ == errors_module.__name__]
    kinds = {kind.__name__: kind.is_retryable for kind in ours}
    assert kinds == dict.fromkeys(FINAL, False) | dict.fromkeys(RETRYABLE | OURS, True)


def test_every_error_is_a_backfill_error() -> None:
    classes = [
        item
        for item in vars(errors_module).values()
        if isinstance(item, type) and issubclass(item, Exception) and item.__module__ == errors_module.__name__
    ]
    assert len(classes) == 12 + 1 + 13
    assert all(issubclass(item, BackfillError) for item in classes)


def test_a_refused_job_can_be_caught_as_a_value_error() -> None:
    with pytest.raises(ValueError, match="too long"):
        raise InvalidJob("too long")


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (DlqEntryNotFound(7), ["no entry 7"]),
        (DlqEntryNotFound(7, 99), ["entry 7", "job 99"]),
        (KeyInUse("user:1"), ["'user:1'", "another job"]),
        (KeyInUse("user:1", 12, 7), ["'user:1'", "job 12", "entry 7"]),
        (
            CrontabError(CrontabProblem("hours", "'24'", 3, 3, 2, "* 24 * * * x")),
            ["line 3, column 3", "found '24'", "    ^^"],
        ),
        (AlreadyInProgressError("user:1"), ["'user:1'", "unsafe_dedupe"]),
    ],
)
def test_errors_with_values_name_them_and_survive_pickling(error: BackfillError, words: list[str]) -> None:
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is type(error)
    assert vars(copy) == vars(error)
    for word in words:
        assert word in str(error)
    assert str(copy) == str(error)
