"""Manifests: what is understood, and that everything else is refused with its line, all at once."""

from __future__ import annotations

import textwrap
from dataclasses import replace

import pytest

from fractal.api import canonical
from fractal.api.app import AppSpec, HealthSpec, Mount, Port, ServiceSpec
from fractal.api.errors import InvalidInput
from fractal.manifest import check, from_plain_spec, parse, to_plain_spec

FULL = """
name: wiki
x-homeserver:
  title: A wiki
  web: {service: front, port: http}
  secrets: {generate: [DB_PASSWORD]}
  architectures: [x86_64, aarch64]
  consistency: hook
  hooks:
    before_snapshot: [{service: db, argv: [pg_dump, -f, /data/db/dump]}]
services:
  front:
    image: docker.io/library/wiki:1.2
    command: serve --title "My wiki"
    environment:
      - DB=postgres://wiki:${DB_PASSWORD}@db
      - PRICE=5$$
      - THEME=${THEME:-dark}
    ports:
      - {name: http, target: 80}
      - "127.0.0.1:8443:443"
      - 53:53/udp
    volumes: ["pages:/var/pages", "./config:/etc/wiki:ro"]
    depends_on:
      db: {condition: service_healthy}
    healthcheck: {test: curl -f http://localhost/, interval: 1m30s, retries: 5}
    restart: unless-stopped
    stop_grace_period: 90s
    mem_limit: 512m
    user: "1000"
  db:
    image: postgres:16
    volumes: [{type: volume, source: db, target: /var/lib/postgresql/data}]
    environment: {POSTGRES_PASSWORD: "${DB_PASSWORD}", FSYNC: on, PORT: 5432}
    healthcheck: {test: [CMD, pg_isready]}
    shm_size: 64m
volumes:
  pages:
  db: {}
"""


def test_a_full_manifest_is_understood() -> None:
    spec = parse(FULL)
    assert [service.name for service in spec.services] == ["db", "front"]
    db, front = spec.services
    assert spec.volumes == ("pages", "db", "config")
    assert (spec.web_service, spec.web_port) == ("front", "http")
    assert spec.before_snapshot == (("db", ("pg_dump", "-f", "/data/db/dump")),)
    assert front.argv == ("serve", "--title", "My wiki")
    assert front.env == {"DB": "postgres://wiki:{secret.DB_PASSWORD}@db", "PRICE": "5$", "THEME": "dark"}
    assert front.secrets == ("DB_PASSWORD",)
    assert front.ports == (
        Port(name="http", container=80),
        Port(name="443", container=443),
        Port(name="53-udp", container=53, protocol="udp"),
    )
    assert front.mounts[1] == Mount(volume="config", target="/etc/wiki", read_only=True)
    assert front.depends_on == {"db": "healthy"}
    assert front.health == HealthSpec(
        test=("/bin/sh", "-c", "curl -f http://localhost/"),
        interval=90,
        timeout=30,
        retries=5,
        start_period=0,
    )
    assert (front.restart, front.stop_grace, front.limits.memory) == ("always", 90.0, 512 << 20)
    assert db.env == {"POSTGRES_PASSWORD": "{secret.DB_PASSWORD}", "FSYNC": "on", "PORT": "5432"}
    assert db.options == {"shm_size": '"64m"'}


def test_the_log_form_holds_integers_only_and_comes_back_equal() -> None:
    spec = parse(FULL)
    plain = to_plain_spec(spec)
    assert from_plain_spec(canonical.decode(canonical.encode(plain))) == spec
    assert plain["services"][1]["health"]["interval"] == 90_000


def test_every_problem_is_told_at_once_with_its_line() -> None:
    text = textwrap.dedent("""\
        services:
          web:
            imgae: nginx
            image: nginx
            ports: [99999]
            restart: maybe
            provider: {type: x}
            environment: {A: }
        volums: {}
        """)
    with pytest.raises(InvalidInput) as caught:
        parse(text, "app.yml")
    assert str(caught.value).splitlines() == [
        "app.yml:9: volums: not supported; did you mean 'volumes'?",
        "app.yml:3: services.web.imgae: not supported; did you mean 'image'?",
        "app.yml:7: services.web.provider: not supported: only containers are run",
        "app.yml:5: services.web.ports[0]: '99999' is not a port from 1 to 65535, or a range of at most 1000",
        "app.yml:6: services.web.restart: 'maybe' is not one of always, false, no, on-failure, unless-stopped",
    ]


def app(service: str, rest: str = "") -> str:
    body = textwrap.indent(textwrap.dedent(service).strip(), "    ")
    return f"services:\n  main:\n    image: x\n{body}\n{rest}"


