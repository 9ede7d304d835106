"""Payloads: Python values to JSON text and back.

Any JSON value is a payload. Beyond dict, list, str, int, float, bool and None, msgspec writes dataclasses, TypedDicts,
attrs classes, Structs, enums, datetimes and the rest of the standard library's value types; dict keys may be str, int,
float, or enums and become strings; pydantic models are written by their own rules.

What JSON or PostgreSQL cannot hold is refused, because the alternative is silent damage: NaN and the infinities (they
would become null), NUL characters, halves of surrogate pairs, and integers beyond 64 bits. The scan for them looks at
the finished text and walks the value, to name the place, only when the text is suspicious.
"""

import json
import math
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any

import msgspec

from backfill.errors import ConfigurationError, InvalidJob, MalformedData

_AS_ZEROS = bytes(ord("0") if chr(byte).isdigit() and byte < 128 else byte for byte in range(256))
_LONG_NUMBER = b"0" * 19  # the shortest that may be beyond int64, after all digits were made zeros
_INT_LOW, _INT_HIGH = -(2**63), 2**63 - 1


def encode_payload(value: object) -> str:
    """Return the JSON text of a payload.

    Raises:
        InvalidJob: The value has no faithful JSON form; the message says where in it, as in `$.items[3].price`.
    """
    try:
        encoded = _ENCODER.encode(value)
    except UnicodeEncodeError as error:
        _refuse_bad_parts(value)
        raise InvalidJob(f"payload has text that is no valid Unicode: {error}") from error
    except RecursionError as error:
        raise InvalidJob("payload is nested too deeply, or contains itself") from error
    except (TypeError, ValueError, OverflowError, msgspec.MsgspecError) as error:
        raise InvalidJob(f"payload of type {type(value).__name__} cannot be written as JSON: {error}") from error
    if _may_have_bad_parts(encoded):
        _refuse_bad_parts(value)
    return encoded.decode()


def decode_payload(text: str, payload_type: Any = Any) -> Any:
    """Return the payload's value, as `payload_type` when one is given.

    Raises:
        MalformedData: The text is no JSON or does not fit the type; the message says where.
        ConfigurationError: No JSON value can become that type.
    """
    return payload_decoder(payload_type)(text)


@lru_cache(maxsize=1024)
def payload_decoder(payload_type: Any = Any) -> Callable[[str], Any]:
    """Return the function that makes values of `payload_type` of JSON text; made once for each type.

    Raises:
        ConfigurationError: No JSON value can become that type.
    """
    try:
        info = msgspec.inspect.type_info(payload_type)
        decoder: msgspec.json.Decoder[Any] = msgspec.json.Decoder(payload_type, dec_hook=_from_builtins)
    except (TypeError, NameError) as error:
        raise ConfigurationError(f"{payload_type!r} cannot be a payload's type: {error}") from error
    if isinstance(info, msgspec.inspect.CustomType) and not hasattr(info.cls, "model_validate"):
        raise ConfigurationError(
            f"{payload_type!r} cannot be a payload's type: use a dataclass, TypedDict, Struct, attrs or pydantic class"
        )

    def decode(text: str) -> Any:
        try:
            return decoder.decode(text)
        except (msgspec.DecodeError, RecursionError) as error:
            return _decode_odd(text, payload_type, error)

    return decode


def _decode_odd(text: str, payload_type: Any, reason: Exception) -> Any:
    """Read what PostgreSQL's json accepts and msgspec refuses: 1e400000 and halves of surrogate pairs."""
    if isinstance(reason, msgspec.ValidationError) and "out of range" not in str(reason):
        raise _malformed(payload_type, reason) from reason
    try:
        value = json.loads(text, parse_constant=_refuse_constant)
        return value if payload_type is Any else msgspec.convert(value, payload_type, dec_hook=_from_builtins)
    except (ValueError, RecursionError) as error:
        raise _malformed(payload_type, error) from error


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _malformed(payload_type: Any, reason: Exception) -> MalformedData:
    name = getattr(payload_type, "__name__", None) or str(payload_type)
    what = "is not readable" if payload_type is Any else f"does not fit {name}"
    return MalformedData(f"payload {what}: {reason}")


def _to_builtins(value: Any) -> Any:
    """Say how to write what msgspec does not know: pydantic models, and subclasses of int, float and str."""
    if hasattr(value, "model_dump_json"):
        return value.model_dump(mode="json")
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value)
    if isinstance(value, str):
        return "".join(value)
    raise TypeError(f"{type(value).__qualname__} is no JSON value: {value!r:.100}")


def _from_builtins(payload_type: Any, value: Any) -> Any:
    """Say how to make what msgspec does not know: pydantic models."""
    if hasattr(payload_type, "model_validate"):
        return payload_type.model_validate(value)
    raise TypeError(f"no JSON value can become {payload_type!r}")


def _may_have_bad_parts(encoded: bytes) -> bool:
    """Whether the value has to be walked: its text has a null, a NUL or a long number, which most have not.

    Plain searches, as a regular expression for the three takes ten times as long.
    """
    return (
        b"null" in encoded
        or b"\\u0000" in encoded
        or (len(encoded) >= len(_LONG_NUMBER) and _LONG_NUMBER in encoded.translate(_AS_ZEROS))
    )


def _refuse_bad_parts(value: object) -> None:
    builtins = msgspec.to_builtins(value, str_keys=True, enc_hook=_to_builtins)
    for path, problem in _bad_parts(builtins, "$"):
        raise InvalidJob(f"payload has {problem} at {path}")


def _bad_parts(value: Any, path: str) -> Iterator[tuple[str, str]]:
    """Yield the path and the fault of each part that must not be written."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _bad_parts(key, f"{path} (a key)")
            yield from _bad_parts(item, f"{path}.{key!s}" if str(key).isidentifier() else f"{path}[{key!r}]")
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from _bad_parts(item, f"{path}[{index}]")
    elif isinstance(value, float) and not math.isfinite(value):
        yield path, f"{value!r}, which JSON cannot hold,"
    elif isinstance(value, int) and not _INT_LOW <= value <= _INT_HIGH:
        yield path, f"an integer beyond 64 bits, which other languages would round (send it as a string), {value:.3e},"
    elif isinstance(value, str):
        if "\x00" in value:
            yield path, "a NUL character, which PostgreSQL cannot store,"
        if any("\ud800" <= character <= "\udfff" for character in value):
            yield path, "half of a surrogate pair, which is no valid text,"


_ENCODER = msgspec.json.Encoder(enc_hook=_to_builtins)
