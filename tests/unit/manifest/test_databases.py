"""Which databases a manifest is seen to bring, and what is said of them; hooks as manifests write them."""

from __future__ import annotations

import pytest

from fractal.api.errors import InvalidInput
from fractal.manifest import parse
from fractal.manifest.compose import check
from fractal.manifest.plain import from_plain_spec, to_plain_spec
from fractal.manifest.report import lines, report

KEPT = "volumes: ['d:/somewhere']"


def found(service: str, top: str = "") -> list[tuple[str, str]]:
    text = f"services:\n  one:\n    {service.replace(chr(10), chr(10) + '    ')}\n{top}"
    checked = check(text)
    assert not checked.refused, checked.refused
    return [(d["kind"], d["consistency"]) for d in report(checked)["databases"]]


@pytest.mark.parametrize(
    ("service", "kind"),
    [
        ("image: docker.io/pgvector/pgvector:pg16", "PostgreSQL"),
        ("image: lscr.io/linuxserver/mariadb@sha256:" + "a" * 64, "MariaDB/MySQL"),
        ("image: example.org/ours:1\nvolumes: ['x:/var/lib/postgresql/data']", "PostgreSQL"),
        ("image: example.org/ours:1\nvolumes: ['./db:/var/lib/mysql']", "MariaDB/MySQL"),
        ("image: valkey/valkey:8", "Redis"),
        ("image: mongo:7", "MongoDB"),
        ("image: example.org/ours:1\nenvironment: {DATABASE_URL: 'sqlite:////data/x'}", "SQLite"),
        ("image: example.org/ours:1\nenvironment: [DB_FILE=/config/app.db]", "SQLite"),
        ("image: vaultwarden/server", "SQLite"),
    ],
)
def test_databases_are_known_by_image_folder_or_variable(service: str, kind: str) -> None:
    assert [name for name, _ in found(service)] == [kind]


@pytest.mark.parametrize(
    "service",
    [
        "image: prometheuscommunity/postgres-exporter",
        "image: phpmyadmin:5",
        "image: mongo-express",
        "image: example.org/ours:1\nenvironment: {POSTGRES_PASSWORD: x, DATABASE_URL: 'postgres://db/x'}",
        "image: nginx",
    ],
)
def test_what_only_uses_one_is_none(service: str) -> None:
    assert found(service) == []


def test_how_it_is_consistent_is_said_of_each() -> None:
    assert "one instant" in found(f"image: postgres:16\n{KEPT}")[0][1]
    assert "write-ahead log" in found(f"image: postgres:16\n{KEPT}")[0][1]
    assert "MyISAM need hooks" in found(f"image: mysql:8\n{KEPT}")[0][1]
    assert found("image: redis:7")[0][1] == "it has no volume: nothing of it is kept"
    hooks = "x-homeserver: {hooks: {before_snapshot: [{service: one, argv: [redis-cli, save]}]}}\n"
    assert "hooks run before and after" in found(f"image: redis:7\n{KEPT}", hooks)[0][1]
    assert (
        "is paused for each" in found(f"image: redis:7\n{KEPT}", "x-homeserver: {consistency: pause}")[0][1]
    )
    text = f"services:\n  db:\n    image: postgres\n    {KEPT}\n"
    assert "db: PostgreSQL: " in lines(check(text))["databases"]


def hooked(section: str) -> str:
    return f"name: x\nservices:\n  db:\n    image: redis\nx-homeserver:\n  {section}\n"


def test_hooks_are_run_if_there_are_any_and_travel_with_their_time() -> None:
    spec = parse(hooked("hooks: {timeout: 1m, after_snapshot: [{service: db, argv: [sync]}]}"))
    assert (spec.consistency, spec.hook_timeout) == ("hook", 60.0)
    assert from_plain_spec(to_plain_spec(spec)) == spec
    assert parse(hooked("hooks: {after_snapshot: [{service: db, argv: [sync]}]}")).hook_timeout == 10.0


@pytest.mark.parametrize(
    ("section", "line", "said"),
    [
        ("consistency: hook", 6, "needs `hooks`"),
        ("hooks: {timeout: 5s}", 6, "needs `hooks` with"),
        (
            "consistency: crash\n  hooks: {after_snapshot: [{service: db, argv: [sync]}]}",
            6,
            "run only with `hook`",
        ),
        ("hooks: {timeout: 2m, after_snapshot: [{service: db, argv: [sync]}]}", 6, "at most 60 s"),
        ("hooks: {timeout: 0s, after_snapshot: [{service: db, argv: [sync]}]}", 6, "more than none"),
        ("hooks: {after_snapshot: [{service: web, argv: [sync]}]}", 6, "no service of this app"),
        ("hooks: {after_snapshot: [{service: db, argv: []}]}", 6, "nothing to run"),
        (
            "hooks: {after_snapshot: [" + ", ".join(["{service: db, argv: [sync]}"] * 9) + "]}",
            6,
            "more than 8",
        ),
    ],
)
def test_hooks_that_cannot_be_meant_are_refused_with_their_line(section: str, line: int, said: str) -> None:
    with pytest.raises(InvalidInput, match=f"manifest:{line}: x-homeserver") as refused:
        parse(hooked(section))
    assert said in str(refused.value)


def test_a_service_without_image_is_no_process() -> None:
    text = "services:\n  web: {image: nginx}\n  two: {build: .}\n"
    assert lines(check(text))["runs"] == "web (nginx), two (no image yet)"
