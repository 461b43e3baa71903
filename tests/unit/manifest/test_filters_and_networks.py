"""What a file takes of the device or of a cluster in its own words: filters of system calls, networks, stores, volume plugins."""

from __future__ import annotations

import json

import pytest

from fractal.manifest import Given, check, keys, parse
from fractal.manifest.env_files import named
from fractal.manifest.report import report

FILTER = '{"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [{"names": ["read"], "action": "SCMP_ACT_ALLOW"}]}'


@pytest.mark.parametrize(
    ("written", "path"),
    [
        ("seccomp:./filter.json", "filter.json"),
        ("seccomp=parts/filter.json", "parts/filter.json"),
        ("seccomp:../filter.json", "above/filter.json"),
        ("seccomp=/etc/filter.json", "root/etc/filter.json"),
    ],
)
def test_a_filter_of_system_calls_is_taken_from_beside_the_manifest_and_allowed_by_name(
    written: str, path: str
) -> None:
    body = f"security_opt: ['{written}']"
    text = f"services: {{main: {{image: x, {body}}}}}"
    assert path in named(text)
    assert [option for option, _ in check(text).needs] == [f"file {path}"]
    found = check(text, given=Given(files={path: FILTER}))
    assert [option for option, _ in found.needs] == ["--allow security-opt:seccomp=profile"]
    assert report(found)["forbids_failover"] == ["security-opt:seccomp=profile"]
    unconfined = frozenset({"security-opt:seccomp=unconfined"})
    assert check(text, given=Given(files={path: FILTER}, allowed=unconfined)).needs
    allowed = frozenset({"security-opt:seccomp=profile"})
    (service,) = parse(text, given=Given(files={path: FILTER}, allowed=allowed)).services
    (option,) = json.loads(service.options["security_opt"])
    assert json.loads(option.removeprefix("seccomp=")) == json.loads(FILTER)


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"defaultAction": 1}', "[" * 100_000, " " * (1 << 18) + FILTER]
)
def test_what_is_no_filter_is_refused(text: str) -> None:
    found = check(
        "services:\n  main:\n    image: x\n    security_opt: ['seccomp:f.json']",
        given=Given(files={"f.json": text}),
    )
    (refused,) = found.refused
    assert refused.line == 4 and "no filter of system calls" in refused.text


def test_no_program_of_the_device_decides_on_system_calls() -> None:
    """Engines connect to that path on the device themselves; their parser takes the key in any case."""
    found = check(
        "services: {main: {image: x, security_opt: ['seccomp:f.json']}}",
        given=Given(files={"f.json": '{"defaultAction": "SCMP_ACT_ALLOW", "ListenerPath": "/run/x"}'}),
    )
    (refused,) = found.refused
    assert "listenerPath" in refused.text


def test_networks_of_other_kinds_are_bridges_and_said_to_be() -> None:
    text = """
services:
  main: {image: x, networks: {lan: {ipv4_address: 192.0.2.7}}}
  beside: {image: x, network_mode: lan}
  alone: {image: x, network_mode: theirs}
networks: {lan: {driver: %s, driver_opts: {parent: eth0}, internal: true}}
"""
    for driver in ("macvlan", "ipvlan", "overlay"):
        found = check(text % driver)
        assert found.refused == () and found.spec is not None
        assert {f.key: f.text for f in found.idle}["networks.lan.driver"] == keys.NETWORK_DRIVERS[driver]
        assert {s.name: json.loads(s.options["networks"]) for s in found.spec.services} == {
            "main": {"lan": True},
            "beside": {"lan": True},
            "alone": {"theirs": False},
        }
    (refused,) = check(text % "weave").refused
    assert refused.key == "networks.lan.driver"


