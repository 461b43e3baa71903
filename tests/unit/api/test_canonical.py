"""One representation of a value: whatever else says the same is refused, however it is hidden."""

from __future__ import annotations

import pytest

from fractal.api.canonical import MAX_DEPTH, MAX_INTEGER, Value, decode, encode
from fractal.api.errors import InvalidInput


def nested(levels: int) -> Value:
    value: Value = {"a": 1}
    for _ in range(levels):
        value = {"a": value}
    return value


@pytest.mark.parametrize(
    "value",
    [
        {},
        {"a": [1, "x", None, True], "b": {"c": -1}},
        {"many": [[]] * (3 * MAX_DEPTH)},
        {"n": MAX_INTEGER, "m": -MAX_INTEGER},
        {"digits": "12345678901234567890", "braces": "{[" * 50},
        nested(MAX_DEPTH - 1),
    ],
)
def test_what_was_encoded_is_decoded(value: Value) -> None:
    assert decode(encode(value)) == value


@pytest.mark.parametrize(
    "data",
    [
        b'{"b":1,"a":2}', b'{"a": 1}', b'{"a":1.0}', b'{"a":1e3}', b'{"a":NaN}', b'{"a":01}', b'{"a":-0}', b"[1]", b"1", b"",
        b'{"a":1,"a":1}', b'{"a":"\\u0041"}', b'{"a":"\\ud800"}', b'{"a":"\xff"}', b'\xef\xbb\xbf{"a":1}', b'{"a":1}\n',
        b'{"a":%d}' % (MAX_INTEGER + 1), b'{"a":[{"b":%d}]}' % (-MAX_INTEGER - 1), b'{"a":%s}' % (b"9" * 5000),
        b'{"a":' * 200 + b"1" + b"}" * 200, b'{"a":' * (MAX_DEPTH + 1) + b"1" + b"}" * (MAX_DEPTH + 1),
        b'{"a":' * MAX_DEPTH + b"[]" + b"}" * MAX_DEPTH + b"}",
    ],
)  # fmt: skip
def test_anything_else_is_refused(data: bytes) -> None:
    with pytest.raises(InvalidInput):
        decode(data)


@pytest.mark.parametrize(
    "value",
    [{1: "a"}, {"a": {2: "b"}}, {"a": 1.5}, {"a": [{"b": b""}]}, {"a": MAX_INTEGER + 1}, {"a": "\ud800"}, nested(MAX_DEPTH + 1)],
)  # fmt: skip
def test_what_the_encoding_cannot_hold_is_refused(value: Value) -> None:
    with pytest.raises(InvalidInput):
        encode(value)
