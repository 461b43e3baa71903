"""The apps that come with this version: each understood, asked for nothing that has no answer, and said what it is."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import fractal.catalog
from fractal.builtin.process.check import refusals
from fractal.manifest import check, from_plain_spec, parse, to_plain_spec
from fractal.manifest.compose import describe
from fractal.manifest.report import report
from fractal.manifest.values import Given

FOLDER = Path(next(iter(fractal.catalog.__path__)))
APPS = sorted(path.stem for path in FOLDER.glob("*.yml"))
KNOWN = (
    "forgejo home-assistant immich jellyfin miniflux navidrome nextcloud paperless-ngx radicale uptime-kuma"
    " vaultwarden wordpress"
)
PINNED = re.compile(r"[a-z0-9.-]+\.[a-z]+/[a-z0-9./_-]+:v?[0-9][A-Za-z0-9._-]*")
HOST = "app.example.org"


def text(app: str) -> str:
    return (FOLDER / f"{app}.yml").read_text()


def test_the_well_known_ones_are_there() -> None:
    assert " ".join(APPS) == KNOWN


@pytest.mark.parametrize("app", APPS)
def test_every_key_is_understood_and_nothing_has_to_be_given(app: str) -> None:
    checked = check(text(app), f"{app}.yml")
    assert (checked.refused, checked.needs, checked.unset) == ((), (), ())
    spec = parse(text(app), f"{app}.yml", given=Given(host=HOST))
    assert spec.name == app
    assert from_plain_spec(to_plain_spec(spec)) == spec
    assert report(checked)["fails_over"]


@pytest.mark.parametrize("app", APPS)
def test_each_says_what_it_is_and_asks_in_words(app: str) -> None:
    about = describe(text(app), app)
    assert about["title"] and about["summary"].endswith(".")
    assert about["version"][0].isdigit() and about["website"].startswith("https://")
    for one in check(text(app)).fields:
        assert one.title, one.name
        assert f"${{{one.name}" in text(app) or f"- {one.name}\n" in text(app), f"{one.name} is used nowhere"


@pytest.mark.parametrize("app", APPS)
def test_each_has_an_entrance_with_health_and_images_of_one_version(app: str) -> None:
    spec = parse(text(app))
    (web,) = [s for s in spec.services if s.name == spec.web_service]
    assert web.health is not None and web.health.http and web.health.port == spec.web_port
    assert all(PINNED.fullmatch(s.image) for s in spec.services), [s.image for s in spec.services]
    assert set(spec.ignored) < set(spec.volumes)
    databases = [s for s in spec.services if "postgres" in s.image or "mariadb" in s.image]
    assert all(s.health is not None and s.stop_grace >= 60 for s in databases)
    assert len(report(check(text(app)))["databases"]) >= len(databases)


@pytest.mark.parametrize("app", APPS)
def test_no_secret_stands_in_a_specification_or_a_command_line(app: str) -> None:
    checked = check(text(app))
    given = Given(values={one.name: f"canary-{one.name}" for one in checked.fields if one.secret}, host=HOST)
    spec = parse(text(app), given=given)
    assert "canary" not in repr(spec)
    for service in spec.services:
        assert "{secret." not in repr((service.argv, service.entrypoint, service.health))


def test_the_public_name_reaches_those_that_have_to_know_it() -> None:
    for app in ("vaultwarden", "nextcloud", "forgejo", "miniflux", "paperless-ngx", "jellyfin", "navidrome"):
        named = parse(text(app), given=Given(host=HOST))
        nameless = parse(text(app))
        assert any(HOST in value for s in named.services for value in s.env.values()), app
        assert "localhost" in repr(nameless) and "https://localhost" not in repr(nameless), app


def test_the_only_one_that_runs_without_containers_runs_as_a_process() -> None:
    assert [app for app in APPS if not list(refusals(parse(text(app))))] == ["radicale"]


def test_calendars_are_never_open_in_either_form_and_both_are_of_one_version() -> None:
    checked = check(text("radicale"))
    (password,) = [one for one in checked.fields if one.secret]
    spec = parse(text("radicale"), given=Given(values={"LOGIN": "ada"}))
    (service,) = spec.services
    assert service.process is not None and password.generate
    for files in (service.files, service.process.files):
        texts = "".join(files.values())
        assert "type = htpasswd" in texts and "type = none" not in texts
        assert "{secret.LOGIN}:{secret.PASSWORD}\n" in files.values()
    version = service.image.partition(":")[2]
    assert f"radicale=={version}" in service.process.requirements
    assert f"version: {version}\n" in text("radicale")
