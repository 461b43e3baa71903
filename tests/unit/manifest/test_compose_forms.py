"""Forms of the Compose Specification: each is honoured, without effect with a reason, needed, or refused with its line."""

from __future__ import annotations

from pathlib import Path

import pytest

from fractal.api.app import AppSpec, Mount, Port, ServiceSpec
from fractal.api.errors import InvalidInput
from fractal.manifest import Given, building, check, from_plain_spec, keys, parse, to_plain_spec
from fractal.manifest.report import report
from fractal.manifest.ties import ties


def one(body: str, given: Given | None = None, rest: str = "") -> ServiceSpec:
    (service,) = whole(body, given, rest).services
    return service


def whole(body: str, given: Given | None = None, rest: str = "") -> AppSpec:
    spec = parse(f"services: {{main: {{image: x, {body}}}}}\n{rest}", given=given)
    assert from_plain_spec(to_plain_spec(spec)) == spec
    return spec


@pytest.mark.parametrize(
    ("text", "without", "empty", "full"),
    [
        ("$X", "", "", "v"),
        ("${X}", "", "", "v"),
        ("${X:-y}", "y", "y", "v"),
        ("${X-y}", "y", "", "v"),
        ("${X:+y}", "", "", "y"),
        ("${X+y}", "", "y", "y"),
        ("${X:?why}", None, None, "v"),
        ("${X?why}", None, "", "v"),
        ("${Y:-${X:-z}}", "z", "z", "v"),
        ("${Y-${Z-${X-a}b}c}", "abc", "bc", "vbc"),
        ("${X:+${X}-}end", "end", "end", "v-end"),
        ('${X:-{"a": 1}}', '{"a": 1}', '{"a": 1}', "v"),
        ("$$X $${X} 5$$", "$X ${X} 5$", "$X ${X} 5$", "$X ${X} 5$"),
        ("a${X}b$X", "ab", "ab", "avbv"),
        ("^/(sys|${X})($|/)(.*)$", "^/(sys|)($|/)(.*)$", "^/(sys|)($|/)(.*)$", "^/(sys|v)($|/)(.*)$"),
        ("/$1/$@$-$$$", "/$1/$@$-$$", "/$1/$@$-$$", "/$1/$@$-$$"),
    ],
)
def test_variables_in_all_forms(text: str, without: str | None, empty: str | None, full: str) -> None:
    """In a place where everybody sees the value anyway."""
    for values, expected in (({}, without), ({"X": ""}, empty), ({"X": "v"}, full)):
        body = f"labels: ['a=x', 'b={text}']" if '"' not in text else f"labels: {{b: '{text}'}}"
        if expected is None:
            with pytest.raises(InvalidInput, match=r"manifest:1: .*why; needs --set X=VALUE"):
                one(body, Given(values=values))
            continue
        found = one(body, Given(values=values)).options["labels"]
        assert (expected.replace('"', '\\"') + '"') in found


@pytest.mark.parametrize("text", ["${", "${}", "${1}", "${X!}", "${X:}", "a ${X:-${Y}"])
def test_variables_in_no_form_are_refused(text: str) -> None:
    with pytest.raises(InvalidInput, match="write \\$\\$ for a dollar sign"):
        one(f"environment: ['A={text}']")


def test_values_in_the_environment_stay_sealed() -> None:
    given = Given(values={"PASSWORD": "hunter2", "DOMAIN": "example.org", "TAG": "7"})
    spec = whole(
        "environment: ['P=${PASSWORD}', 'D=https://${DOMAIN:-none}/', 'N=${NONE}', DOMAIN, NONE], command: 'run ${DOMAIN}', hostname: 'h${TAG}'",
        given,
    )
    (service,) = spec.services
    assert service.env == {
        "P": "{secret.PASSWORD}",
        "D": "https://{secret.DOMAIN}/",
        "N": "",
        "DOMAIN": "{secret.DOMAIN}",
    }
    assert service.argv == ("run", "example.org")
    assert spec.given_secrets == ("DOMAIN", "PASSWORD")
    assert spec.values == {"DOMAIN": "example.org", "TAG": "7"}
    assert "hunter2" not in repr(to_plain_spec(spec)) + repr(given)


