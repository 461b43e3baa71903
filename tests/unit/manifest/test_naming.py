"""Other names of services: aliases of networks and links, and what files call containers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fractal.cli.given import read_files
from fractal.manifest import check, parse
from fractal.manifest.env_files import named
from fractal.manifest.values import Given

NAMES = """
services:
  web:
    image: x
    container_name: shop_web
    links: ["db:mysql", cache]
    networks:
      back: {aliases: [web, shop.example.org]}
  db: {image: y, container_name: "shop_${SUFFIX}"}
  cache: {image: z, container_name: db}
  apart: {image: x, container_name: alone, network_mode: none}
networks: {back: {}}
"""


def test_services_are_found_by_all_that_the_file_calls_them() -> None:
    checked = check(NAMES)
    assert not checked.refused
    called = {s.name: json.loads(s.options.get("aliases", "[]")) for s in parse(NAMES).services}
    assert called == {"db": ["mysql"], "cache": [], "web": ["shop_web", "shop.example.org"], "apart": []}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("services: {a: {image: x, networks: {n: {aliases: [b]}}}, b: {image: x}}", "another service's name"),
        (
            "services: {a: {image: x, networks: {n: {aliases: [c]}}}, b: {image: x, networks: {n: {aliases: [c]}}}}",
            "another service's name",
        ),
        ("services: {a: {image: x, networks: {n: {aliases: ['a b']}}}}", "cannot be a name"),
        ("services: {a: {image: x, links: ['b:../x']}, b: {image: x}}", "cannot be a name"),
    ],
)
def test_a_name_is_one_services_and_a_name(text: str, words: str) -> None:
    (refused,) = check(text + "\nnetworks: {n: {}}").refused
    assert words in refused.text and refused.line == 1


def test_files_beside_the_folder_of_a_store_are_sought_beside_the_manifest() -> None:
    text = """
services:
  web:
    image: x
    env_file: ["../files/app.env"]
    volumes: ["../files/nginx.conf:/etc/nginx.conf", "../files/data:/data"]
"""
    assert set(named(text)) == {"files/app.env", "files/nginx.conf", "files/data"}
    assert [o for o, _ in check(text).needs] == ["file files/nginx.conf", "file files/app.env"]
    files = {"files/app.env": "A=1\n", "files/nginx.conf": "x"}
    (web,) = parse(text, given=Given(files=files)).services
    assert web.env == {"A": "1"} and web.files == {"/etc/nginx.conf": "x"}
    assert [mount.volume for mount in web.mounts] == ["files-data"]
    assert check(text.replace("../files/app.env", "../a/../files/app.env")).refused


def test_what_is_above_the_manifest_is_sought_in_a_folder_beside_it_and_nowhere_else(tmp_path: Path) -> None:
    text = """
services:
  web:
    image: x
    env_file: ["../.env"]
    volumes: ["../data/db:/db", "./../../src:/src", "..:/all", "../web.conf:/etc/web.conf"]
    secrets: [key]
secrets: {key: {file: ../../key}}
x-homeserver: {data: {ignore: ["../data/db"]}}
"""
    folder = tmp_path / "one" / "two"
    folder.mkdir(parents=True)
    for path in ("one/.env", "one/web.conf", "key"):
        (tmp_path / path).write_text("A=of the device\n")
    manifest = folder / "compose.yaml"
    manifest.write_text(text)
    assert read_files(manifest) == {}
    found = check(text)
    assert not found.refused and found.spec is not None
    wanted = {"above/.env", "above/web.conf", "above/above/key"}
    assert {option for option, _ in found.needs} == {f"file {path}" for path in wanted}
    assert all("the folder above" in need.text for _, need in found.needs)
    assert [mount.volume for mount in found.spec.services[0].mounts] == [
        "above-data-db",
        "above-above-src",
        "above",
    ]
    for path in wanted:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text("A=beside\n")
    (folder / "above/web.conf").unlink()
    (folder / "above/web.conf").symlink_to(tmp_path / "one/web.conf")
    files = read_files(manifest)
    assert files == {"above/.env": "A=beside\n", "above/above/key": "A=beside\n"}
    (web,) = parse(text, given=Given(files={**files, "above/web.conf": "x"})).services
    assert web.env == {"A": "beside"} and web.files["/run/secrets/key"] == "A=beside\n"


def test_what_is_at_an_absolute_path_is_sought_beside_the_manifest_and_not_read_there(tmp_path: Path) -> None:
    (tmp_path / "theirs").write_text("A=of the device\n")
    manifest = tmp_path / "app" / "compose.yaml"
    manifest.parent.mkdir()
    text = f"""
services: {{web: {{image: x, env_file: {tmp_path}/theirs, secrets: [key]}}}}
secrets: {{key: {{file: ~/.key}}}}
"""
    manifest.write_text(text)
    assert read_files(manifest) == {}
    found = check(text)
    wanted = {f"root{tmp_path}/theirs", "home/.key"}
    assert not found.refused and {option for option, _ in found.needs} == {f"file {path}" for path in wanted}
    for path in wanted:
        (manifest.parent / path).parent.mkdir(parents=True, exist_ok=True)
        (manifest.parent / path).write_text("A=beside\n")
    (web,) = parse(text, given=Given(files=read_files(manifest))).services
    assert web.env == {"A": "beside"} and web.files["/run/secrets/key"] == "A=beside\n"


def test_a_container_of_this_file_is_one_of_its_services() -> None:
    """Also where its name can be none in a network: by that nobody finds it, in Compose neither."""
    text = """
services:
  main: {image: x, network_mode: "container:${WHO}", container_name: main_}
  vpn: {image: x, container_name: the.vpn-}
"""
    spec = parse(text, given=Given(values={"WHO": "the.vpn-"}))
    vpn, main = spec.services
    assert (main.options["network_mode"], main.depends_on) == ('"service:vpn"', {"vpn": "started"})
    assert "aliases" not in vpn.options
