"""WorkerConfig and QueueConfig: from code and from the environment, and what they refuse."""

import dataclasses
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backfill.errors import ConfigurationError
from backfill.worker import QueueConfig, WorkerConfig

URL = "postgresql://localhost/jobs"
NUMBERS = {
    "FAST_QUEUE_CONCURRENCY": 1,
    "BULK_QUEUE_CONCURRENCY": 1,
    "DEAD_LETTER_QUEUE_CONCURRENCY": 0,
    "POLL_INTERVAL_MS": 1,
    "SHUTDOWN_TIMEOUT_SECS": 1,
    "DLQ_PROCESSOR_INTERVAL_SECS": 0,
}


def from_env(**environ: str) -> WorkerConfig:
    return WorkerConfig.from_env({"DATABASE_URL": URL, **environ})


def test_defaults_in_code() -> None:
    config = WorkerConfig(database_url=URL)
    assert config.schema == "graphile_worker"
    assert config.queue_configs == (QueueConfig("default", 10),)
    assert config.concurrency == 10
    assert config.poll_interval == timedelta(milliseconds=200)
    assert config.dlq_processor_interval == timedelta(seconds=60)
    assert config.shutdown_timeout == timedelta(seconds=30)
    assert not config.log_jobs
    assert config.listen_url is None


def test_code_reads_no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgresql://elsewhere/x")
    monkeypatch.setenv("POLL_INTERVAL_MS", "7")
    config = WorkerConfig(database_url=URL)
    assert (config.database_url, config.poll_interval) == (URL, timedelta(milliseconds=200))


def test_defaults_of_the_environment() -> None:
    config = from_env()
    assert config == WorkerConfig(
        database_url=URL,
        queue_configs=(
            QueueConfig.priority_queue("fast", 10, -32768, -1),
            QueueConfig.priority_queue("bulk", 5, 0, 32767),
            QueueConfig.named_queue("dead_letter", 2),
        ),
    )


def test_the_environment_of_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgresql://there/jobs")
    monkeypatch.setenv("GRAPHILE_WORKER_SCHEMA", "mine")
    config = WorkerConfig.from_env()
    assert (config.database_url, config.schema) == ("postgresql://there/jobs", "mine")


def test_each_variable() -> None:
    config = from_env(
        GRAPHILE_WORKER_SCHEMA='od"d name',
        FAST_QUEUE_CONCURRENCY="3",
        BULK_QUEUE_CONCURRENCY=" 4 ",
        DEAD_LETTER_QUEUE_CONCURRENCY="1",
        POLL_INTERVAL_MS="1500",
        SHUTDOWN_TIMEOUT_SECS="9",
        DLQ_PROCESSOR_INTERVAL_SECS="7",
    )
    assert config.schema == 'od"d name'
    assert [lane.concurrency for lane in config.queue_configs] == [3, 4, 1]
    assert config.poll_interval == timedelta(seconds=1.5)
    assert config.shutdown_timeout == timedelta(seconds=9)
    assert config.dlq_processor_interval == timedelta(seconds=7)


@pytest.mark.parametrize("name", NUMBERS)
def test_an_empty_variable_is_its_default(name: str) -> None:
    assert from_env(**{name: ""}) == from_env()


