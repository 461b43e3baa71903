"""`env_file`, `deploy`, `build`, `network_mode`: what of them is taken, and what is refused by name."""

from __future__ import annotations

import re

import pytest

from fractal.api.app import Limits
from fractal.api.errors import InvalidInput
from fractal.manifest import Given, parse
from fractal.manifest.env_files import named

FILES = {
    "one.env": "A=1\nB=${PASSWORD}\nC='$literal # all of it'\nD=\"two\\nlines\"\r\n",
    "two.env": "\ufeff# a comment\n\nexport A = 2 # another\nE=\nF=x#y\nG=${NOT_SET:-fallback}$$\n",
}


def test_later_files_and_the_environment_itself_come_first() -> None:
    text = """
x-homeserver: {secrets: {generate: [PASSWORD]}}
services:
  main: {image: x, env_file: [one.env, {path: two.env}], environment: {E: own}}
"""
    assert named(text) == ("one.env", "two.env")
    (service,) = parse(text, files=FILES).services
    assert service.env == {
        "A": "2",
        "B": "{secret.PASSWORD}",
        "C": "$literal # all of it",
        "D": "two\nlines",
        "E": "own",
        "F": "x#y",
        "G": "fallback$",
    }
    assert service.secrets == ("PASSWORD",)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "- x",
        "services: 7",
        "services: {a: 7}",
        "services: {a: {env_file: {}}}",
        "services: {a: {env_file: [[]]}}",
        "{{",
    ],
)
def test_names_of_files_are_sought_in_anything(text: str) -> None:
    assert named(text) == ()


def test_a_deployment_on_one_device() -> None:
    deploy = "{resources: {limits: {memory: 64M, cpus: '1.5', pids: 9}, reservations: {memory: 1m}}, restart_policy: {condition: none}}"
    (service,) = parse(f"services: {{main: {{image: x, restart: always, deploy: {deploy}}}}}").services
    assert service.limits == Limits(memory=64 << 20, cpus=1.5, processes=9)
    assert (service.restart, service.options) == ("no", {"mem_reservation": "1048576"})


@pytest.mark.parametrize(
    ("service", "problem"),
    [
        ("build: .", "its context is not brought along"),
        ("image: x, build: ., pull_policy: build", "its context is not brought along"),
        ("image: x, network_mode: host", "needs --allow host-network"),
        ("image: x, network_mode: none, networks: [default]", "leaves no network"),
        ("image: x, env_file: ../../secrets", "needs file above/above/secrets"),
        ("image: x, env_file: a/../../secrets", "leads out"),
        (
            "image: x, env_file: /etc/passwd",
            "needs file root/etc/passwd",
        ),
        ("image: x, env_file: ~/.env", "needs file home/.env"),
        ("image: x, env_file: ~ada/.env", "leads out"),
        ("image: x, env_file: /srv/../../x", "leads out"),
        ("image: x, env_file: [{path: unset.env, format: json}]", "not one of raw"),
        ("image: x, network_mode: 'container:elsewhere'", "is no container of this file"),
        ("image: x, networks: ['${NET}']", "needs --set NET=VALUE"),
        ("image: x, cap_add: [cap_sys_admin]", "needs --allow capability:SYS_ADMIN"),
        ("image: x, expose: ['8000:8000']", "not a port inside"),
        ("image: x, uts: host, hostname: a", "and `hostname`"),
        ("image: x, uts: yours", "not supported"),
        ("image: x, device_cgroup_rules: [all]", "expected a kind of devices"),
        ("image: x, device_cgroup_rules: ['${RULE}']", "needs --set RULE=VALUE"),
        ("image: x, devices: ['${STICK}:/dev/ttyUSB0']", "needs --set STICK=VALUE"),
        ("image: x, device_cgroup_rules: ['c 1:* rwm']", "needs --allow device-rule:c:1:*:rwm"),
        ("image: x, env_file: gone.env", "needs file gone.env"),
        ("image: x, env_file: bad.env", "bad.env:2: expected NAME=VALUE"),
        ("image: x, deploy: {replicas: many}", "whole number"),
        ("image: x, deploy: {mode: worldwide}", "not one of"),
        ("image: x, deploy: {place: {}}", "deploy.place: not supported"),
        (
            "image: x, deploy: {resources: {reservations: {devices: [{capabilities: [tpu]}]}}}",
            "only GPUs can be reserved",
        ),
        ("image: x, mem_limit: 1g, deploy: {resources: {limits: {memory: 2g}}}", "says otherwise"),
    ],
)
def test_wrong_env_files_deployments_builds_and_networks(service: str, problem: str) -> None:
    files = {"bad.env": "A=1\nnot a line"}
    with pytest.raises(InvalidInput, match=re.escape(problem)):
        parse(f"services: {{main: {{{service}}}}}", files=files)


def test_a_name_alone_in_an_env_file_is_a_variable_and_a_colon_stands_for_the_equals_sign() -> None:
    """As in `environment`: the device's own has no part in it."""
    text, files = "services: {main: {image: x, env_file: a.env}}", {"a.env": "NAME\nexport OTHER\nC: 'd e'\n"}
    (main,) = parse(text, files=files).services
    assert main.env == {"C": "d e"}
    (main,) = parse(text, given=Given(values={"NAME": "given"}, files=files)).services
    assert main.env == {"C": "d e", "NAME": "{secret.NAME}"}


def test_a_raw_env_file_means_what_it_says_and_holds_no_nul() -> None:
    text = "services: {main: {image: x, env_file: [{path: a.env, format: raw}]}}"
    (main,) = parse(text, files={"a.env": "  # no value\nA='$B' \n  C= d\n"}).services
    assert main.env == {"A": "'$B' ", "C": " d"}
    with pytest.raises(InvalidInput, match=r"a\.env:2: holds NUL"):
        parse(text, files={"a.env": "A=1\nB=\0"})