def test_a_secret_in_a_command_line_must_be_allowed() -> None:
    values = {"REDIS_PASSWORD": "hunter2"}
    body = "command: 'redis-server --requirepass ${REDIS_PASSWORD}'"
    with pytest.raises(InvalidInput, match="needs --allow visible-secret:REDIS_PASSWORD"):
        one(body, Given(values=values))
    spec = whole(body, Given(values=values, allowed=frozenset({"visible-secret:REDIS_PASSWORD"})))
    assert spec.services[0].argv == ("redis-server", "--requirepass", "{secret.REDIS_PASSWORD}")
    assert (spec.given_secrets, ties(spec)) == (("REDIS_PASSWORD",), ())


def test_what_was_sealed_earlier_is_not_asked_for_again_where_it_stays_sealed() -> None:
    given = Given(sealed=frozenset({"PASSWORD"}))
    assert one("environment: {P: '${PASSWORD:?}'}", given).env == {"P": "{secret.PASSWORD}"}
    with pytest.raises(InvalidInput, match="needs --set PASSWORD=VALUE"):
        one("hostname: '${PASSWORD}'", given)


@pytest.mark.parametrize(
    ("volume", "folder"),
    [
        ("/DATA/AppData/$AppID/config:/c", "config"),
        ("/DATA/AppData/${AppID}/a/b:/c", "a-b"),
        ("/DATA/AppData/thing-db/data:/c", "thing-db-data"),
        ("/DATA/AppData/$AppID:/c", "files"),
        ("${APP_DATA_DIR}/data/db:/c", "data-db"),
        ("$APP_DATA/x:/c:rw", "x"),
        ("${UPLOAD_LOCATION}:/c", "upload_location"),
        ("${PLACE:-./there}/in:/c", "there-in"),
        ("./a/./b:/c:z", "a-b"),
        (".:/c", "files"),
        ("~/notes:/c", "home-notes"),
        ("../files/x:/c", "files-x"),
        ("./My Music:/c", "My_Music"),
        ("./.hidden:/c", "_hidden"),
        ("/var/lib/thing", "main-var-lib-thing"),
        ("data:/c:nocopy", "data"),
    ],
)
def test_binds_of_app_stores_are_folders_of_the_app(volume: str, folder: str) -> None:
    spec = whole(f"volumes: ['{volume}']")
    (mount,) = spec.services[0].mounts
    assert (mount.volume, mount.host, spec.volumes, spec.allowed) == (folder, "", (folder,), ())


def test_a_place_inside_that_a_variable_is_to_say_is_needed() -> None:
    text = "services: {main: {image: x, volumes: ['/srv/keys:${PLACE}']}}"
    found = check(text)
    assert not found.refused and "--set PLACE=VALUE" in dict(found.needs)
    spec = parse(text, given=Given(values={"PLACE": "/keys"}, allowed=frozenset({"host-path:/srv/keys"})))
    assert spec.services[0].mounts[0].target == "/keys"
    assert check(text.replace("${PLACE}", "keys")).refused


def test_the_long_form_of_volumes() -> None:
    body = """volumes: [
      {type: bind, source: data, target: /a, bind: {create_host_path: true}},
      {type: volume, target: /b, volume: {nocopy: true}, read_only: "true"},
      {type: tmpfs, target: /c, tmpfs: {size: 1m, mode: 511}}]"""
    service = one(body)
    assert service.mounts == (
        Mount(volume="data", target="/a"),
        Mount(volume="main-b", target="/b", read_only=True),
    )
    assert service.options == {"tmpfs": '["/c:size=1048576,mode=0777"]'}


