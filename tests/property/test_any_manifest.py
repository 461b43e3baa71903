"""Whatever the text: a specification that survives the log, or InvalidInput. Never anything else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

import fractal.catalog
from fractal.api import canonical
from fractal.api.errors import InvalidInput
from fractal.manifest import Given, check, from_plain_spec, parse, to_plain_spec
from fractal.manifest.env_files import named
from fractal.manifest.report import lines, report

WORDS = st.sampled_from(
    [
        "image",
        "x",
        "../x",
        "/x",
        "a:b",
        "./d:/d",
        "80",
        "8080:80/udp",
        "$A",
        "${B:-c}",
        "{secret.S}",
        "1m30s",
        "no",
        "S",
        "${A:?e}",
        "${A:-${B:+$C}}",
        "${",
        "/DATA/AppData/$AppID/x:/x",
        "${APP}/x:/x:ro",
        "/srv/../x:/x:rshared",
        "host",
        "100-200:100-200",
        "main",
        "/dev/x:/dev/y",
        "SERVICE_URL_WEB_80",
        "$SERVICE_PASSWORD_64_X",
        "${HOMESERVER_URL:-x}",
        "secret",
        "hex:8",
    ]
)
KEYS = st.sampled_from(
    [
        "services",
        "volumes",
        "name",
        "x-homeserver",
        "image",
        "command",
        "environment",
        "ports",
        "depends_on",
        "healthcheck",
        "restart",
        "stop_grace_period",
        "test",
        "process",
        "argv",
        "files",
        "requirements",
        "health",
        "http",
        "port",
        "web",
        "service",
        "secrets",
        "generate",
        "a",
        "main",
        "<<",
        "mem_limit",
        "hooks",
        "before_snapshot",
        "extends",
        "profiles",
        "volumes_from",
        "links",
        "networks",
        "configs",
        "content",
        "file",
        "env_file",
        "path",
        "deploy",
        "resources",
        "reservations",
        "devices",
        "gpus",
        "logging",
        "security_opt",
        "network_mode",
        "pid",
        "build",
        "source",
        "target",
        "type",
        "driver",
        "fields",
        "data",
        "ignore",
        "A",
        "default",
        "options",
        "required",
        "min",
    ]
)
TREES = st.recursive(
    st.none() | st.booleans() | st.integers() | WORDS | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=5),
    max_leaves=20,
)
SERVICE = st.dictionaries(KEYS, TREES, max_size=6).map(lambda d: {"image": "x", **d})

GIVEN = Given(
    values={"A": "", "B": "{secret.S}", "APP": "../x"},
    files={"x": "y", "d": "$$"},
    allowed=frozenset({"privileged", "host-pid", "host-network", "host-path:/x", "host-path:/srv"}),
)


def survives(text: str) -> None:
    checked = check(text)
    assert checked.spec is None or not checked.refused
    assert all(finding.text and finding.line > 0 for finding in (*checked.refused, *checked.idle))
    report(checked)
    lines(checked)
    named(text)
    try:
        spec = parse(text, given=GIVEN)
    except InvalidInput as error:
        assert str(error).startswith("manifest:")
        return
    plain = to_plain_spec(spec)
    assert from_plain_spec(canonical.decode(canonical.encode(plain))) == spec


@given(st.text(max_size=300) | st.binary(max_size=300).map(lambda b: b.decode("utf-8", "surrogateescape")))
def test_any_text(text: str) -> None:
    survives(text)


@given(
    st.dictionaries(st.sampled_from(["main", "db", "../x", "a.b"]), SERVICE, max_size=3),
    st.dictionaries(KEYS, TREES),
)
@settings(max_examples=300, deadline=None)
def test_any_tree(services: dict[str, Any], rest: dict[str, Any]) -> None:
    survives(json.dumps({**rest, "services": services}))


@given(
    st.dictionaries(st.sampled_from(["A", "B", "x y"]), TREES | st.dictionaries(KEYS, TREES), max_size=3),
    st.dictionaries(st.sampled_from(["A", "B"]), st.text(max_size=10)),
)
@settings(max_examples=200, deadline=None)
def test_any_form_with_any_answers(fields: dict[str, Any], values: dict[str, str]) -> None:
    text = json.dumps(
        {
            "services": {"main": {"image": "x", "environment": ["A", "B=$B"]}},
            "x-homeserver": {"fields": fields},
        }
    )
    survives(text)
    for finding in check(text, given=Given(values=values)).refused:
        assert finding.line == 1 and finding.text.isprintable()


BUNDLED = [path.read_text() for path in sorted(Path(next(iter(fractal.catalog.__path__))).glob("*.yml"))]
PIECES = st.sampled_from(
    [
        "  ",
        "\n",
        ": ",
        "- ",
        "&a ",
        "*a",
        "<<: *a",
        "${",
        "}",
        "[",
        "{",
        "|",
        "'",
        '"',
        "#",
        "\t",
        "!!",
        "\x1b",
    ]
)


@given(st.data())
@settings(max_examples=200, deadline=None)
def test_a_real_manifest_with_any_damage(data: st.DataObject) -> None:
    text = data.draw(st.sampled_from(BUNDLED))
    for _ in range(data.draw(st.integers(1, 6))):
        begin = data.draw(st.integers(0, len(text)))
        end = min(len(text), begin + data.draw(st.integers(0, 40)))
        piece = data.draw(PIECES | st.just(text[begin:end] * 2) | st.text(max_size=4))
        text = text[:begin] + piece + text[end:]
    survives(text)
    lines = text.splitlines() or [""]
    assert all(finding.line <= len(lines) + 1 for finding in check(text).refused)


@given(TREES)
@settings(max_examples=300, deadline=None)
def test_any_plain_value(value: Any) -> None:
    try:
        from_plain_spec(value)
    except InvalidInput:
        return
    raise AssertionError("a tree without services is no specification")
