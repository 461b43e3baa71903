"""Compose keys that no engine is asked for: refused by name, or translated into each engine's words."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from fractal_containers.check import refusals
from fractal_containers.config import EngineConfig
from fractal_containers.options import READERS, settings
from fractal_containers.wanted import Wanted
from fractal_docker.words import payload as docker_words
from fractal_podman.words import payload as podman_words

from fractal.api.app import REACHING_OUT, AppSpec, Mount, ServiceSpec
from fractal.manifest import Given, compose, parse


def wanted(service: ServiceSpec) -> Wanted:
    """What an engine is asked for; names and places are nothing that these tests look at."""
    return Wanted(
        name="x",
        image="x",
        labels={},
        networks=("n",),
        alias="a",
        cgroup_parent="/p",
        log_bytes=1,
        limits=service.limits,
        options=settings(service.options),
    )


def test_gpus_are_asked_for_in_each_engines_words() -> None:
    """No GPU is here to run with."""
    (service,) = parse(
        "services: {a: {image: x, deploy: {resources: {reservations: {devices: [{driver: nvidia, count: 2, capabilities: [gpu]}]}}}}}",
        given=Given(allowed=frozenset({"gpu"})),
    ).services
    options = settings(service.options)
    assert (options.gpus, options.ties) == (((2, ()),), ("gpu",))
    asked = wanted(service)
    (request,) = docker_words(asked)["host_config"]["DeviceRequests"]
    assert (request["Driver"], request["Count"], request["Capabilities"]) == ("nvidia", 2, [["gpu"]])
    assert podman_words(asked)["devices"] == [{"path": "nvidia.com/gpu=0"}, {"path": "nvidia.com/gpu=1"}]


def test_swap_and_resolving_are_said_in_the_words_of_both_engines() -> None:
    (service,) = parse(
        "services: {a: {image: x, mem_limit: 64m, memswap_limit: 1.5g, dns_search: oak.example, dns_opt: ['ndots:2']}}"
    ).services
    asked = wanted(service)
    host = docker_words(asked)["host_config"]
    assert (host["Memory"], host["MemorySwap"]) == (64 << 20, 3 << 29)
    assert (host["DnsSearch"], host["DnsOptions"]) == (["oak.example"], ["ndots:2"])
    made = podman_words(asked)
    assert made["resource_limits"]["memory"] == {"limit": 64 << 20, "swap": 3 << 29}
    assert (made["dns_search"], made["dns_option"]) == (["oak.example"], ["ndots:2"])


def test_what_is_the_devices_own_is_said_in_the_words_of_both_engines() -> None:
    """A container sees of some of it only what cgroup v2 keeps apart."""
    allowed = frozenset({"host-uts", "host-cgroup", "device-rule:c:188:*:rw", "device-rule:a:*:*:m"})
    (service,) = parse(
        "services: {a: {image: x, uts: host, cgroup: host, device_cgroup_rules: ['c 188:* rw', 'a *:* m']}}",
        given=Given(allowed=allowed),
    ).services
    asked = wanted(service)
    assert set(asked.options.ties) == allowed
    host = docker_words(asked)["host_config"]
    assert (host["UTSMode"], host["CgroupnsMode"]) == ("host", "host")
    assert host["DeviceCgroupRules"] == ["c 188:* rw", "a *:* m"]
    made = podman_words(asked)
    assert made["utsns"] == made["cgroupns"] == {"nsmode": "host"}
    assert made["device_cgroup_rule"] == [
        {"allow": True, "type": "c", "access": "rw", "major": 188},
        {"allow": True, "type": "a", "access": "m"},
    ]


FILTER = '{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["mkdir"],"action":"SCMP_ACT_ERRNO"}]}'


def test_a_filter_of_system_calls_is_told_to_each_engine_in_its_way() -> None:
    """Docker takes the text, Podman a file that it reads."""
    allowed = frozenset({"security-opt:seccomp=profile", "security-opt:apparmor=unconfined"})
    given = Given(files={"f.json": FILTER}, allowed=allowed)
    text = "services: {a: {image: x, security_opt: ['seccomp:f.json', 'apparmor:unconfined']}}"
    (service,) = parse(text, given=given).services
    asked = replace(wanted(service), filter_file=Path("/run/filter"))
    assert (frozenset(asked.options.ties), asked.options.filtered) == (allowed, FILTER)
    found = docker_words(asked)["host_config"]["SecurityOpt"]
    assert found == ["no-new-privileges", "apparmor=unconfined", f"seccomp={FILTER}"]
    made = podman_words(asked)
    assert (made["seccomp_profile_path"], made["apparmor_profile"]) == ("/run/filter", "unconfined")


def test_the_name_of_a_user_that_is_made_may_be_seen_and_its_password_not() -> None:
    text = """
