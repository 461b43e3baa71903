"""What somebody is told before installing: nothing of it is guessed, and no secret is in it."""

from __future__ import annotations

import json

from fractal.manifest import Given, check
from fractal.manifest.report import lines, report

APP = """
services:
  web:
    image: wiki:1
    ports: ["80:80"]
    volumes: ["data:/data", "cache:/data/cache", "/srv/media:/media:ro"]
    environment: {TOKEN: "${TOKEN}", KEY: "${KEY}"}
    devices: ["/dev/dri"]
    x-homeserver: {health: {http: /up, port: "80"}}
  db:
    image: postgres:17
    volumes: ["db:/var/lib/postgresql/data"]
    healthcheck: {test: [CMD, pg_isready]}
    tmpfs: [/run]
  quiet: {image: busybox, healthcheck: {disable: true}, command: "echo ${KEY}"}
x-homeserver:
  web: {service: web, port: "80"}
  data: {ignore: [cache]}
  fields:
    TOKEN: {type: secret, title: A token, generate: "hex:16"}
    KEY: {type: secret, title: A key}
    COLOUR: {type: choice, options: [red, blue], default: red}
"""
GIVEN = Given(values={"KEY": "canary"}, allowed=frozenset({"host-path:/srv/media", "visible-secret:KEY"}))


def test_what_runs_is_kept_and_is_not() -> None:
    found = report(check(APP, given=GIVEN))
    assert [(s["name"], s["image"], s["health"]) for s in found["services"]] == [
        ("web", "wiki:1", "GET /up on port 80"),
        ("db", "postgres:17", "a command in it"),
        ("quiet", "busybox", "none"),
    ]
    assert [d["folder"] for d in found["data"]] == ["data", "db"]
    assert found["excluded"] == [
        "cache (web:/data/cache): empty after a move or a restore",
        "web: /media (/srv/media of the device)",
        'db: tmpfs ["/run"]',
    ]
    assert [d["kind"] for d in found["databases"]] == ["PostgreSQL"]
    assert (found["ports"], found["web"]) == (["web: 80/tcp"], "web: 80")
    assert (found["generated_secrets"], found["given_secrets"]) == (["TOKEN"], ["KEY"])
    assert [(f["name"], f["type"], f["required"]) for f in found["fields"]] == [
        ("TOKEN", "secret", False),
        ("KEY", "secret", True),
        ("COLOUR", "choice", False),
    ]


def test_which_key_forbids_failover_whether_it_was_allowed_or_is_only_asked_for() -> None:
    found = report(check(APP, given=GIVEN))
    assert not found["fails_over"]
    assert [(f["what"], f["key"], f["line"]) for f in found["forbidden_by"]] == [
        ("device:/dev/dri", "services.web.devices[0]", 8),
        ("host-path:/srv/media", "services.web.volumes[2]", 6),
    ]
    assert found["forbids_failover"] == ["device:/dev/dri", "host-path:/srv/media"]
    assert "device:/dev/dri (services.web.devices[0], line 8)" in lines(check(APP))["can fail over"]


def test_no_value_is_in_it() -> None:
    checked = check(APP, given=GIVEN)
    assert "canary" not in json.dumps(report(checked)) + repr(lines(checked)) + repr(checked)


def test_nothing_is_told_of_what_is_refused() -> None:
    assert report(check("services: {}")) == {} == lines(check("services: {}"))
