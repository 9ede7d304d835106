import dataclasses
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest

from backfill.errors import InvalidJob
from backfill.model import Extras, JobKeyMode, JobSpec, Priority, Queue, RetryPolicy, decode_flags

NOW = datetime(2026, 5, 1, 12, tzinfo=UTC)


def test_the_default_is_a_parallel_bulk_job_that_runs_now() -> None:
    spec = JobSpec()
    assert (spec.run_at, spec.priority, spec.queue, spec.job_key) == (None, Priority.BULK_DEFAULT, Queue.PARALLEL, None)
    assert spec.job_key_mode is JobKeyMode.REPLACE
    assert spec.max_attempts is None
    assert spec.effective_max_attempts() == 8
    assert spec.effective_retry_policy() == RetryPolicy.default()
    assert spec.stored_flags() is None


def test_values_are_kept_in_their_own_types() -> None:
    spec = JobSpec(
        run_at=datetime(2026, 1, 1, 1, tzinfo=timezone(timedelta(hours=1))),
        priority=-10,
        queue="user:1",
        job_key_mode="preserve_run_at",
        flags=["b", "a", "a"],
    )
    assert spec.run_at == datetime(2026, 1, 1, tzinfo=UTC)
    assert spec.run_at.tzinfo is UTC
    assert spec.priority is not None
    assert spec.priority.band == "fast_high"
    assert spec.queue == Queue.serial("user:1")
    assert spec.job_key_mode is JobKeyMode.PRESERVE_RUN_AT
    assert spec.flags == {"a", "b"}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("run_at", datetime(2026, 1, 1)),  # noqa: DTZ001 - a naive datetime is what is refused
        ("run_at", "2026-01-01T00:00:00Z"),
        ("run_at", datetime.min.replace(tzinfo=timezone(timedelta(hours=14)))),
        ("priority", 32768),
        ("priority", -32769),
        ("priority", True),
        ("priority", 1.5),
        ("queue", ""),
        ("queue", "q" * 129),
        ("queue", 7),
        ("max_attempts", 0),
        ("max_attempts", 32768),
        ("max_attempts", True),
        ("max_attempts", "3"),
        ("retry_policy", "fast"),
        ("job_key", ""),
        ("job_key", "k" * 513),
        ("job_key", "a\x00b"),
        ("job_key", 12),
        ("job_key_mode", "append"),
        ("job_key_mode", None),
        ("flags", {"backfill:retry=fast"}),
        ("flags", {""}),
        ("flags", {"a\x00b"}),
        ("flags", {5}),
        ("flags", "urgent"),
        ("flags", 5),
        ("timeout", timedelta(0)),
        ("timeout", timedelta(seconds=-1)),
        ("timeout", 30),
        ("deadline", datetime(2026, 1, 1)),  # noqa: DTZ001 - a naive datetime is what is refused
        ("deadline", 5),
    ],
)
def test_each_field_refuses_what_cannot_be_and_says_its_name(field: str, value: Any) -> None:
    with pytest.raises(InvalidJob, match=field):
        JobSpec(**{field: value})


def test_the_longest_texts_are_allowed() -> None:
    assert JobSpec(job_key="k" * 512, queue="q" * 128, max_attempts=32767, priority=-32768).job_key == "k" * 512


def test_a_spec_is_keyword_only_frozen_and_comparable() -> None:
    with pytest.raises(TypeError):
        JobSpec(NOW)  # type: ignore[call-arg]  # the refusal is what is tested
    spec = JobSpec(job_key="k")
    with pytest.raises(dataclasses.FrozenInstanceError):
        spec.job_key = "other"  # type: ignore[misc]  # the refusal is what is tested
    assert spec == JobSpec(job_key="k")
    assert len({spec, JobSpec(job_key="k"), JobSpec()}) == 2
    assert dataclasses.replace(spec, priority=Priority(5)) == JobSpec(job_key="k", priority=5)


@pytest.mark.parametrize(("name", "limit"), [("fast", 3), ("aggressive", 12), ("conservative", 5)])
def test_a_preset_brings_its_limit_whatever_was_there(name: str, limit: int) -> None:
    policy = getattr(RetryPolicy, name)()
    for spec in (
        JobSpec(job_key="k"),
        JobSpec(job_key="k", max_attempts=20),
        JobSpec(job_key="k", retry_policy=RetryPolicy(9)),
    ):
        changed = getattr(spec, f"with_{name}_retries")()
        assert changed == spec.with_retry_policy(policy) == JobSpec(job_key="k", retry_policy=policy)
        assert changed.effective_retry_policy() == policy
        assert changed.max_attempts == changed.effective_max_attempts() == limit


def test_an_explicit_limit_wins_over_the_policy_s() -> None:
    spec = JobSpec(max_attempts=20, retry_policy=RetryPolicy.fast())
    assert spec.effective_max_attempts() == 20
    retry_at = spec.calculate_retry_time(18, NOW)
    assert retry_at is not None
    assert timedelta(seconds=26) < retry_at - NOW < timedelta(seconds=34), "beyond the policy's attempts it still waits"
    assert spec.calculate_retry_time(19, NOW) is None


def test_there_is_a_retry_time_after_every_attempt_but_the_last() -> None:
    spec = JobSpec(retry_policy=RetryPolicy(4, 10, 1000, 3, 0))
    times = [spec.calculate_retry_time(attempt, NOW) for attempt in range(5)]
    waits = [None if time is None else (time - NOW).total_seconds() for time in times]
    assert waits == [10, 30, 90, None, None]
    assert JobSpec(max_attempts=1).calculate_retry_time(0, NOW) is None


def test_retry_times_need_a_moment_and_a_count() -> None:
    with pytest.raises(InvalidJob, match="failed_at"):
        JobSpec().calculate_retry_time(0, datetime(2026, 1, 1))  # noqa: DTZ001 - a naive datetime is what is refused
    with pytest.raises(InvalidJob, match="attempt"):
        JobSpec().calculate_retry_time(-1, NOW)


def test_extras_travel_in_the_stored_flags() -> None:
    spec = JobSpec(flags={"gpu"}, retry_policy=RetryPolicy.fast(), timeout=timedelta(minutes=2), deadline=NOW)
    names = spec.stored_flags()
    assert names is not None
    flags, extras = decode_flags(dict.fromkeys(names, True))
    assert flags == {"gpu"}
    assert extras.retry_policy is not None
    assert extras.retry_policy.preset_name == "fast"
    assert extras == Extras(retry_policy=extras.retry_policy, timeout=timedelta(minutes=2), deadline=NOW)
    assert JobSpec(deadline=NOW).stored_flags() == ["backfill:deadline=2026-05-01T12:00:00+00:00"]
    assert JobSpec(timeout=timedelta(seconds=90)).stored_flags() == ["backfill:timeout=90"]
    assert JobSpec(flags={"gpu", "big"}).stored_flags() == ["big", "gpu"]


def test_the_key_modes_are_the_words_of_the_sql_function() -> None:
    assert {str(mode) for mode in JobKeyMode} == {"replace", "preserve_run_at", "unsafe_dedupe"}
