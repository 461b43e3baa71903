"""Values of keys that are passed on to runtimes, and limits: what no runtime takes is refused with its line."""

from __future__ import annotations

import json

import pytest

from fractal.api.app import ServiceSpec
from fractal.manifest import Given, check, from_plain_spec, parse, to_plain_spec


def one(body: str) -> ServiceSpec:
    spec = parse(f"services: {{main: {{image: x, {body}}}}}\n")
    assert from_plain_spec(to_plain_spec(spec)) == spec
    (service,) = spec.services
    return service


def test_limits_in_the_words_of_older_files() -> None:
    service = one("mem_limit: 64m, memswap_limit: 1.5g, cpu_quota: 50000, cpu_period: 200000")
    assert (service.limits.memory, service.limits.cpus) == (64 << 20, 0.25)
    assert service.options["memswap_limit"] == '"1.5g"'
    assert one("cpu_quota: 50000").limits.cpus == 0.5
    assert one("cpu_quota: -1, cpu_period: 1000").limits.cpus == 0.0
    assert one("memswap_limit: -1").options["memswap_limit"] == "-1"


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("memswap_limit: 1g", "needs `mem_limit`"),
        ("mem_limit: 1g, memswap_limit: 512m", "cannot be below `mem_limit`"),
        ("memswap_limit: much", "expected a size"),
        ("cpus: 1, cpu_quota: 50000", "only one of them"),
        ("cpu_quota: half", "whole number"),
        ("cpu_quota: 50000, cpu_period: 10", "whole number from 1000"),
        ("cpu_quota: 50000, deploy: {resources: {limits: {cpus: '2'}}}", "says otherwise"),
        ("network_mode: 'service:main', dns_search: a.example", "belongs to the service whose network"),
    ],
)
def test_limits_that_cannot_be_meant_are_refused_by_name(body: str, words: str) -> None:
    found = check(f"services:\n  main:\n    image: x\n  other: {{image: x, {body}}}\n").refused
    assert any(words in f.text and f.line == 4 for f in found), found


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("shm_size: lots", "expected a size"),
        ("hostname: my oak", "not a host's name"),
        ("extra_hosts: ['a b:192.0.2.1']", "not a host's name"),
        ("extra_hosts: {oak: elsewhere.example}", "host-gateway"),
        ("devices: [{target: /dev/x}]", "a device's path"),
        ("devices: [other.com/gpu=all]", "a device's path"),
        ("logging: {options: {max-file: none}}", "expected a whole number"),
        ("logging: {options: {max-size: much}}", "expected a size"),
        ("mem_reservation: [1m]", "expected text"),
        ("hostname: {a: b}", "expected text"),
        ("platform: [linux/amd64]", "expected text"),
        ("cap_drop: ALL", "expected a list"),
        ("cap_drop: [' ALL']", "not a capability"),
        ("cap_add: [CAP_CAP_SYS_ADMIN]", "not a capability"),
        ("cap_add: [' SYS_ADMIN']", "not a capability"),
        ("group_add: [[44]]", "expected text"),
        ("expose: {80: 80}", "expected a list"),
        ("dns: {a: 192.0.2.1}", "expected text"),
        ("tmpfs: [{path: /tmp}]", "expected text"),
        ("labels: on", "expected a mapping"),
        ("labels: {a: {b: c}}", "expected text"),
        ("extra_hosts: 7", "expected a mapping"),
        ("sysctls: {net.core.somaxconn: [[1]]}", "expected text"),
        ("cpu_shares: many", "expected a whole number"),
        ("oom_score_adj: 2000", "expected a whole number"),
        ("ulimits: [nofile]", "expected a mapping"),
        ("ulimits: {nofile: many}", "expected a whole number"),
        ("ulimits: {nofile: [1, 2]}", "expected text"),
        ("ulimits: {nofile: {soft: 1}}", "`soft` and `hard`"),
        ("ulimits: {nofile: {soft: 1, hard: 2, firm: 3}}", "not supported"),
    ],
)
def test_a_form_that_no_runtime_takes_is_refused_with_its_line(body: str, words: str) -> None:
    (found, *_) = check(f"services:\n  main:\n    image: x\n    {body}\n", "app.yml").refused
    assert found.line == 4 and found.key.startswith(f"services.main.{body.partition(chr(58))[0]}")
    assert words in found.text, found