def test_a_folder_of_the_device_has_to_be_allowed() -> None:
    text = "volumes: [/srv/media/:/media:ro, /var/run/docker.sock:/s, /etc/localtime:/etc/localtime:ro]"
    checked = check(f"services: {{main: {{image: x, {text}}}}}")
    assert [option for option, _ in checked.needs] == [
        "--allow host-path:/srv/media",
        "--allow host-path:/var/run/docker.sock",
    ]
    assert [f.key for f in checked.idle] == ["services.main.volumes[2]"]
    assert report(checked)["forbids_failover"] == ["host-path:/srv/media", "host-path:/var/run/docker.sock"]
    allowed = frozenset({"host-path:/srv/media", "host-path:/var/run/docker.sock", "host-path:/unused"})
    spec = whole(text, Given(allowed=allowed))
    assert spec.services[0].mounts[0] == Mount(volume="", host="/srv/media", target="/media", read_only=True)
    assert ties(spec) == ("host-path:/srv/media", "host-path:/var/run/docker.sock")
    with pytest.raises(InvalidInput, match="'/srv/media' is not allowed"):
        from_plain_spec({**to_plain_spec(spec), "allowed": ["host-path:/srv"]})


@pytest.mark.parametrize("path", ["/srv/../etc", "/.."])
def test_no_allowed_folder_is_another_one(path: str) -> None:
    allowed = frozenset({f"host-path:{path}", "host-path:/etc", "host-path:/"})
    with pytest.raises(InvalidInput, match="leads out"):
        one(f"volumes: ['{path}:/x']", Given(allowed=allowed))


@pytest.mark.parametrize(
    ("port", "expected"),
    [
        ("80", [80]),
        ("8080:80", [80]),
        ("127.0.0.1:8001:8000/tcp", [8000]),
        ("'[::1]:8001:8000'", [8000]),
        ("3000-3002:4000-4002", [4000, 4001, 4002]),
        ("'${PORT}:80'", [80]),
        ("'${PORT:-90}'", [90]),
        ("{target: 80, published: '8000-9000', mode: host, app_protocol: http}", [80]),
    ],
)
def test_ports(port: str, expected: list[int]) -> None:
    assert [p.container for p in one(f"ports: [{port}]").ports] == expected


def test_a_port_is_named_once_for_each_protocol() -> None:
    assert one("ports: ['53:53/tcp', '53:53/UDP', '5353:53']").ports == (
        Port(name="53", container=53),
        Port(name="53-udp", container=53, protocol="udp"),
    )


def test_what_is_needed_is_no_refusal() -> None:
    text = """\
services:
  web:
    build: ./web
    env_file: web.env
    volumes: [./nginx.conf:/etc/nginx/nginx.conf:ro]
    privileged: true
  db:
    image: postgres:${TAG:?which one}
    environment: [A, "B=${C}"]
    ports: ["${PORT}"]
"""
    checked = check(text, "app.yml")
    assert not checked.refused
    assert {option: finding.line for option, finding in checked.needs} == {
        "--image web=IMAGE": 3,
        "file web.env": 4,
        "file nginx.conf": 5,
        "--allow privileged": 6,
        "--set TAG=VALUE": 8,
        "--set PORT=VALUE": 10,
    }
    assert checked.unset == (("C", 9),)
    with pytest.raises(InvalidInput) as caught:
        parse(text, "app.yml")
    assert len(str(caught.value).splitlines()) == 6
    given = Given(
        values={"TAG": "16", "PORT": "5432"},
        files={"web.env": "X=1", "nginx.conf": "worker_processes 1;"},
        images={"web": "localhost/web:1"},
        allowed=frozenset({"privileged"}),
    )
    spec = parse(text, "app.yml", given=given)
    by_name = {service.name: service for service in spec.services}
    assert by_name["web"].image == "localhost/web:1"
    assert by_name["web"].files == {"/etc/nginx/nginx.conf": "worker_processes 1;"}
    assert by_name["db"].image == "postgres:16"
    assert spec.allowed == ("privileged",)


