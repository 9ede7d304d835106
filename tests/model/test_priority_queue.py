import pickle

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from backfill.errors import InvalidJob
from backfill.model import Priority, Queue, priority_band

int16 = st.integers(-32768, 32767)


def test_the_named_priorities_have_the_contract_s_numbers() -> None:
    named = {name: int(value) for name, value in vars(Priority).items() if name.isupper()}
    assert named == {
        "EMERGENCY": -20,
        "FAST_HIGH": -10,
        "FAST_DEFAULT": -5,
        "BULK_DEFAULT": 0,
        "BULK_LOW": 5,
        "BULK_LOWEST": 10,
    }


@given(int16, int16)
def test_priorities_order_like_their_numbers_and_are_ints(one: int, other: int) -> None:
    assert (Priority(one) < Priority(other)) == (one < other)
    assert Priority(one) == one
    assert hash(Priority(one)) == hash(one)
    assert str(Priority(one)) == f"{Priority(one)}" == str(one)
    assert type(Priority(one) + 1) is int


@pytest.mark.parametrize("value", [-32769, 32768, True, 1.0, "5", None])
def test_what_is_no_int16_is_no_priority(value: object) -> None:
    with pytest.raises(InvalidJob, match="priority"):
        Priority(value)  # type: ignore[arg-type]  # the refusal is what is tested


def test_a_priority_shows_its_name_and_survives_pickling() -> None:
    assert repr(Priority(-10)) == "Priority.FAST_HIGH"
    assert repr(Priority(3)) == "Priority(3)"
    copy = pickle.loads(pickle.dumps(Priority.BULK_LOW))
    assert type(copy) is Priority
    assert copy == 5


@pytest.mark.parametrize(
    ("band", "low", "high"),
    [
        ("emergency", -32768, -20),
        ("fast_high", -19, -10),
        ("fast_default", -9, -1),
        ("bulk_default", 0, 0),
        ("bulk_low", 1, 5),
        ("bulk_lowest", 6, 10),
        ("other", 11, 32767),
    ],
)
def test_bands_cover_their_ranges_to_the_edges(band: str, low: int, high: int) -> None:
    assert {priority_band(value) for value in range(low, high + 1)} == {band}
    assert Priority(low).band == Priority(high).band == band


def test_the_parallel_queue_has_no_name() -> None:
    assert Queue.parallel() == Queue.PARALLEL == Queue() == Queue.coerce(None)
    assert Queue.PARALLEL.name is None
    assert (Queue.PARALLEL.is_parallel, Queue.PARALLEL.is_serial, str(Queue.PARALLEL)) == (True, False, "parallel")


def test_serial_queues_are_their_names() -> None:
    queue = Queue.serial_for("user", 42)
    assert queue == Queue.serial("user:42") == Queue.coerce("user:42") == Queue.coerce(queue)
    assert (queue.name, str(queue), queue.is_parallel, queue.is_serial) == ("user:42", "user:42", False, True)
    assert Queue.dead_letter().name == "dead_letter"
    assert len({queue, Queue.serial("user:42"), Queue.PARALLEL}) == 2


def test_a_serial_queue_called_parallel_is_still_serial() -> None:
    assert Queue.serial("parallel").is_serial
    assert Queue.serial("parallel") != Queue.PARALLEL


def test_queue_names_are_measured_in_characters() -> None:
    assert Queue.serial("ü" * 128).name == "ü" * 128
    with pytest.raises(InvalidJob, match="queue name has 129 characters"):
        Queue.serial("ü" * 129)


@pytest.mark.parametrize("name", ["", "a\x00b", "\ud800", 5, None, b"q"])
def test_names_that_postgresql_cannot_hold_are_refused(name: object) -> None:
    with pytest.raises(InvalidJob, match="queue name"):
        Queue.serial(name)  # type: ignore[arg-type]  # the refusal is what is tested


def test_a_queue_cannot_change() -> None:
    with pytest.raises(AttributeError):
        Queue.serial("a").name = "b"  # type: ignore[misc]  # the refusal is what is tested


def test_values_are_json_for_msgspec() -> None:
    assert msgspec.json.encode(Queue.serial("a")) == b'{"name":"a"}'