@pytest.mark.parametrize(
    ("body", "key", "option"),
    [
        ("ulimits: {nofile: {soft: '1024', hard: '2048'}, core: '0'}", "ulimits", {"nofile": {"soft": 1024, "hard": 2048}, "core": 0}),
        ("labels: {empty: , com.docker.compose.project: x, io.podman.y: z, a: true}", "labels", {"empty": "", "a": "true"}),
        ("labels: [bare, a=b=c, com.docker.x=y]", "labels", {"bare": "", "a": "b=c"}),
        ("extra_hosts: {oak: [192.0.2.1, '[::1]'], elm: host-gateway}", "extra_hosts", ["oak=192.0.2.1", "oak=::1", "elm=host-gateway"]),
        ("dns: ['${NONE:-}', 192.0.2.1]", "dns", ["192.0.2.1"]),
        ("shm_size: 512Mi", "shm_size", "512Mi"),
        ("logging: {driver: local, options: {max-size: 200m, max-file: 20, tag: x}}", "logging", {"options": {"max-size": "67108864", "max-file": "10"}}),
        ("logging: {options: {max-size: -1, max-file: '3'}}", "logging", {"options": {"max-size": "67108864", "max-file": "3"}}),
        ("devices: [{source: /dev/dri, target: /dev/x, permissions: r}]", "devices", ["/dev/dri:/dev/x:r"]),
        ("devices: [nvidia.com/gpu=0, nvidia.com/gpu=all]", "gpus", [{"ids": ["0"]}, {"count": -1}]),
        ("gpus: [{driver: cdi, device_ids: [nvidia.com/gpu=GPU-1]}]", "gpus", [{"ids": ["GPU-1"]}]),
        ("network_mode: lan", "networks", {"lan": False}),
    ],
)  # fmt: skip
def test_whatever_form_it_is_said_in(body: str, key: str, option: object) -> None:
    """Each of these is in files that people have, and was refused once: here, or only when it was installed."""
    allowed = frozenset({"gpu", "device:/dev/dri"})
    spec = parse(
        f"services: {{main: {{image: x, {body}}}, other: {{image: y}}}}\n", given=Given(allowed=allowed)
    )
    options = spec.services[0].options
    assert json.loads(options[key]) == option
    assert key == "devices" or "devices" not in options


@pytest.mark.parametrize(
    "body",
    [
        *("hostname: $HOST", "platform: '${X:-}'", "dns: '${X:-}'", "oom_score_adj: -500"),
        *("isolation: default", "cpu_count: 2", "mac_address: '02:42:ac:11:00:02'", "cpu_rt_runtime: 400ms"),
        *("security_opt: ['no-new-privileges:false']", "security_opt: ['label:type:spc_t']"),
        *("security_opt: ['apparmor:docker-default']", "security_opt: [seccomp=builtin]"),
        *("network_mode: pasta", "logging: {driver: '${X:-}'}"),
        "deploy: {resources: {reservations: {generic_resources: [{discrete_resource_spec: {kind: G, value: 1}}]}}}",
    ],
)
def test_what_asks_for_nothing_here_is_in_no_option(body: str) -> None:
    assert one(body).options == {}


@pytest.mark.parametrize(
    ("body", "name"),
    [
        ("dns: ['${DNS}']", "DNS"),
        ("dns_search: $AT", "AT"),
        ("extra_hosts: ['oak:${IP}']", "IP"),
        ("group_add: ['${GROUP}']", "GROUP"),
        ("tmpfs: ['/tmp:size=${SIZE}']", "SIZE"),
        ("logging: {options: {max-size: '${SIZE}'}}", "SIZE"),
        ("logging: {driver: '${DRIVER}'}", "DRIVER"),
        ("devices: [{source: '${STICK}', target: /dev/x}]", "STICK"),
        ("security_opt: ['seccomp=${FILTER}']", "FILTER"),
        ("volumes: ['${AT:?where it is}:/x']", "AT"),
        ("volumes: [{type: bind, source: '${AT:?where it is}', target: /x}]", "AT"),
        ("profiles: [off], volumes: [{type: bind, source: '${AT:?}', target: /x}]", ""),
    ],
)
def test_what_makes_no_sense_without_a_value_is_needed(body: str, name: str) -> None:
    found = check(f"services: {{main: {{image: x}}, other: {{image: x, {body}}}}}")
    assert found.refused == ()
    assert [option for option, _ in found.needs] == ([f"--set {name}=VALUE"] if name else [])


def test_forms_that_compose_takes_are_taken() -> None:
    service = one(
        """group_add: [44, audio], expose: [80, "90-92/udp"], dns: 192.0.2.1, tmpfs: /tmp, labels: {a: true, b: 1, c: },
        extra_hosts: {oak: 10.1.2.3}, sysctls: [net.core.somaxconn=1], cpu_shares: "77", ulimits: {nofile: "9", core: {soft: 0, hard: -1}},
        shm_size: 1.5gb, hostname: 7"""
    )
    assert {"group_add", "expose", "dns", "labels", "ulimits", "shm_size"} <= service.options.keys()