services:
  db:
    image: x
    environment: {A: "${SERVICE_USER_DB}:${SERVICE_PASSWORD_DB}"}
    healthcheck: {test: [CMD, ready, -U, "${SERVICE_USER_DB}"]}
"""
    assert list(refusals(parse(text), EngineConfig())) == []
    allowed = frozenset({"visible-secret:SERVICE_PASSWORD_DB"})
    spec = parse(text.replace('-U, "${SERVICE_USER', '-U, "${SERVICE_PASSWORD'), given=Given(allowed=allowed))
    assert list(refusals(spec, EngineConfig())) == []
    (refusal,) = refusals(replace(spec, allowed=()), EngineConfig())
    assert "would be seen in `ps`" in refusal.reason


def test_a_name_may_have_several_addresses() -> None:
    (service,) = parse("services: {a: {image: x, extra_hosts: {oak: [192.0.2.1, '::1']}}}").services
    asked = wanted(service)
    assert docker_words(asked)["host_config"]["ExtraHosts"] == ["oak:192.0.2.1", "oak:::1"]
    assert podman_words(asked)["hostadd"] == ["oak:192.0.2.1", "oak:::1"]


@pytest.mark.parametrize(
    ("source", "target", "fits"),
    [
        ("/sys", "/sys", True),
        ("/dev/bus/usb", "/dev/bus/usb", True),
        ("/dev/shm", "/dev/shm", True),
        ("/proc", "/proc", False),
        ("/srv/x", "/proc/x", False),
        ("/srv/x", "/", False),
        ("ours", "/sys", False),
        ("ours", "/dev/x", False),
    ],
)
def test_only_what_is_the_devices_own_is_mounted_where_the_kernel_has_its_own(
    source: str, target: str, fits: bool
) -> None:
    """It has to be allowed by its name, here and by whoever installs it."""
    mount = (
        Mount(volume="", host=source, target=target)
        if source[0] == "/"
        else Mount(volume=source, target=target)
    )
    spec = AppSpec(
        name="x", volumes=("ours",), services=(ServiceSpec(name="main", image="x", mounts=(mount,)),)
    )
    found = [r.reason for r in refusals(spec, EngineConfig(allow=("all",)))]
    assert ([] if fits else [True]) == ["nothing can be mounted" in reason for reason in found]
    assert list(refusals(spec, EngineConfig()))


@pytest.mark.parametrize(
    ("more", "fits"),
    [
        ("", True),
        ("environment: {T: '${S}'}", True),
        ("x-homeserver: {secrets: [S]}", False),
        ("secrets: [s]", False),
    ],
)
def test_a_folder_may_be_where_secrets_are_if_there_are_none(more: str, fits: bool) -> None:
    text = (
        f"x-homeserver: {{secrets: {{generate: [S]}}}}\nsecrets: {{s: {{environment: S}}}}\n"
        f"services: {{main: {{image: x, volumes: ['./given:/run/secrets:ro'], {more}}}, other: {{image: x}}}}"
    )
    assert [r.key for r in refusals(parse(text), EngineConfig())] == ([] if fits else ["volumes"])


def test_every_option_of_the_manifest_is_known_here() -> None:
    assert set(READERS) == compose.OPTION_KEYS | {
        "healthcheck.disable",
        "network_mode",
        "networks",
        "gpus",
        "aliases",
    }


@pytest.mark.parametrize(
    ("key", "text", "words"),
    [
        ("devices", '["/etc/passwd"]', "not a device"),
        ("devices", '["/dev/../etc/x"]', "not a device"),
        ("devices", '["/dev/kvm"]', "allow"),
        ("sysctls", '{"vm.swappiness":"1"}', "whole device"),
        ("sysctls", '["kernel.core_pattern=|x"]', "whole device"),
        ("group_add", '["a b"]', "group"),
        ("cpu_shares", '"many"', "262144"),
        ("oom_score_adj", "-5", "below 0"),
        ("cpu_shares", "300000", "262144"),
        ("security_opt", '["seccomp=/etc/x"]', "expected"),
        ("security_opt", '["seccomp={}"]', "filter of system calls"),
        ("security_opt", '["seccomp={"]', "security_opt"),
        ("security_opt", '["seccomp={' + "[" * 100000 + '"]', "security_opt"),
        ("security_opt", '["seccomp={\\"a\\":' + "[" * 100000 + '"]', "filter of system calls"),
        ("security_opt", '["seccomp={\\"defaultAction\\":\\"x\\",\\"ListenerPath\\":\\"/x\\"}"]', "decides"),
        ("security_opt", '["seccomp={\\"defaultAction\\":\\"SCMP_ACT_LOG\\"}"]', "seccomp=profile"),
        ("security_opt", '["seccomp={\\"defaultAction\\":\\"x\\"}","seccomp=unconfined"]', "one filter"),
        ("pid", '"service:x"', "not supported"),
        ("ipc", '"host"', "allow"),
        ("gpus", '[{"count":0}]', "GPUs"),
        ("stdin_open", "1", "true or false"),
        ("privileged", "true", "reach"),
        ("privileged", '"yes"', "true or false"),
        ("network_mode", '"host"', "allow"),
        ("network_mode", '"service:x"', "no service that is started before it"),
        ("network_mode", '"container:x"', "not supported"),
        ("networks", "{}", "1 to 16"),
        ("networks", '{"a":"yes"}', "true or false"),
        ("dns", '["resolver"]', "address"),
        ("dns_search", '["a b"]', "a domain"),
        ("dns_opt", '["ndots:1 nameserver 1.2.3.4"]', "a resolver's option"),
        ("memswap_limit", '"lots"', "size"),
        ("logging", '{"driver":"syslog"}', "driver"),
        ("logging", '{"options":{"tag":"x"}}', "tag"),
        ("logging", '{"options":{"max-size":"10g"}}', "at most"),
        ("mem_reservation", '"some"', "size"),
        ("cap_add", '["SYS_ADMIN"]', "reach"),
        ("cap_add", '["ALL"]', "reach"),
        ("cap_add", '["no sense"]', "capability"),
        ("cap_add", '["CAP_CAP_SYS_ADMIN"]', "capability"),
        ("cap_add", '["cap_all"]', "reach"),
        ("labels", '{"org.fractal-homeserver.run":"x"}', "not the app's"),
        ("labels", '["a={secret.PASSWORD}"]', "secret"),
        ("tmpfs", '["relative"]', "absolute"),
        ("tmpfs", '["/x:uidmap=1"]', "not supported"),
        ("shm_size", '"much"', "size"),
        ("ulimits", '{"nofile":"many"}', "ulimits"),
        ("extra_hosts", '["only-a-name"]', "address"),
        ("hostname", '"a b"', "name"),
        ("init", '"yes"', "true or false"),
        ("read_only", "[]", "true or false"),
        ("expose", '["all"]', "port"),
        ("expose", '["8000:8000"]', "port"),
        ("expose", '["9-8"]', "port"),
        ("uts", '"private"', "not supported"),
        ("cgroup", '"host"', "allow"),
        ("device_cgroup_rules", '["c 1:1"]', "kinds of devices"),
        ("device_cgroup_rules", '["c 10:* rw"]', "allow"),
        ("platform", '"../x"', "platform"),
        ("ulimits", "7", "ulimits"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(key: str, text: str, words: str) -> None:
    spec = AppSpec(name="x", services=(ServiceSpec(name="main", image="x", options={key: text}),))
    (refusal,) = refusals(spec, EngineConfig())
    assert (refusal.service, refusal.key) == ("main", key)
    assert words in f"{refusal.key}: {refusal.reason}"


def test_a_device_may_allow_what_reaches_out() -> None:
    for name in sorted(REACHING_OUT):
        made = settings({"cap_add": f'["{name}"]'}, frozenset({f"CAP_{name}"}))
        assert made.cap_add == (name,)


@pytest.mark.parametrize("name", ["NET_ADMIN", "NET_RAW"])
@pytest.mark.parametrize(
    "mode", ['"host"', ' "host"', '"\\u0068ost"', '"service:first"', ' "service:first" ']
)
def test_a_device_gives_its_network_apart_from_what_can_change_it(name: str, mode: str) -> None:
    """Whatever the manifest was read with, and however a member's specification writes it."""
    first = ServiceSpec(name="first", image="x", options={"network_mode": '"host"'})
    main = ServiceSpec(
        name="main",
        image="x",
        depends_on={"first": "started"},
        options={"network_mode": mode, "cap_add": f'["cap_{name.lower()}"]'},
    )
    spec = AppSpec(name="x", services=(first, main), allowed=("host-network", f"capability:{name}"))
    for allow in ("host-network", "all"):
        (refusal,) = refusals(spec, EngineConfig(allow=(allow,)))
        assert (refusal.service, refusal.key) == ("main", "cap_add")
        assert f'capabilities = ["{name}"]' in refusal.reason
        assert not list(refusals(spec, EngineConfig(allow=(allow,), capabilities=(f"CAP_{name}",))))
    (refusal, *_) = refusals(spec, EngineConfig(capabilities=(name,)))
    assert refusal.key == "network_mode"