@pytest.mark.parametrize(
    ("body", "need"),
    [
        ("devices: ['/dev/dri:/dev/dri']", "device:/dev/dri"),
        ("gpus: all", "gpu"),
        ("runtime: nvidia", "gpu"),
        ("deploy: {resources: {reservations: {devices: [{driver: nvidia, capabilities: [gpu]}]}}}", "gpu"),
        ("cap_add: [CAP_SYS_ADMIN, CHOWN]", "capability:SYS_ADMIN"),
        ("security_opt: ['seccomp:unconfined']", "security-opt:seccomp=unconfined"),
        ("pid: host", "host-pid"),
        ("ipc: host", "host-ipc"),
        ("network_mode: host", "host-network"),
        ("privileged: 'true'", "privileged"),
    ],
)
def test_what_reaches_out_has_to_be_allowed_and_forbids_failover(body: str, need: str) -> None:
    checked = check(f"services: {{main: {{image: x, {body}}}}}")
    assert ([option for option, _ in checked.needs], checked.refused) == ([f"--allow {need}"], ())
    assert report(checked)["forbids_failover"] == [need]
    spec = whole(body, Given(allowed=frozenset({need})))
    assert ties(spec) == (need,)
    assert spec.services[0].options


NETWORKED = """
services:
  main: {image: x, network_mode: host}
  beside: {image: x, network_mode: "%s", cap_add: [%s, CHOWN]}
"""


@pytest.mark.parametrize("mode", ["host", "service:main", "container:MAIN"])
@pytest.mark.parametrize(("written", "name"), [("cap_net_admin", "NET_ADMIN"), ("NET_RAW", "NET_RAW")])
def test_the_devices_network_and_what_changes_it_have_to_be_allowed_both(
    mode: str, written: str, name: str
) -> None:
    """With the device's network alone, a program could rewrite the firewall that keeps apps apart."""
    text = (NETWORKED % (mode, written)).replace(
        "{image: x, network_mode: host}", "{image: x, network_mode: host, container_name: MAIN}"
    )
    checked = check(text)
    assert {option for option, _ in checked.needs} == {"--allow host-network", f"--allow capability:{name}"}
    assert checked.refused == ()
    with pytest.raises(InvalidInput, match=f"beside.cap_add.*needs --allow capability:{name}"):
        parse(text, given=Given(allowed=frozenset({"host-network"})))
    spec = parse(text, given=Given(allowed=frozenset({"host-network", f"capability:{name}"})))
    assert ties(spec) == (f"capability:{name}", "host-network")


@pytest.mark.parametrize("mode", ["none", "bridge", "service:other"])
def test_in_a_network_of_the_apps_own_the_same_is_free(mode: str) -> None:
    text = NETWORKED % (mode, "NET_ADMIN, NET_RAW") + "  other: {image: x}\n"
    assert {option for option, _ in check(text).needs} == {"--allow host-network"}


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("devices: [/etc/shadow]", "expected a device"),
        ("pid: 'service:db'", "not supported"),
        ("ipc: 'container:x'", "not supported"),
        ("security_opt: ['seccomp:a/../../profile.json']", "leads out"),
        ("security_opt: [systempaths=unconfined]", "not supported"),
        ("security_opt: ['seccomp:unconfined', 'seccomp:x.json']", "only one of them"),
        ("uts: yours", "not supported"),
        ("runtime: sysbox", "not supported"),
        ("gpus: some", "not one of"),
    ],
)
def test_what_cannot_even_be_allowed(body: str, words: str) -> None:
    with pytest.raises(InvalidInput, match=words):
        one(body)


def test_a_part_of_another_file_is_refused_by_name() -> None:
    (finding,) = check("services:\n  web:\n    ports: [80]\n").refused
    assert finding.key == "services.web"
    assert "neither `image` nor `build`" in finding.text


def test_extends_merges_within_the_file() -> None:
    text = """
services:
  base: {image: x, command: [a], environment: [A=1, B=2], ports: [80], labels: {m: n}}
  main: {extends: {service: base}, command: [b], environment: {B: 3}, ports: [81]}
  last: {extends: main, image: y}
"""
    _, main, last = parse(text).services
    assert (main.argv, main.env, [p.container for p in main.ports]) == (
        ("b",),
        {"A": "1", "B": "3"},
        [80, 81],
    )
    assert (last.image, last.argv) == ("y", ("b",))
    for wrong in ("{service: main}", "{service: gone}", "{service: x, file: other.yml}"):
        with pytest.raises(InvalidInput, match="extends"):
            parse(f"services: {{main: {{image: x, extends: {wrong}}}}}")