def test_what_a_cluster_keeps_in_a_store_is_asked_for() -> None:
    text = """
services: {main: {image: x, secrets: [db-password], configs: [{source: conf, target: /etc/x.conf}]}}
secrets: {db-password: {external: true, name: other}}
configs: {conf: {external: {name: elsewhere}}}
"""
    found = check(text)
    assert ([option for option, _ in found.needs], found.refused) == (
        ["--set conf=VALUE", "--set db_password=VALUE"],
        (),
    )
    (main,) = parse(text, given=Given(values={"conf": "c", "db_password": "p"})).services
    assert main.files == {"/etc/x.conf": "{secret.conf}", "/run/secrets/db-password": "{secret.db_password}"}
    assert main.secrets == ("conf", "db_password")


def test_where_every_service_has_a_profile_one_of_them_is_needed() -> None:
    text = """
services:
  a: {image: x, profiles: [one, two], privileged: true}
  b: {image: x, profiles: [three], depends_on: [a]}
"""
    found = check(text)
    needs = dict(found.needs)
    assert (found.refused, set(needs)) == ((), {"--set COMPOSE_PROFILES=VALUE", "--allow privileged"})
    assert needs["--set COMPOSE_PROFILES=VALUE"].text.endswith("of one, two, three")
    given = Given(values={"COMPOSE_PROFILES": "two"}, allowed=frozenset({"privileged"}))
    assert [one.name for one in parse(text, given=given).services] == ["a"]
    assert "--set COMPOSE_PROFILES=VALUE" in dict(
        check(text, given=Given(values={"COMPOSE_PROFILES": "x"})).needs
    )


def test_many_services_with_profiles_and_many_files_are_one_app_of_those_that_are_chosen() -> None:
    """As large as collections that people share: each app in a file of its own, each with a profile."""
    each = "services: {app%d: {image: x, profiles: [app%d]}}"
    files = {f"app{n}/compose.yml": each % (n, n) for n in range(100)}
    text = "include: [" + ", ".join(files) + "]\nnetworks: {default: {external: '${OWN:-false}'}}"
    found = check(text, given=Given(files=files))
    assert (found.refused, [option for option, _ in found.needs]) == ((), ["--set COMPOSE_PROFILES=VALUE"])
    spec = parse(text, given=Given(files=files, values={"COMPOSE_PROFILES": "app7,app99"}))
    assert [one.name for one in spec.services] == ["app7", "app99"]
    more = {f"more{n}.yml": each % (n + 100, n) for n in range(100)}
    for many in ("include: [%s]", "include: [{path: [%s]}]"):
        both = check(many % ", ".join({**files, **more}), given=Given(files={**files, **more}))
        assert any("more than 128 files" in one.text for one in both.refused)


@pytest.mark.parametrize(
    ("volume", "name"),
    [
        (r"'C:\Users\ada\Documents:/data'", "c-Users-ada-Documents"),
        ("'C:/Users/ada:/data'", "c-Users-ada"),
        (r"'.\conf:/data:ro'", "conf"),
        (r"{type: bind, source: 'D:\x', target: /data}", "d-x"),
        ("'c:/data'", "c"),
    ],
)
def test_a_path_of_windows_is_a_folder_of_the_app(volume: str, name: str) -> None:
    text = f"services: {{main: {{image: x, volumes: [{volume}]}}}}\nvolumes: {{c: }}"
    (main,) = parse(text).services
    assert [mount.volume for mount in main.mounts] == [name]
    told = {one.text for one in check(text).idle}
    assert told == ({"a folder of the app's own stands for a path of Windows"} if name[1:2] == "-" else set())


@pytest.mark.parametrize(
    "volume", [r"C:\..\x:/data", r".\..\x\..\..\y:/data", r"\\host\x:/data", r"x\y:/data"]
)
def test_a_path_of_windows_leads_out_no_more_than_others(volume: str) -> None:
    found = check(f"services: {{main: {{image: x, volumes: ['{volume}']}}}}")
    assert any("leads out" in one.text for one in found.refused)