@pytest.mark.parametrize(
    "source",
    [
        "../a/../b",
        "./a/../../b",
        "/etc",
        "../..\\x",
        "a/..",
        "\\\\host\\x",
        "a\\..\\b",
        "a/..",
    ],
)
@pytest.mark.parametrize("form", ["short", "long"])
def test_no_volume_leads_out_of_the_apps_folder(source: str, form: str) -> None:
    escaped = source.replace("\\", "\\\\")
    mount = f'"{escaped}:/data"' if form == "short" else f'{{type: bind, source: "{escaped}", target: /data}}'
    with pytest.raises(InvalidInput, match=r"manifest:4: services\.main\.volumes"):
        parse(app(f"volumes: [{mount}]"))


@pytest.mark.parametrize("target", ["relative", "/a/../../b", ""])
def test_no_target_is_relative(target: str) -> None:
    with pytest.raises(InvalidInput, match="volumes"):
        parse(app(f'volumes: [{{type: volume, source: a, target: "{target}"}}]'))


@pytest.mark.parametrize("name", ["../x", "a/b", ".bashrc", "", "a b", "x" * 200])
def test_no_file_is_written_elsewhere(name: str) -> None:
    process = f'x-homeserver: {{process: {{argv: [a], files: {{"{name}": text}}}}}}'
    with pytest.raises(InvalidInput, match="files"):
        parse(app(process))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "expected a mapping"),
        ("- a", "expected a mapping"),
        ("a: [", "not YAML"),
        ("a: \x01", "not YAML"),
        ("{", "not YAML"),
        ("a: *nobody", "not YAML"),
        ("services: {}", "at least one service"),
        ("services: {a: {image: x}, a: {image: y}}", "given twice"),
        ("services: !!python/object/apply:os.system ['true']", "tags are not allowed"),
        ("services: {a: !x {image: x}}", "tags are not allowed"),
        ("services: {a: {}}", "neither `image`"),
        ("services: {../a: {image: x}}", "cannot be a service's name"),
        ("services: {a: {image: x, depends_on: [b]}, b: {image: x, depends_on: [a]}}", "circle"),
        ("services: {a: {image: x, depends_on: [b]}}", "'b' is no other service"),
        ("services: {a: {image: 'x; rm -rf /'}}", "not an image's name"),
        ("services: {a: {image: x, command: 'unclosed \"'}}", "cannot be split"),
        ("services: {a: {image: x, environment: ['A=${HOME:?of whom}']}}", "of whom; needs --set HOME=VALUE"),
        ("services: {a: {image: x, environment: ['A=${']}}", "write $$"),
        ("services: {a: {image: x, stop_grace_period: 10}}", "not a duration"),
        ("services: {a: {image: x, stop_grace_period: 9999h}}", "at most an hour"),
        ("x-homeserver: {web: {service: a, port: w}}\nservices: {a: {image: x}}", "no port named 'w'"),
        ("x-homserver: {}\nservices: {a: {image: x}}", "did you mean 'x-homeserver'?"),
        ("volumes: {a: {driver: nfs}}\nservices: {a: {image: x}}", "driver: not supported"),
        ("services: {a: {image: x, healthcheck: {test: [true]}}}", "must begin with CMD"),
        ("services: {a: {image: x, x-homeserver: {process: {argv: a b}}}}", "expected a list"),
        ("services: {a: {image: x, x-homeserver: {secrets: [S]}}}", "not in x-homeserver.secrets"),
        ("a: " + "[" * 100_000, "more than 32 levels"),
        ("a: [" + "a," * 60_000 + "]", "more than 50000 items"),
        ("a: " + "b" * (1 << 20), "longer than 1048576 bytes"),
        ("x-y: &a [1]\nz: [" + "*a," * 1000 + "]", "more than 500 aliases"),
    ],
)
def test_what_cannot_be_is_refused(text: str, words: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        parse(text)
    assert words in str(caught.value)
    assert all(line.startswith("manifest:") for line in str(caught.value).splitlines())


def test_a_bomb_of_aliases_is_defused() -> None:
    """Nine lines that stand for 10^9 nodes."""
    lines = ["a0: &a0 [x,x,x,x,x,x,x,x,x,x]"]
    lines += [f"a{i}: &a{i} [{','.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 9)]
    with pytest.raises(InvalidInput, match="counting what its aliases stand for"):
        parse("\n".join(lines))


def test_an_anchor_that_holds_itself_is_refused() -> None:
    with pytest.raises(InvalidInput, match="too much"):
        parse("services: &a {x: *a}")


def test_extensions_of_others_and_merges_are_as_in_compose() -> None:
    spec = parse(
        "x-base: &base {image: x, environment: {A: '1'}}\n"
        "x-casaos: {anything: [1]}\n"
        "services: {one: {<<: *base, x-casaos: {}}, two: {<<: *base, environment: {B: '2'}}}\n"
    )
    assert [service.env for service in spec.services] == [{"A": "1"}, {"B": "2"}]


@pytest.mark.parametrize(
    "spoil",
    [
        {"volumes": ("../up",)},
        {"volumes": ("/abs",)},
        {"volumes": ("a", "a")},
        {"name": "../x"},
        {"name": ""},
        {"services": ()},
        {"services": (ServiceSpec(name="../x", image="x"),)},
        {"services": (ServiceSpec(name="x", image="x", mounts=(Mount(volume="..", target="/x"),)),)},
        {"services": (ServiceSpec(name="x", image="x", mounts=(Mount(volume="v", target="/../x"),)),)},
        {"services": (ServiceSpec(name="x", image="x", restart="maybe"),)},
        {"services": (ServiceSpec(name="x", image="x", depends_on={"x": "started"}),)},
        {"services": (ServiceSpec(name="x", image="x", stop_grace=1e9),)},
        {"web_service": "nobody"},
        {"consistency": "maybe"},
        {"architectures": ("x/y",)},
        {"before_snapshot": (("nobody", ("a",)),)},
        {"generated_secrets": ("A B",)},
    ],
)
def test_a_hostile_specification_out_of_the_log_is_refused(spoil: dict[str, object]) -> None:
    good = AppSpec(name="app", services=(ServiceSpec(name="x", image="x"),), volumes=("v",))
    assert from_plain_spec(to_plain_spec(good)) == good
    bad = replace(good, **spoil)  # type: ignore[arg-type]
    with pytest.raises(InvalidInput):
        from_plain_spec(to_plain_spec(bad))


def options_of(text: str) -> dict[str, str]:
    (service,) = parse(f"services: {{a: {{image: x, {text}}}}}").services
    return dict(service.options)


def test_options_are_kept_with_variables_resolved() -> None:
    assert options_of("labels: {price: 5$$, on: true}, cap_add: [NET_ADMIN]") == {
        "cap_add": '["NET_ADMIN"]',
        "labels": '{"on":"true","price":"5$"}',
    }


@pytest.mark.parametrize("check", ["{disable: true}", "{test: [NONE]}"])
def test_switching_a_health_check_off_is_not_saying_nothing(check: str) -> None:
    assert options_of(f"healthcheck: {check}") == {"healthcheck.disable": "true"}
    assert options_of("healthcheck: {test: [CMD, x]}") == {}


@pytest.mark.parametrize("networks", ["[default]", "{default: }", "[back]", "{back: {aliases: []}}"])
def test_one_network_does_where_all_share_it(networks: str) -> None:
    services = ", ".join(f"{name}: {{image: x, networks: {networks}}}" for name in "ab")
    checked = check(f"networks: {{back: {{ipam: {{}}}}}}\nservices: {{{services}}}")
    assert not checked.refused and checked.spec is not None
    assert {f.key for f in checked.idle} == {"networks.back.ipam"}
    assert not any("networks" in s.options for s in checked.spec.services)
    with pytest.raises(InvalidInput, match=r"networks.*'proxy' is not among"):
        parse("services: {a: {image: x, networks: [proxy]}}")


def test_services_are_kept_apart_by_networks() -> None:
    text = """\
services:
  web: {image: x, networks: [front, back]}
  db: {image: x, networks: [back]}
  plain: {image: x, network_mode: bridge}
  vpn: {image: x, network_mode: none}
  beside: {image: x, network_mode: "service:db"}
networks: {front: {external: true}, back: {internal: true}}
"""
    spec = parse(text)
    given = {s.name: (s.options.get("networks"), s.options.get("network_mode")) for s in spec.services}
    assert given == {
        "web": ('{"back":true,"front":false}', None),
        "db": ('{"back":true}', None),
        "plain": ('{"default":false}', None),
        "vpn": (None, '"none"'),
        "beside": (None, '"service:db"'),
    }
    assert {s.name: s.depends_on for s in spec.services}["beside"] == {"db": "started"}
    alone = parse("services: {a: {image: x}}\nnetworks: {default: {internal: true}}")
    assert alone.services[0].options["networks"] == '{"default":true}'


@pytest.mark.parametrize(
    ("service", "problem"),
    [
        ("network_mode: 'service:c'", "'c' is no service of this file"),
        ("network_mode: 'service:a'", "need each other in a circle"),
        ("network_mode: 'container:c'", "is no container of this file"),
        ("network_mode: 'service:b', ports: [80]", "ports: belongs to the service whose network this is"),
        ("network_mode: 'service:b', networks: [default]", "networks: belongs to the service"),
        ("network_mode: 'service:b', hostname: x", "hostname: belongs to the service"),
    ],
)
def test_a_network_of_another_service_is_that_ones(service: str, problem: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        parse(f"services: {{a: {{image: x, {service}}}, b: {{image: x}}}}")
    assert problem in str(caught.value)


def test_an_app_does_not_take_all_networks_that_a_device_has() -> None:
    names = ", ".join(f"n{i}: {{}}" for i in range(17))
    with pytest.raises(InvalidInput, match=r"app:2: networks: more than 16"):
        parse(f"services: {{a: {{image: x}}}}\nnetworks: {{{names}}}", "app")