@pytest.mark.parametrize("mode", ['"none"', '"service:first"', ""])
def test_in_a_network_of_the_apps_own_it_may_change_what_it_likes(mode: str) -> None:
    options = {"network_mode": mode} if mode else {}
    main = ServiceSpec(
        name="main",
        image="x",
        depends_on={"first": "started"},
        options={**options, "cap_add": '["NET_ADMIN","NET_RAW"]'},
    )
    spec = AppSpec(name="x", services=(ServiceSpec(name="first", image="x"), main))
    assert not list(refusals(spec, EngineConfig()))


def test_a_network_that_is_another_ones_is_known_however_it_is_written() -> None:
    main = ServiceSpec(name="main", image="x", options={"network_mode": ' "service:gone"'})
    (refusal,) = refusals(AppSpec(name="x", services=(main,)), EngineConfig())
    assert "no service that is started before it" in refusal.reason


@pytest.mark.parametrize(
    ("service", "key"),
    [
        ("command: [x, '${S}']", "command"),
        ("healthcheck: {test: [CMD, x, '${S}']}", "healthcheck"),
        ("volumes: ['a:/']", "volumes"),
        ("volumes: ['a:/run/secrets'], x-homeserver: {secrets: [S]}", "volumes"),
        ("volumes: ['a:/x', 'b:/${B:-x}']", "volumes"),
        ("volumes: ['a:/proc/self']", "volumes"),
        ("stop_signal: 'RT; rm'", "stop_signal"),
        ("ports: [53/udp], x-homeserver: {health: {port: 53-udp}}", "health"),
    ],
)
def test_what_would_be_unsafe_is_refused(service: str, key: str) -> None:
    text = f"x-homeserver: {{secrets: {{generate: [S]}}}}\nservices: {{main: {{image: x, {service}}}}}"
    spec = replace(parse(text, given=Given(allowed=frozenset({"visible-secret:S"}))), allowed=())
    assert {r.key for r in refusals(spec, EngineConfig())} == {key}


def test_a_service_without_an_image_is_refused() -> None:
    spec = parse("services: {a: {x-homeserver: {process: {argv: [x]}}}}")
    assert [r.key for r in refusals(spec, EngineConfig())] == ["image"]