def test_a_file_beside_the_manifest_is_found_as_windows_names_it() -> None:
    text = r"services: {main: {image: x, volumes: ['.\conf\x.conf:/etc/x.conf']}}"
    assert named(text) == ("conf/x.conf",)
    (main,) = parse(text, files={"conf/x.conf": "much"}).services
    assert main.files == {"/etc/x.conf": "much"}


def test_a_file_of_composes_first_version_is_told_what_it_lacks() -> None:
    refused = check("db: {image: x}").refused
    assert any("put those at the top below `services:`" in one.text for one in refused)


def test_a_name_in_a_domain_is_made_of_what_has_a_value() -> None:
    text = "services: {main: {image: x, hostname: %s, domainname: %s}}"
    for host, domain, name in (
        ("a", "b.c", "a.b.c"),
        ("$NONE", "b", "main.b"),
        ("a", "$NONE", "a"),
        ("", "b", "main.b"),
    ):
        (main,) = parse(text % (host or "null", domain)).services
        assert json.loads(main.options["hostname"]) == name


def test_a_volume_that_a_plugin_only_binds_is_a_folder_of_the_device() -> None:
    text = "services: {main: {image: x, volumes: ['v:/x']}}\nvolumes: {v: {driver: local-persist, driver_opts: {mountpoint: %s}}}"
    assert [option for option, _ in check(text % "/srv/v").needs] == ["--allow host-path:/srv/v"]
    assert [option for option, _ in check(text % "'${AT:?where}'").needs] == ["--set AT=VALUE"]
    (refused,) = check((text % "/srv/v").replace("local-persist", "rclone")).refused
    assert refused.key == "volumes.v.driver" and "mount it on the device" in refused.text


def test_of_volumes_at_one_place_the_last_one_counts() -> None:
    """As Compose has it; what is not mounted is asked for by nobody. Engines take one volume at a place only."""
    volumes = r"""
      - ./one:/in/
      - /srv/other:/other
      - C:\x:/w
      - C:\y:/v
      - {type: bind, source: ./two, target: /in, read_only: true}
      - ./three:/other
      - ./root:/
      - ${A:-a}:/${B:-b}
      - ${C:-c}:/${B:-b}"""
    text = f"volumes: {{a: , c: }}\nservices:\n  main:\n    image: x\n    volumes:{volumes}"
    (main,) = parse(text).services
    assert [(one.volume, one.target, one.read_only) for one in main.mounts] == [
        ("c-x", "/w", False),
        ("c-y", "/v", False),
        ("two", "/in", True),
        ("three", "/other", False),
        ("root", "/", False),
        ("c", "/b", False),
    ]
    covered = [one.key for one in check(text).idle if "at the same place" in one.text]
    assert covered == [f"services.main.volumes[{index}]" for index in (0, 1, 7)]


@pytest.mark.parametrize(
    ("written", "device"),
    [
        ("/dev/kmsg:/dev/kmsg:ro", "/dev/kmsg:/dev/kmsg:r"),
        ("{source: /dev/a, target: /dev/b, permissions: mrw}", "/dev/a:/dev/b:rwm"),
        ("/dev/a:wr", "/dev/a:rw"),
        ("/dev/a:/dev/b", "/dev/a:/dev/b"),
        ("'/dev/a::'", "/dev/a"),
        ("/dev/a:/dev/b:rx", ""),
        ("/dev/a:/dev/b:rr", ""),
        ("/dev/a:/dev/b:row", ""),
    ],
)
def test_permissions_of_devices_are_as_engines_take_them(written: str, device: str) -> None:
    text = f"services: {{main: {{image: x, devices: [{written}]}}}}"
    if not device:
        (refused,) = check(text).refused
        assert refused.key == "services.main.devices[0]" and "some of `rwm`" in refused.text
        return
    name = f"device:{device.partition(':')[0]}"
    (main,) = parse(text, given=Given(allowed=frozenset({name}))).services
    assert json.loads(main.options["devices"]) == [device]
