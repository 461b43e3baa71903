"""Other names of services: aliases of networks and links, and what files call containers."""

from __future__ import annotations

import json

import pytest

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
    assert check(text.replace("../files/app.env", "../../files/app.env")).refused