def test_zero_turns_the_dead_letter_lane_and_the_dead_letter_queue_off() -> None:
    config = from_env(DEAD_LETTER_QUEUE_CONCURRENCY="0", DLQ_PROCESSOR_INTERVAL_SECS="0")
    assert [lane.name for lane in config.queue_configs] == ["fast", "bulk"]
    assert config.dlq_processor_interval is None


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("value", ["ten", "1.5", "-1", "+3", "1_000", "٣", "0x10", "9" * 30, "9" * 5000])
def test_a_bad_number_is_refused_by_variable_and_value(name: str, value: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        from_env(**{name: value})
    assert name in str(caught.value)
    assert value[:20] in str(caught.value)


@pytest.mark.parametrize("name", [name for name, least in NUMBERS.items() if least == 1])
def test_zero_is_refused_where_it_makes_no_sense(name: str) -> None:
    with pytest.raises(ConfigurationError, match=f"{name}='0'.*at least 1"):
        from_env(**{name: "0"})


def test_overrides_come_before_the_environment() -> None:
    lanes = [QueueConfig.default_queue(2)]
    environ = {"DATABASE_URL": URL, "POLL_INTERVAL_MS": "5", "FAST_QUEUE_CONCURRENCY": "not read"}
    config = WorkerConfig.from_env(environ, queue_configs=lanes, poll_interval=timedelta(seconds=3), log_jobs=True)
    assert config.queue_configs == (QueueConfig("default", 2),)
    assert (config.poll_interval, config.log_jobs) == (timedelta(seconds=3), True)


def test_forbidden_flags() -> None:
    assert WorkerConfig(database_url=URL, forbidden_flags=["b", "a", "b"]).forbidden_flags == frozenset({"a", "b"})
    assert from_env(BACKFILL_FORBIDDEN_FLAGS=" a, b c,,").forbidden_flags == frozenset({"a", "b c"})
    assert from_env(BACKFILL_FORBIDDEN_FLAGS=" , ").forbidden_flags is None
    overridden = WorkerConfig.from_env({"DATABASE_URL": URL, "BACKFILL_FORBIDDEN_FLAGS": "a"}, forbidden_flags=["b"])
    assert overridden.forbidden_flags == frozenset({"b"})
    function = list[str]
    assert WorkerConfig(database_url=URL, forbidden_flags=function).forbidden_flags is function


def test_an_unknown_override_is_refused() -> None:
    with pytest.raises(TypeError, match="pol_interval"):
        WorkerConfig.from_env({"DATABASE_URL": URL}, pol_interval=timedelta(seconds=3))


def test_without_a_database_the_message_says_what_to_set() -> None:
    with pytest.raises(ConfigurationError, match="DATABASE_URL"):
        WorkerConfig.from_env({})
    with pytest.raises(ConfigurationError, match="database_url"):
        WorkerConfig(database_url="")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"schema": ""}, "schema name is empty"),
        ({"schema": "x" * 64}, "64 bytes"),
        ({"queue_configs": []}, "queue_configs is empty"),
        ({"poll_interval": timedelta(0)}, "poll_interval"),
        ({"shutdown_timeout": timedelta(seconds=-1)}, "shutdown_timeout"),
        ({"dlq_processor_interval": timedelta(0)}, "dlq_processor_interval"),
        ({"forbidden_flags": "slow"}, "forbidden_flags must be a set of names, not 'slow'.*a function"),
        ({"forbidden_flags": ["backfill:dlq"]}, "forbidden_flags has 'backfill:dlq'"),
        ({"forbidden_flags": 7}, "forbidden_flags must be a set"),
        ({"queue_configs": [QueueConfig("a", 1), QueueConfig("a", 2)]}, "two lanes have the name 'a'"),
        (
            {"queue_configs": [QueueConfig("a", 1, queue_name="q"), QueueConfig("b", 2, queue_name="q")]},
            "two lanes have the queue 'q'",
        ),
    ],
)
def test_bad_settings_are_refused_by_name(settings: dict[str, Any], words: str) -> None:
    """R-56."""
    with pytest.raises(ConfigurationError, match=words):
        WorkerConfig(database_url=URL, **settings)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: QueueConfig("", 1), "needs a name"),
        (lambda: QueueConfig("x", 0), "lane x: concurrency 0"),
        (lambda: QueueConfig("x", 10_001), "lane x: concurrency 10001"),
        (lambda: QueueConfig("x", concurrency=True), "lane x: concurrency True"),
        (lambda: QueueConfig("x", 2.5), "lane x: concurrency 2.5"),  # type: ignore[arg-type] # what a caller may get wrong
        (lambda: QueueConfig.priority_queue("x", 1, 5, 4), "lane x: priorities 5..4"),
        (lambda: QueueConfig.priority_queue("x", 1, -32769, 0), "-32769..0"),
        (lambda: QueueConfig.priority_queue("x", 1, 0, 32768), "0..32768"),
        (lambda: QueueConfig("x", 1, queue_name="q", priority_range=(0, 1)), "not both"),
    ],
)
def test_bad_lanes_are_refused(make: Any, words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        make()


def test_with_gives_changed_copies() -> None:
    config = WorkerConfig(database_url=URL)
    lane = QueueConfig("only", 3)
    assert config.with_queue_configs(lane).queue_configs == (lane,)
    assert config.with_schema("other").schema == "other"
    assert config.with_poll_interval(timedelta(seconds=2)).poll_interval == timedelta(seconds=2)
    assert config.with_dlq_processor_interval(None).dlq_processor_interval is None
    assert config.with_shutdown_timeout(timedelta(seconds=2)).shutdown_timeout == timedelta(seconds=2)
    assert config == WorkerConfig(database_url=URL)


def test_a_copy_is_checked_like_the_first() -> None:
    with pytest.raises(ConfigurationError, match="poll_interval"):
        WorkerConfig(database_url=URL).with_poll_interval(timedelta(0))


def test_it_is_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        WorkerConfig(database_url=URL).schema = "x"  # type: ignore[misc] # that is the test


@given(
    fast=st.integers(1, 10_000),
    bulk=st.integers(1, 10_000),
    dead=st.integers(0, 10_000),
    poll=st.integers(1, 10**8),
)
def test_numbers_come_back_as_given(fast: int, bulk: int, dead: int, poll: int) -> None:
    config = from_env(
        FAST_QUEUE_CONCURRENCY=str(fast),
        BULK_QUEUE_CONCURRENCY=str(bulk),
        DEAD_LETTER_QUEUE_CONCURRENCY=str(dead),
        POLL_INTERVAL_MS=str(poll),
    )
    assert config.concurrency == fast + bulk + dead
    assert config.poll_interval == timedelta(milliseconds=poll)


def test_an_address_to_listen_at_comes_from_the_environment() -> None:
    assert from_env().listen_url is None
    assert from_env(BACKFILL_LISTEN_URL="").listen_url is None
    assert from_env(BACKFILL_LISTEN_URL="postgresql://direct/jobs").listen_url == "postgresql://direct/jobs"
