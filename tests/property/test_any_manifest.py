"""Whatever the text: a specification that survives the log, or InvalidInput. Never anything else."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

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


@given(TREES)
@settings(max_examples=300, deadline=None)
def test_any_plain_value(value: Any) -> None:
    try:
        from_plain_spec(value)
    except InvalidInput:
        return
    raise AssertionError("a tree without services is no specification")
