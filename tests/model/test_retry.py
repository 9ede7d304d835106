import math
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from backfill.errors import InvalidJob
from backfill.model import RetryPolicy, graphile_delay

CENTURY = 36500 * 86400.0
TICK = 2e-6  # a timedelta counts microseconds


@st.composite
def policies(draw: st.DrawFn, jitter: st.SearchStrategy[float] | None = None) -> RetryPolicy:
    longest = draw(st.floats(0, CENTURY))
    return RetryPolicy(
        max_attempts=draw(st.integers(1, 32767)),
        initial_delay=draw(st.floats(0, longest)),
        max_delay=longest,
        backoff_multiplier=draw(st.one_of(st.floats(1, 10), st.floats(1, 1e308))),
        jitter_factor=draw(jitter if jitter is not None else st.floats(0, 1)),
    )


def base_wait(policy: RetryPolicy, attempt: int) -> float:
    """Grow step by step, as one would by hand."""
    wait, longest = policy.initial_delay.total_seconds(), policy.max_delay.total_seconds()
    for _ in range(attempt):
        if wait in {0.0, longest} or policy.backoff_multiplier == 1:
            break
        wait = min(wait * policy.backoff_multiplier, longest)
    return wait


@given(policies(), st.integers(0, 3000))
def test_a_wait_stays_within_its_jitter_band(policy: RetryPolicy, attempt: int) -> None:
    wait = policy.backoff(attempt).total_seconds()
    base = base_wait(policy, attempt)
    slack = TICK + base * 1e-9
    assert base * (1 - policy.jitter_factor) - slack <= wait <= base * (1 + policy.jitter_factor) + slack
    assert 0 <= wait <= policy.max_delay.total_seconds() * (1 + policy.jitter_factor) + TICK


@given(policies(jitter=st.just(0.0)), st.integers(0, 32766))
def test_without_jitter_a_later_attempt_never_waits_less(policy: RetryPolicy, attempt: int) -> None:
    assert policy.backoff(attempt) <= policy.backoff(attempt + 1) <= policy.max_delay


@given(policies())
def test_no_attempt_overflows(policy: RetryPolicy) -> None:
    failed_at = datetime(2026, 1, 1, tzinfo=UTC)
    for attempt in (0, 1, 1023, 1024, 32766, 32767):
        assert policy.calculate_retry_time(attempt, failed_at) >= failed_at
        assert policy.backoff(attempt) >= timedelta(0)


@given(policies(jitter=st.just(0.0)), st.integers(0, 40000))
def test_the_delay_is_zero_once_attempts_are_used_up(policy: RetryPolicy, attempt: int) -> None:
    expected = policy.backoff(attempt) if attempt < policy.max_attempts else timedelta(0)
    assert policy.delay(attempt) == expected
    failed_at = datetime(2026, 1, 1, tzinfo=UTC)
    assert policy.calculate_retry_time(attempt, failed_at) == failed_at + expected


def test_jitter_is_random_and_uses_both_sides() -> None:
    policy = RetryPolicy(max_attempts=5, initial_delay=100, max_delay=1000, jitter_factor=0.5)
    waits = {policy.delay(0).total_seconds() for _ in range(200)}
    assert len(waits) > 100
    assert min(waits) < 90
    assert max(waits) > 110


@pytest.mark.parametrize(
    ("name", "waits"),
    [
        ("default", [1, 2, 4, 8, 16, 32, 64, 128]),
        ("fast", [0.1, 0.2, 0.4]),
        ("aggressive", [0.5, 0.75, 1.125, 1.6875, 2.53125]),
        ("conservative", [5, 12.5, 31.25, 78.125, 195.3125]),
    ],
)
def test_the_presets_wait_as_the_contract_says(name: str, waits: list[float]) -> None:
    policy: RetryPolicy = getattr(RetryPolicy, name)()
    jitter = {"aggressive": 0.15, "conservative": 0.2}.get(name, 0.1)
    for attempt, wait in enumerate(waits):
        assert policy.delay(attempt).total_seconds() == pytest.approx(wait, rel=jitter + 1e-6)
    assert policy.max_attempts == {"default": 8, "fast": 3, "aggressive": 12, "conservative": 5}[name]
    limit = {"default": 300, "fast": 30, "aggressive": 600, "conservative": 1800}[name]
    assert policy.backoff(10_000).total_seconds() == pytest.approx(limit, rel=jitter + 1e-6)
    assert policy.preset_name == name
    assert RetryPolicy.parse(name, policy.max_attempts) == policy


def test_delays_may_be_seconds_or_timedeltas() -> None:
    assert RetryPolicy(3, 0.25, 10, 2) == RetryPolicy(3, timedelta(milliseconds=250), timedelta(seconds=10), 2.0)
    assert RetryPolicy() == RetryPolicy.default()


@given(policies())
def test_the_text_form_brings_back_the_waits(policy: RetryPolicy) -> None:
    assert RetryPolicy.parse(policy.to_text(), policy.max_attempts) == policy


def test_the_text_form_is_readable() -> None:
    assert RetryPolicy(3, 0.1, 30).to_text() == "0.1/30/2.0/0.1"
    assert RetryPolicy.parse("0.1/30/2/0.1") == RetryPolicy(32767, 0.1, 30)
    assert RetryPolicy(7, 0.1, 30).preset_name == "fast", "the limit is the job's, not the policy's"
    assert RetryPolicy(3, 0.1, 31).preset_name is None


@pytest.mark.parametrize(
    "text",
    [
        "",
        "quick",
        "1/2/3",
        "1/2/3/0.1/5",
        "2/1/2/0.1",
        "1/2/0.5/0",
        "1/2/2/1.5",
        "1/2/nan/0",
        "-1/2/2/0",
        "1/2/2/ 0",
        "1_0/20/2/0",
        f"1/{'9' * 14}/2/0",
    ],
)
def test_a_text_that_is_no_policy_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"retry policy|seconds"):
        RetryPolicy.parse(text)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_attempts", 0),
        ("max_attempts", 32768),
        ("max_attempts", True),
        ("max_attempts", 3.0),
        ("initial_delay", -1),
        ("initial_delay", timedelta(seconds=-1)),
        ("initial_delay", math.nan),
        ("initial_delay", "1"),
        ("initial_delay", True),
        ("max_delay", math.inf),
        ("max_delay", 0.5),
        ("max_delay", 1e300),
        ("max_delay", timedelta.max),
        ("backoff_multiplier", 0.99),
        ("backoff_multiplier", math.inf),
        ("backoff_multiplier", None),
        ("jitter_factor", -0.01),
        ("jitter_factor", 1.01),
        ("jitter_factor", math.nan),
    ],
)
def test_values_out_of_range_are_refused_by_name(field: str, value: object) -> None:
    with pytest.raises(InvalidJob, match=field):
        RetryPolicy(**{field: value})  # type: ignore[arg-type]  # the refusal is what is tested


@pytest.mark.parametrize("attempt", [-1, True, 0.5])
def test_an_attempt_is_a_count(attempt: int) -> None:
    with pytest.raises(InvalidJob, match="attempt"):
        RetryPolicy().delay(attempt)


@given(st.integers(0, 32767), st.integers(0, 32767))
def test_graphile_s_back_off_grows_by_e_until_ten(one: int, other: int) -> None:
    assume(one < other)
    low, high = graphile_delay(one), graphile_delay(other)
    assert low <= high <= 22027
    if other <= 10:
        assert high / low == pytest.approx(math.e ** (other - one))
