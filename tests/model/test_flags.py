import json
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backfill.errors import InvalidJob
from backfill.model import (
    NO_EXTRAS,
    Extras,
    RetryPolicy,
    decode_flags,
    decode_flags_text,
    encode_flags,
    has_extras,
)

texts = st.text(st.characters(exclude_characters="\x00", exclude_categories=["Cs"]), min_size=1, max_size=20)
user_flags = st.frozensets(texts.filter(lambda name: not name.startswith("backfill:")), max_size=5)
unknown_flags = st.frozensets(
    st.one_of(
        st.sampled_from(["retry", "timeout", "deadline", "crashes", "traceparent", "dlq"]).map("backfill:{}=?".format),
        texts.map("backfill:x-{}".format),
    ),
    max_size=3,
)
policies = st.one_of(
    st.sampled_from([RetryPolicy.default(), RetryPolicy.fast(), RetryPolicy.aggressive(), RetryPolicy.conservative()]),
    st.builds(
        RetryPolicy, st.integers(1, 32767), st.floats(0, 10), st.floats(10, 1e6), st.floats(1, 1e9), st.floats(0, 1)
    ),
)
zones = st.integers(-1439, 1439).map(lambda minutes: timezone(timedelta(minutes=minutes)))
extras = st.builds(
    Extras,
    retry_policy=st.none() | policies,
    timeout=st.none() | st.timedeltas(timedelta(microseconds=1), timedelta(days=9999)),
    deadline=st.none() | st.datetimes(timezones=zones).filter(lambda moment: 1 < moment.year < 9999),
    traceparent=st.none() | st.from_regex(r"00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}", fullmatch=True),
    crashes=st.integers(0, 999_999_999),
    dlq=st.booleans(),
    unknown=unknown_flags,
)


def stored(names: list[str] | None) -> str | None:
    """Return what the column would have: Graphile Worker's `{name: true}`."""
    return None if names is None else json.dumps(dict.fromkeys(names, True), ensure_ascii=False)


def without_limit(value: Extras) -> dict[str, object]:
    """Return the fields that are to survive: all but the policy's own limit, which is the row's."""
    fields = {name: getattr(value, name) for name in value.__struct_fields__}
    policy = value.retry_policy
    fields["retry_policy"] = policy and (policy.to_text(), policy.preset_name)
    return fields


@given(user_flags, extras)
def test_what_was_written_is_read_back(flags: frozenset[str], value: Extras) -> None:
    text = stored(encode_flags(flags, value))
    read_flags, read = decode_flags_text(text)
    assert read_flags == flags
    assert without_limit(read) == without_limit(value)
    assert has_extras(text) or read == NO_EXTRAS
    assert stored(encode_flags(read_flags, read)) == text, "a requeue writes the same flags again"


@given(user_flags)
def test_user_flags_alone_cost_no_extras(flags: frozenset[str]) -> None:
    names = encode_flags(flags)
    assert names == (sorted(flags) or None)
    assert decode_flags_text(stored(names)) == (flags, NO_EXTRAS)


def test_nothing_is_null_and_shared() -> None:
    assert encode_flags((), NO_EXTRAS) is None
    assert encode_flags((), Extras()) is None
    assert decode_flags(None)[1] is decode_flags({})[1] is decode_flags({"mine": True})[1] is NO_EXTRAS
    assert not has_extras(None)
    assert not has_extras('{"mine": true, "notbackfill:x": true}')


def test_the_stored_names_are_those_of_the_design() -> None:
    value = Extras(
        retry_policy=RetryPolicy.fast(),
        timeout=timedelta(seconds=1.5),
        deadline=datetime(2030, 1, 2, 3, 4, 5, tzinfo=timezone(timedelta(hours=1))),
        traceparent="00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        crashes=2,
        dlq=True,
    )
    assert encode_flags({"mine"}, value) == [
        "backfill:crashes=2",
        "backfill:deadline=2030-01-02T02:04:05+00:00",
        "backfill:dlq",
        "backfill:retry=fast",
        "backfill:timeout=1.5",
        "backfill:traceparent=00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        "mine",
    ]
    assert encode_flags((), Extras(retry_policy=RetryPolicy(5, 2, 60, 3, 0))) == ["backfill:retry=2/60/3.0/0.0"]


