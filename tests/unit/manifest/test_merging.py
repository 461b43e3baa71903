"""What a service has of the one that it extends, in whatever form each of them says it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from fractal.api.app import ServiceSpec
from fractal.manifest import Given, check, parse


def extended(under: str, over: str) -> ServiceSpec:
    text = f"""
services:
  first: {{image: x}}
  second: {{image: x}}
  base: {{image: x, {under}}}
  main: {{extends: base, {over}}}
networks: {{one: , two: {{internal: true}}}}
"""
    spec = parse(text, files={"a.env": "A=1\nB=1", "b.env": "B=2"})
    return next(one for one in spec.services if one.name == "main")


def options(service: ServiceSpec) -> dict[str, Any]:
    return {key: json.loads(text) for key, text in service.options.items()}


@pytest.mark.parametrize(
    ("under", "over", "found"),
    [
        ("volumes: ['./a:/x', './q:/q']", "volumes: ['./b:/x/:ro']", {"/q": "q", "/x/": "b"}),
        (
            "volumes: [{type: bind, source: ./a, target: /x}]",
            "volumes: ['./${S:-b}:/x', '/y']",
            {"/x": "b", "/y": "main-y"},
        ),
        ("volumes: ['./a:/${T:-x}']", "volumes: ['./b:/${T:-y}']", {"/x": "a", "/y": "b"}),
    ],
)
def test_a_place_inside_is_that_of_the_later_one(under: str, over: str, found: dict[str, str]) -> None:
    assert {m.target: m.volume for m in extended(under, over).mounts} == found


@pytest.mark.parametrize(
    ("under", "over", "found"),
    [
        ("[first]", "{second: {condition: service_healthy}}", {"first": "started", "second": "healthy"}),
        ("{first: {condition: service_healthy}}", "[second]", {"first": "healthy", "second": "started"}),
        ("[first]", "[second]", {"first": "started", "second": "started"}),
    ],
)
def test_nothing_that_is_needed_is_forgotten(under: str, over: str, found: dict[str, str]) -> None:
    assert extended(f"depends_on: {under}", f"depends_on: {over}").depends_on == found


def test_forms_are_merged_alike() -> None:
    main = extended("env_file: a.env", "env_file: [b.env], environment: [C=3]")
    assert main.env == {"A": "1", "B": "2", "C": "3"}
    main = extended(
        "networks: [one], sysctls: ['net.a=1'], extra_hosts: ['a:192.0.2.1'], dns: 192.0.2.2, tmpfs: /a",
        "networks: {two: }, sysctls: {net.b: 2}, extra_hosts: {b: 192.0.2.3}, dns: [192.0.2.4], tmpfs: [/b]",
    )
    assert options(main) == {
        "dns": ["192.0.2.2", "192.0.2.4"],
        "extra_hosts": ["a=192.0.2.1", "b=192.0.2.3"],
        "networks": {"one": False, "two": True},
        "sysctls": {"net.a": "1", "net.b": 2},
        "tmpfs": ["/a", "/b"],
    }


def test_names_of_keys_mean_nothing_further_inside() -> None:
    main = extended("labels: {dns: a, build: b, tmpfs: c}", "labels: [dns=d], environment: {command: e}")
    assert options(main)["labels"] == {"dns": "d", "build": "b", "tmpfs": "c"}


def test_a_command_is_replaced_and_a_build_goes_on() -> None:
    main = extended(
        "command: [a, b], healthcheck: {test: [CMD, a]}", "command: [c], healthcheck: {retries: 4}"
    )
    assert main.argv == ("c",) and main.health is not None
    assert (main.health.test, main.health.retries) == (("a",), 4)
    text = "services: {b: {build: {context: ., args: [A=1]}}, m: {extends: b, build: ./sub}}"
    found = check(text, given=Given(brings=lambda _: "")).builds
    assert {(build.context, tuple(build.args.items())) for build, _ in found.values()} == {
        (".", (("A", "1"),)),
        ("sub", (("A", "1"),)),
    }


@pytest.mark.parametrize(
    "body", ["depends_on: 7", "networks: [[a]]", "extra_hosts: {a: {b: c}}", "volumes: x"]
)
def test_what_has_no_form_is_refused_all_the_same(body: str) -> None:
    text = f"services: {{base: {{image: x, {body}}}, main: {{extends: base, {body}}}}}"
    assert any(one.key.startswith("services.main.") for one in check(text).refused)
