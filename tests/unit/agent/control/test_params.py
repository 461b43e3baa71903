"""Request parameters: typed, bounded, all or nothing."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fractal.agent.control.contract import Kind, Param, Spec, fits
from fractal.agent.control.params import MAX_ITEMS, MAX_TEXT, parse_params
from fractal.api.errors import InvalidInput

SPEC = Spec(
    name="x.y",
    summary="",
    params={
        "text": Param(Kind.TEXT, ""),
        "integer": Param(Kind.INTEGER, ""),
        "number": Param(Kind.NUMBER, ""),
        "flag": Param(Kind.FLAG, ""),
        "items": Param(Kind.LIST, ""),
        "table": Param(Kind.TABLE, ""),
    },
)


def test_typed_getters_and_defaults() -> None:
    values = {"text": "t", "integer": 3, "number": 2, "flag": True, "items": ["a"], "table": {"k": "v"}}
    params = parse_params(SPEC, json.dumps(values).encode())
    assert (params.text("text"), params.integer("integer"), params.number("number")) == ("t", 3, 2.0)
    assert (params.flag("flag"), params.items("items"), params.table("table")) == (True, ("a",), {"k": "v"})
    empty = parse_params(SPEC, b"{}")
    assert (empty.text("text", "d"), empty.integer("integer", 7), empty.number("number")) == ("d", 7, 0.0)
    assert (empty.flag("flag"), empty.items("items"), empty.table("table")) == (False, (), {})
    assert "text" in params
    assert "text" not in empty


def test_a_handler_cannot_ask_for_what_is_not_declared() -> None:
    params = parse_params(SPEC, b'{"text": "1"}')
    with pytest.raises(KeyError):
        params.text("txet")
    with pytest.raises(TypeError):
        params.integer("text")


@pytest.mark.parametrize(
    "body",
    [
        {"integer": 2**53},
        {"integer": 1.5},
        {"integer": True},
        {"number": "1"},
        {"flag": 1},
        {"items": ["a", 1]},
        {"items": ["a"] * (MAX_ITEMS + 1)},
        {"table": {"k": 1}},
        {"text": "x" * (MAX_TEXT + 1)},
        {"table": {"k": "\x00"}},
    ],
)
def test_what_does_not_fit_is_refused(body: dict[str, object]) -> None:
    with pytest.raises(InvalidInput, match=next(iter(body))):
        parse_params(SPEC, json.dumps(body).encode())


def test_numbers_are_finite() -> None:
    for word in ("NaN", "Infinity", "-Infinity", "1e999"):
        with pytest.raises(InvalidInput):
            parse_params(SPEC, f'{{"number": {word}}}'.encode())


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=10,
)


@given(
    st.binary(max_size=200)
    | st.dictionaries(st.sampled_from([*SPEC.params, "z"]), json_values).map(json.dumps)
)
def test_any_bytes_are_either_fitting_or_refused(body: bytes | str) -> None:
    data = body.encode("utf-8", "surrogatepass") if isinstance(body, str) else body
    try:
        params = parse_params(SPEC, data)
    except InvalidInput:
        return
    for name, param in SPEC.params.items():
        if name in params:
            getter = {Kind.LIST: "items"}.get(param.kind, param.kind.value.split()[0])
            value = getattr(params, getter)(name)
            assert fits(param.kind, value)
