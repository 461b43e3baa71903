"""Whatever the bytes of a configuration are: a configuration or a ConfigError with sound lines, never anything else."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from fractal.config import ConfigError, DeviceConfig, parse
from fractal.config.lines import key_lines
from fractal.config.schema import sample
from fractal.plugins import Plugins

PATH = Path("/etc/homeserver/config.toml")
PLUGINS = Plugins.discover()
SAMPLE = sample("Attic", Path("/srv"), PLUGINS).encode()
LINES = SAMPLE.decode().splitlines()
NAMES = st.sampled_from(
    [
        "schema",
        "device",
        "name",
        "roles",
        "runtime",
        "backend",
        "process",
        "catalog",
        "store",
        "log",
        "level",
        "x y",
        "é",
        "",
    ]
)
SCALARS = st.one_of(
    st.text(max_size=5),
    st.integers(),
    st.booleans(),
    st.floats(),
    st.sampled_from(["process", "host", "copy", "INFO"]),
)
VALUES = st.recursive(
    SCALARS, lambda v: st.lists(v, max_size=3) | st.dictionaries(NAMES, v, max_size=3), max_leaves=8
)
DOCUMENTS = st.dictionaries(NAMES, VALUES, max_size=6)


def written(value: Any) -> str:
    """TOML of a value, tables inline."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return (
            '"' + "".join(f"\\U{ord(c):08x}" if not 0xD800 <= ord(c) < 0xE000 else "?" for c in value) + '"'
        )
    if isinstance(value, dict):
        return "{" + ", ".join(f"{written(k)} = {written(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[\n" + "".join(f"  {written(v)}, # ]\n" for v in value) + "]"
    return repr(value)


def check(data: bytes) -> None:
    try:
        found = parse(data, PATH, PLUGINS)
    except ConfigError as error:
        assert error.problems
        count = data.count(b"\n") + 1
        assert all(1 <= problem.line <= count for problem in error.problems)
        assert len(str(error).splitlines()) == len(error.problems)
        assert str(error).isprintable() or "\n" in str(error)
    else:
        assert isinstance(found, DeviceConfig)


@given(st.binary(max_size=200))
def test_any_bytes(data: bytes) -> None:
    check(data)


@given(st.lists(st.sampled_from(LINES) | st.text(max_size=20), max_size=12))
def test_lines_of_a_sound_file_in_any_order_with_others_between(lines: list[str]) -> None:
    check("\n".join(lines).encode("utf-8", "surrogatepass"))


@given(st.integers(0, len(SAMPLE)), st.integers(0, 20), st.binary(max_size=8))
def test_a_sound_file_with_some_bytes_replaced(at: int, length: int, other: bytes) -> None:
    check(SAMPLE[:at] + other + SAMPLE[at + length :])


@given(DOCUMENTS)
def test_any_document_and_every_key_has_a_line(document: dict[str, Any]) -> None:
    text = "".join(
        f"# {number}\n{written(k)} = {written(v)}\n" for number, (k, v) in enumerate(document.items())
    )
    check(text.encode())
    parsed = tomllib.loads(text)
    lines = key_lines(text)
    rows = text.split("\n")
    for key in parsed:
        assert rows[lines[(key,)] - 1].startswith(written(key))
    assert {key for key in lines if len(key) == 1} == {(key,) for key in parsed}