def test_a_service_that_does_not_run_needs_nothing_but_is_refused_for_what_no_file_may_say() -> None:
    text = """services:
  a: {image: x, links: [b]}
  b: {image: x, profiles: [debug], privileged: true, environment: ["A=${B:?why}"], network_mode: "service:c"}
  c: {build: ./c, profiles: [debug]}
"""
    found = check(text, "app.yml")
    assert not found.refused and not found.needs
    for wrong, line in (
        ("image: x, prots: []", 3),
        ("image: x, restart: perhaps", 3),
        ("image: 'x y'", 3),
    ):
        (refused,) = check(text.replace("b: {image: x", f"b: {{{wrong}"), "app.yml").refused
        assert (refused.line, refused.key.partition(".b.")[0]) == (line, "services")


def test_profiles_are_chosen_as_in_compose() -> None:
    text = "services: {a: {image: x}, b: {image: x, profiles: [debug]}}"
    assert [s.name for s in parse(text).services] == ["a"]
    given = Given(values={"COMPOSE_PROFILES": "x,debug"})
    assert [s.name for s in parse(text, given=given).services] == ["a", "b"]


def test_configs_and_secrets_become_files() -> None:
    rest = """
configs: {c: {content: "level=${LEVEL:-1} pass=${PASSWORD}"}, f: {file: ./there.conf}}
secrets: {s: {environment: PASSWORD}}
"""
    given = Given(values={"PASSWORD": "p"}, files={"there.conf": "$ as it is"})
    spec = whole("configs: [c, {source: f, target: /etc/f.conf, mode: 0440}], secrets: [s]", given, rest)
    assert spec.services[0].files == {
        "/c": "level=1 pass={secret.PASSWORD}",
        "/etc/f.conf": "$ as it is",
        "/run/secrets/s": "{secret.PASSWORD}",
    }
    assert spec.services[0].secrets == ("PASSWORD",)


@pytest.mark.parametrize(
    ("body", "restart"),
    [
        ("restart: no", "no"),
        ("restart: false", "no"),
        ("restart: 'no'", "no"),
        ("restart: ", "always"),
        ("restart: on-failure:3", "on-failure"),
        ("restart: unless-stopped", "always"),
    ],
)
def test_restarts(body: str, restart: str) -> None:
    assert one(body).restart == restart


def test_a_long_list_of_keys_is_understood() -> None:
    """Everything that is without effect says why; nothing is in two lists."""
    text = """\
version: "3.8"
services:
  main:
    image: x
    container_name: c
    pull_policy: always
    logging: {driver: syslog, options: {syslog-address: "udp://x"}}
    links: [db]
    depends_on: {db: {condition: service_healthy, restart: true}, gone: {condition: service_started, required: false}}
    healthcheck: {test: curl x, interval: 1.5s, timeout: 0s, start_interval: 1s}
    deploy: {replicas: 2, placement: {constraints: [x]}, labels: [a=b]}
    networks: {back: {aliases: [main], ipv4_address: 10.0.0.2}}
    stop_grace_period: 1m30s
    mem_limit: 1.5g
    read_only: "true"
  db: {image: postgres, restart: "on-failure:5"}
networks: {back: {driver: bridge, ipam: {config: [{subnet: 10.0.0.0/24}]}, external: true}}
volumes: {v: {driver: local, name: w, external: true}}
"""
    checked = check(text)
    assert not checked.refused, checked.refused
    assert not checked.needs
    assert all(finding.text for finding in checked.idle)
    assert not {f.key for f in checked.honoured} & {f.key for f in checked.idle}
    assert {"version", "services.main.container_name", "services.main.logging"} <= {
        f.key for f in checked.idle
    }
    assert {"services.main.image", "services.db.image"} <= {f.key for f in checked.honoured}
    assert report(checked)["databases"][0]["kind"] == "PostgreSQL"