def test_a_read_policy_never_runs_out_of_attempts_by_itself() -> None:
    policy = decode_flags({"backfill:retry=fast": True})[1].retry_policy
    assert policy is not None
    assert policy.delay(20) > timedelta(seconds=20)


def test_of_several_crash_counts_the_highest_counts() -> None:
    names = ["backfill:crashes=9", "backfill:crashes=10", "backfill:crashes=3"]
    assert decode_flags(dict.fromkeys(names, True))[1] == Extras(crashes=10)


@pytest.mark.parametrize(
    "name",
    [
        "backfill:",
        "backfill:retry",
        "backfill:retry=slow",
        "backfill:retry=1/2",
        "backfill:timeout=0",
        "backfill:timeout=-1",
        "backfill:timeout=soon",
        f"backfill:timeout={'9' * 14}",
        "backfill:deadline=tomorrow",
        "backfill:deadline=2030-01-01T00:00:00",
        "backfill:deadline=0001-01-01T00:00:00+23:00",
        "backfill:traceparent=00-xyz",
        "backfill:crashes=0",
        "backfill:crashes=-1",
        "backfill:crashes=²",
        f"backfill:crashes={'9' * 5000}",
        "backfill:dlq=1",
        "backfill:color=red",
    ],
)
def test_what_cannot_be_understood_is_kept_and_ignored(name: str) -> None:
    flags, value = decode_flags({name: True, "mine": True})
    assert (flags, value) == (frozenset({"mine"}), Extras(unknown=frozenset({name})))
    assert encode_flags(flags, value) == [name, "mine"]


@pytest.mark.parametrize("text", ["null", "[]", '["backfill:dlq"]', "1", '"x"', "[" * 5000 + "]" * 5000, "{"])
def test_a_column_that_is_no_object_counts_as_no_flags(text: str) -> None:
    assert decode_flags_text(text) == (frozenset(), NO_EXTRAS)


def test_values_of_flags_are_never_read() -> None:
    text = '{"mine": 1e400000, "other": false, "backfill:dlq": {"deep": [null]}}'
    assert decode_flags_text(text) == (frozenset({"mine", "other"}), Extras(dlq=True))
    deep = '{"mine": ' + "[" * 100_000 + "]" * 100_000 + "}"
    assert decode_flags_text(deep) == (frozenset(), NO_EXTRAS), "too deep for the reader, and still no error"


@pytest.mark.parametrize("name", ["backfill:dlq", "backfill:anything", "", "a\x00b", 5, "\ud800", []])
def test_user_flags_that_cannot_be_are_refused(name: str) -> None:
    with pytest.raises(InvalidJob, match="flags"):
        encode_flags([name])


@pytest.mark.parametrize(
    "value",
    [
        Extras(timeout=timedelta(0)),
        Extras(deadline=datetime(2030, 1, 1)),  # noqa: DTZ001 - a naive datetime is what is refused
        Extras(traceparent="00-1-2-3"),
        Extras(crashes=-1),
        Extras(crashes=1_000_000_000),
        Extras(unknown=frozenset({"mine"})),
        Extras(unknown=frozenset({"backfill:crashes=3"})),
    ],
)
def test_extras_that_could_not_be_read_back_are_refused(value: Extras) -> None:
    with pytest.raises(InvalidJob):
        encode_flags((), value)


def test_a_deadline_is_read_in_utc() -> None:
    deadline = decode_flags({"backfill:deadline=2030-01-01T02:00:00+02:00": True})[1].deadline
    assert deadline == datetime(2030, 1, 1, tzinfo=UTC)
    assert deadline.tzinfo is UTC
