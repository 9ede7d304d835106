import json
import math
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from enum import Enum, IntEnum
from typing import Any, TypedDict

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from backfill.errors import ConfigurationError, InvalidJob, MalformedData
from backfill.model import Priority, decode_payload, encode_payload, payload_decoder

text = st.text(st.characters(exclude_characters="\x00", exclude_categories=["Cs"]), max_size=20)
scalars = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**63), 2**63 - 1), st.floats(allow_nan=False, allow_infinity=False), text
)


def nested(leaves: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.recursive(leaves, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(text, inner, max_size=4))


@given(nested(scalars))
def test_any_json_value_comes_back_as_it_was(value: Any) -> None:
    encoded = encode_payload(value)
    assert json.loads(encoded) == value, "by an independent reader"
    assert decode_payload(encoded) == value


@st.composite
def buried(draw: st.DrawFn, leaf: st.SearchStrategy[Any]) -> Any:
    """Put a leaf at a random depth, beside values that are fine."""
    value = draw(leaf)
    for _ in range(draw(st.integers(0, 5))):
        wrapped: list[Any] = [[None, 1, value], (value, "x"), {"a": None, "b": value}]
        value = wrapped[draw(st.integers(0, 2))]
    return value


@given(buried(st.sampled_from([math.nan, math.inf, -math.inf])))
def test_nan_and_infinities_are_refused_at_any_depth(value: Any) -> None:
    with pytest.raises(InvalidJob, match=r"JSON cannot hold, at \$"):
        encode_payload(value)


@given(buried(st.integers(2**63) | st.integers(max_value=-(2**63) - 1)))
def test_integers_beyond_64_bits_are_refused_at_any_depth(value: Any) -> None:
    with pytest.raises(InvalidJob, match=r"64 bits.* at \$"):
        encode_payload(value)


@given(buried(st.tuples(text, st.sampled_from("\x00\ud800\udfff"), text).map("".join)))
def test_text_that_postgresql_cannot_hold_is_refused_at_any_depth(value: Any) -> None:
    with pytest.raises(InvalidJob, match=r"(NUL|surrogate).* at \$"):
        encode_payload(value)


@pytest.mark.parametrize(
    ("value", "path"),
    [
        (math.nan, r"at \$$"),
        ({"items": [1, {"price": math.inf}]}, r"at \$\.items\[1\]\.price$"),
        ({"two words": ["\x00"]}, r"at \$\['two words'\]\[0\]$"),
        ({"a\x00b": 1}, r"at \$ \(a key\)$"),
        ({"a": {"\ud800": 1}}, r"at \$\.a \(a key\)$"),
        ([2**63], r"at \$\[0\]$"),
    ],
)
def test_a_refusal_says_where(value: object, path: str) -> None:
    with pytest.raises(InvalidJob, match=path):
        encode_payload(value)


def test_what_only_looks_suspicious_is_fine() -> None:
    value = {"null": None, "text": "null", "digits": "9" * 40, "escape": "\\u0000", "float": 1e22, "int": 2**63 - 1}
    assert json.loads(encode_payload(value)) == value


class Color(Enum):
    RED = "red"


class Level(IntEnum):
    HIGH = 3


class Point(TypedDict):
    x: int


class Box(msgspec.Struct):
    size: float


@dataclass
class Order:
    id: uuid.UUID
    at: datetime
    total: Decimal
    color: Color
    level: Level
    point: Point
    box: Box
    tags: frozenset[str]


ORDER = Order(
    uuid.UUID(int=5),
    datetime(2026, 1, 1, tzinfo=UTC),
    Decimal("1.10"),
    Color.RED,
    Level.HIGH,
    {"x": 1},
    Box(2.5),
    frozenset({"a"}),
)


def test_typed_values_are_written_readably_and_come_back() -> None:
    encoded = encode_payload(ORDER)
    assert json.loads(encoded) == {
        "id": "00000000-0000-0000-0000-000000000005",
        "at": "2026-01-01T00:00:00Z",
        "total": "1.10",
        "color": "red",
        "level": 3,
        "point": {"x": 1},
        "box": {"size": 2.5},
        "tags": ["a"],
    }
    assert decode_payload(encoded, Order) == ORDER


def test_nan_inside_a_typed_value_is_refused_too() -> None:
    with pytest.raises(InvalidJob, match=r"at \$\.boxes\[0\]\.size"):
        encode_payload({"boxes": [Box(math.nan)]})


class Text(str):
    __slots__ = ()


class Number(float):
    __slots__ = ()


def test_subclasses_of_plain_types_are_written_as_those() -> None:
    assert encode_payload([Priority.FAST_HIGH, Text("x"), Number(1.5)]) == '[-10,"x",1.5]'
    with pytest.raises(InvalidJob, match=r"at \$\[0\]"):
        encode_payload([Number("nan")])


def test_keys_become_text() -> None:
    assert json.loads(encode_payload({1: "a", Color.RED: "b"})) == {"1": "a", "red": "b"}
    assert json.loads(encode_payload({2**70: None})) == {str(2**70): None}, "as text it is not too large"


class Model:
    """Has what a pydantic model has, as far as it matters here."""

    def __init__(self, price: float) -> None:
        self.price = price

    def model_dump(self, *, mode: str) -> dict[str, Any]:
        assert mode == "json"
        return {"price": self.price}

    def model_dump_json(self) -> str:
        return json.dumps({"price": self.price})

    @classmethod
    def model_validate(cls, value: dict[str, Any]) -> "Model":
        if value["price"] < 0:
            raise ValueError("price must not be negative")
        return cls(value["price"])


def test_pydantic_models_are_payloads() -> None:
    assert encode_payload(Model(2.5)) == '{"price":2.5}'
    assert encode_payload([Model(2.5)]) == '[{"price":2.5}]'
    assert decode_payload('{"price": 2.5}', Model).price == 2.5
    with pytest.raises(InvalidJob, match=r"at \$\.price"):
        encode_payload(Model(math.nan))
    with pytest.raises(MalformedData, match="negative"):
        decode_payload('{"price": -1}', Model)


class Opaque:
    pass


def test_what_is_no_json_value_is_refused_by_type() -> None:
    loop: list[Any] = []
    loop.append(loop)
    for value, words in (
        (Opaque(), "Opaque"),
        ({"a": Opaque()}, "Opaque"),
        ({(1, 2): 3}, "tuple"),
        (loop, "nested"),
        (1j, "complex"),
    ):
        with pytest.raises(InvalidJob, match=words):
            encode_payload(value)


def test_a_payload_that_does_not_fit_says_where() -> None:
    with pytest.raises(MalformedData, match=r"Box: .*\$\.size"):
        decode_payload('{"size": "big"}', Box)
    with pytest.raises(MalformedData, match=r"Order: .*missing required field"):
        decode_payload("{}", Order)


@pytest.mark.parametrize("broken", ["", "{", "NaN", '{"a": NaN}', "[1,]", "9" * 5000, "[" * 100_000])
def test_what_cannot_be_read_is_malformed(broken: str) -> None:
    with pytest.raises(MalformedData):
        decode_payload(broken)


def test_what_postgresql_accepts_beyond_msgspec_is_read() -> None:
    assert decode_payload('{"a": "\\u0000"}') == {"a": "\x00"}
    assert decode_payload('{"a": 1e400000}') == {"a": math.inf}
    assert decode_payload('["\\ud800"]', list[str]) == ["\ud800"]
    with pytest.raises(MalformedData):
        decode_payload('{"size": "\\ud800"}', Box)


def test_a_type_that_json_cannot_become_is_a_configuration_error() -> None:
    for payload_type in (Opaque, Box | Point | Order, list[Any] | tuple[Any, ...]):
        with pytest.raises(ConfigurationError, match="payload's type"):
            payload_decoder(payload_type)


def test_decoders_are_made_once() -> None:
    assert payload_decoder(Order) is payload_decoder(Order)