def test_no_catalog_is_needed_to_check_a_file(tmp_path: Path) -> None:
    from click.testing import CliRunner

    from fractal.cli.main import cli

    good, bad = tmp_path / "good.yml", tmp_path / "bad.yml"
    good.write_text("services:\n  a:\n    image: x\n    privileged: true\n")
    bad.write_text("services:\n  a:\n    image: x\n    prots: [80]\n")
    found = CliRunner().invoke(cli, ["app", "check", str(good)])
    assert (found.exit_code, "needs: --allow privileged" in found.stdout) == (0, True)
    assert "Can fail over" in found.stdout
    found = CliRunner().invoke(cli, ["app", "check", str(bad)])
    assert (found.exit_code, f"{bad}:4: services.a.prots: refused" in found.stderr) == (1, True)
    found = CliRunner().invoke(cli, ["app", "check", "--json", str(bad)])
    assert '"understood": false' in found.stdout
    bad.write_bytes(b"services:\n  a: {image: \xff}\n")
    found = CliRunner().invoke(cli, ["app", "check", str(bad)])
    assert (found.exit_code, f"{bad}:2: not UTF-8 text" in found.stderr) == (2, True)


def test_every_key_without_effect_is_documented() -> None:
    page = (Path(__file__).parents[3] / "docs/reference/manifest.md").read_text()
    listed = page.partition("## Without effect here")[2].partition("\n## ")[0]
    tables = (
        *(keys.IDLE, keys.DEPLOY_IDLE, keys.VOLUME_IDLE, keys.NETWORK_IDLE, keys.TOP_IDLE),
        building.IDLE,
    )
    missing = [
        f"{key}: {why}"
        for table in tables
        for key, why in table.items()
        if f"`{key}`" not in listed or why not in listed
    ]
    assert not missing


def test_every_key_of_a_build_is_documented() -> None:
    page = (Path(__file__).parents[3] / "docs/reference/manifest.md").read_text()
    listed = page.partition("## Images that are built")[2].partition("\n## Without")[0]
    assert [key for key in (*building.KEYS, *building.NOT_HERE) if f"`{key}`" not in listed] == []


def chain(keys: str, count: int) -> str:
    """Services that all take from all before them."""
    names = [f"s{i}" for i in range(count)]
    return (
        "services: {"
        + ", ".join(f"{n}: {{image: x, {keys % ','.join(names[:i])}}}" for i, n in enumerate(names))
        + "}"
    )


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("services: {a: {image: x, command: '" + "y" * (10 << 20) + "'}}", "longer than 1048576 bytes"),
        (
            "services: {a: {image: x, ports: ["
            + ",".join(f"'{i * 60 + 1}-{i * 60 + 1000}'" for i in range(1000))
            + "]}}",
            "more than 2000 ports",
        ),
        ("services: {a: {image: x, hostname: '" + "${A:-" * 100 + "}" * 100 + "'}}", "nested deeper"),
        ("services: {a: {image: x, command: '" + "${A}" * 30_000 + "'}}", "longer than 131072 characters"),
        (
            "services: {"
            + ",".join(f"s{i}: {{extends: s{i + 1}}}" for i in range(60))
            + ", s60: {image: y}}",
            "extends",
        ),
        ('services: {"a\\nb:1: ; rm -rf": {image: x}}', "cannot be a service's name"),
        ("include: [a/../../x.yml]\nservices: {a: {image: x}}", "leads out"),
    ],
    ids=["10 MB", "ports", "nesting", "values", "extends", "names", "include"],
)
def test_what_is_meant_to_do_harm_is_refused_in_lines(text: str, words: str) -> None:
    with pytest.raises(InvalidInput, match=words) as caught:
        parse(text, given=Given(values={"A": "z" * 100_000}))
    assert all(line.startswith("manifest:") for line in str(caught.value).splitlines())


def test_volumes_from_each_other_do_not_multiply() -> None:
    first, *rest = chain("volumes: [d:/d], volumes_from: [%s]", 60).split("d:/d")
    text = first + "".join(f"d:/d{number}{part}" for number, part in enumerate(rest))
    assert max(len(service.mounts) for service in parse(text).services) == 60


def test_volumes_of_a_service_go_over_those_that_it_takes_from_others() -> None:
    text = "services: {a: {image: x, volumes: ['o:/d', 'o:/e']}, b: {image: x, volumes: ['m:/d/'], volumes_from: [a]}}"
    _, second = parse(text).services
    assert sorted((one.volume, one.target.rstrip("/")) for one in second.mounts) == [("m", "/d"), ("o", "/e")]
