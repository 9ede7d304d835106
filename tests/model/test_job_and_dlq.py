import math
from datetime import UTC, datetime
from typing import Any

import pytest

from backfill.errors import AlreadyInProgressError, InvalidJob, MalformedData
from backfill.model import (
    AlreadyInProgress,
    DlqFilter,
    DlqJob,
    Enqueued,
    EnqueueOutcome,
    Extras,
    Job,
    JobState,
    Queue,
)

NOW = datetime(2026, 5, 1, tzinfo=UTC)


def job(**changes: Any) -> Job:
    values: dict[str, Any] = {
        "id": 1,
        "task_identifier": "t",
        "payload_text": '{"a":[1]}',
        "priority": 0,
        "run_at": NOW,
        "attempts": 1,
    }
    return Job(**(values | {"max_attempts": 8, "created_at": NOW, "updated_at": NOW} | changes))


def entry(**changes: Any) -> DlqJob:
    values: dict[str, Any] = {
        "id": 1,
        "task_identifier": "t",
        "stored_payload": "{}",
        "queue_name": "",
        "priority": 0,
        "failed_at": NOW,
    }
    return DlqJob(**(values | {"failure_reason": "why", "failure_count": 1} | changes))


def test_a_payload_is_read_once_when_it_is_asked_for() -> None:
    one = job()
    assert one.payload == {"a": [1]}
    assert one.payload is one.payload
    broken = job(payload_text="9" * 5000)
    with pytest.raises(MalformedData):
        _ = broken.payload


def test_a_job_cannot_change_and_compares_by_its_values() -> None:
    with pytest.raises(AttributeError):
        job().attempts = 5  # type: ignore[misc]  # the refusal is what is tested
    read = job()
    assert read.payload
    assert read == job()
    assert read != job(attempts=2)


@pytest.mark.parametrize(("attempts", "last"), [(1, False), (7, False), (8, True), (9, True)])
def test_the_last_attempt_is_the_one_that_reaches_the_limit(attempts: int, last: bool) -> None:
    assert job(attempts=attempts).is_last_attempt is last


def test_a_job_s_queue() -> None:
    assert job().queue == Queue.PARALLEL
    assert job(queue_name="q").queue == Queue.serial("q")


def test_states_are_the_design_s_words() -> None:
    assert [str(state) for state in JobState] == ["scheduled", "ready", "running", "failed", "dead"]
    assert job().state is None
    assert job().extras == Extras()


def test_an_enqueued_outcome_has_the_job() -> None:
    outcome: EnqueueOutcome = Enqueued(job())
    assert outcome.job == outcome.unwrap() == job()
    assert (outcome.is_enqueued, outcome.is_already_in_progress, outcome.conflicting_job_key) == (True, False, None)


def test_an_outcome_without_a_job_raises_when_unwrapped() -> None:
    outcome: EnqueueOutcome = AlreadyInProgress("user:1")
    assert outcome.job is None
    assert (outcome.is_enqueued, outcome.is_already_in_progress, outcome.conflicting_job_key) == (False, True, "user:1")
    with pytest.raises(AlreadyInProgressError, match="'user:1'") as caught:
        outcome.unwrap()
    assert caught.value.job_key == "user:1"


@pytest.mark.parametrize(
    ("stored", "text", "value"),
    [
        ('{"a": 1}', '{"a": 1}', {"a": 1}),
        ("null", "null", None),
        (r'{"backfill:json": "{\"a\":\"\\u0000\"}"}', '{"a":"\\u0000"}', {"a": "\x00"}),
        ('{"backfill:json": "1e400000"}', "1e400000", math.inf),
        ('{"backfill:json": 1}', '{"backfill:json": 1}', {"backfill:json": 1}),
        ('{"backfill:json": "1", "b": 2}', '{"backfill:json": "1", "b": 2}', {"backfill:json": "1", "b": 2}),
        ('["backfill:json"]', '["backfill:json"]', ["backfill:json"]),
    ],
)
def test_an_entry_s_payload_is_the_job_s_own(stored: str, text: str, value: object) -> None:
    one = entry(stored_payload=stored)
    assert one.payload_text == text
    assert one.payload == value


def test_the_empty_queue_name_is_the_parallel_queue_and_default_is_a_real_one() -> None:
    assert entry().queue == Queue.PARALLEL
    assert entry(queue_name="default").queue == Queue.serial("default")


def test_an_entry_is_out_while_its_job_is_elsewhere() -> None:
    assert not entry().is_out
    assert entry(requeued_job_id=5).is_out


def test_a_filter_asks_for_fifty_by_default() -> None:
    assert (DlqFilter().limit, DlqFilter().offset, DlqFilter(queue_name="").queue_name) == (50, 0, "")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("failed_after", datetime(2026, 1, 1)),  # noqa: DTZ001 - a naive datetime is what is refused
        ("failed_before", "yesterday"),
        ("limit", 0),
        ("limit", 10_001),
        ("limit", True),
        ("offset", -1),
        ("task_identifier", 5),
        ("queue_name", Queue.PARALLEL),
        ("job_key", 5),
    ],
)
def test_a_filter_refuses_what_cannot_be(field: str, value: Any) -> None:
    with pytest.raises(InvalidJob, match=field):
        DlqFilter(**{field: value})
