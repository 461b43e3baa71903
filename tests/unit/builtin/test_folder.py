"""The folder catalog: reads manifests, and nothing else, out of its folder."""

from __future__ import annotations

import logging
import os
import tarfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from fractal.api.building import ImageBuild
from fractal.api.catalog import Catalog, SupportsContexts, SupportsFiles
from fractal.api.errors import BackendError, InvalidInput, NotFound
from fractal.builtin.folder import FILE_LIMIT, MANIFEST_LIMIT, open_folder
from fractal.builtin.folder_config import FolderConfig
from fractal.testing.context import real_context


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "apps"
    path.mkdir()
    return path


@pytest.fixture
async def catalog(tmp_path: Path, folder: Path) -> AsyncIterator[Catalog]:
    async with real_context(tmp_path) as context, open_folder(context, FolderConfig(path=folder)) as found:
        yield found


async def test_the_bundled_apps_are_on_offer(tmp_path: Path) -> None:
    async with real_context(tmp_path) as context, open_folder(context, FolderConfig()) as bundled:
        items = {item.name: item for item in await bundled.items()}
        assert "radicale" in items
        assert "services:" in await bundled.manifest("radicale")


async def test_only_readable_manifests_are_on_offer(folder: Path, catalog: Catalog) -> None:
    (folder / "b.yml").write_text("services: {}\n")
    (folder / "a.yml").write_text("services: {}\n")
    (folder / "latin.yml").write_bytes(b"# \xe4\n")
    (folder / "notes.txt").write_text("not a manifest")
    assert [item.name for item in await catalog.items()] == ["a", "b"]


async def test_an_edited_manifest_is_on_offer_at_once(folder: Path, catalog: Catalog) -> None:
    (folder / "a.yml").write_text("one")
    assert await catalog.manifest("a") == "one"
    (folder / "a.yml").write_text("two")
    assert await catalog.manifest("a") == "two"


@pytest.mark.parametrize(
    "name", ["absent", "../secret", "/etc/passwd", "", ".", "a/b", "x" * 100, "a\0b", "A"]
)
async def test_names_never_lead_out_of_the_folder(tmp_path: Path, catalog: Catalog, name: str) -> None:
    (tmp_path / "secret.yml").write_text("secret")
    with pytest.raises(NotFound):
        await catalog.manifest(name)


async def test_what_cannot_be_read_is_left_out_and_logged(
    tmp_path: Path, folder: Path, catalog: Catalog, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "secret").write_text("secret")
    (folder / "link.yml").symlink_to(tmp_path / "secret")
    (folder / "folder.yml").mkdir()
    os.mkfifo(folder / "pipe.yml")
    (folder / "bytes.yml").write_bytes(b"\xff\xfe")
    (folder / "large.yml").write_bytes(b"#" * (MANIFEST_LIMIT + 1))
    (folder / "good.yml").write_text("services: {}\n")
    with caplog.at_level(logging.WARNING):
        assert [item.name for item in await catalog.items()] == ["good"]
    assert caplog.text.count("left out of the catalog") == 5
    for name in ("link", "folder", "pipe", "bytes", "large"):
        with pytest.raises(BackendError, match=f"{name}.yml"):
            await catalog.manifest(name)


async def test_an_absent_folder_is_named(tmp_path: Path) -> None:
    config = FolderConfig(path=tmp_path / "absent")
    async with real_context(tmp_path) as context, open_folder(context, config) as catalog:
        with pytest.raises(BackendError, match="absent: No such file"):
            await catalog.items()


# --- a folder for each app, as repositories have them ------------------------------------------------------------------


@pytest.fixture
def checkout(folder: Path) -> Path:
    (folder / ".git").mkdir()
    (folder / ".git" / "config").write_text("[core]\n\tsshCommand = touch /tmp/owned\n")
    wiki = folder / "Wiki"
    (wiki / "conf").mkdir(parents=True)
    (wiki / "docker-compose.yml").write_text("services: {}\n")
    (wiki / "conf" / "app.ini").write_text("[a]\n")
    (wiki / "blob.bin").write_bytes(b"\xff\xfe")
    (wiki / "large.txt").write_text("x" * (FILE_LIMIT + 1))
    (folder / "Docs").mkdir()
    return folder


async def test_a_checkout_has_a_folder_for_each_app(checkout: Path, catalog: Catalog) -> None:
    (checkout / "plain.yaml").write_text("services: {}\n")
    assert [item.name for item in await catalog.items()] == ["Wiki", "plain"]
    assert await catalog.manifest("Wiki") == "services: {}\n"
    (checkout / "Wiki" / "compose.yaml").write_text("name: newer\n")
    assert await catalog.manifest("Wiki") == "name: newer\n"
    with pytest.raises(NotFound):
        await catalog.manifest("Docs")


async def test_files_beside_a_manifest_are_those_of_its_own_folder(
    tmp_path: Path, checkout: Path, catalog: Catalog
) -> None:
    assert isinstance(catalog, SupportsFiles)
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "key").write_text("canary")
    wiki = checkout / "Wiki"
    (wiki / "link").symlink_to(secret / "key")
    (wiki / "linked").symlink_to(secret)
    os.mkfifo(wiki / "pipe")
    asked = ["conf/app.ini", "./conf/app.ini", "conf", "absent", "link", "linked/key", "pipe", "blob.bin"]
    asked += [
        "large.txt",
        "../Wiki/conf/app.ini",
        "/etc/passwd",
        "conf/../../../secret/key",
        "~/x",
        "",
        "a\0b",
    ]
    found = await catalog.files("Wiki", asked)
    assert found == {"conf/app.ini": "[a]\n", "./conf/app.ini": "[a]\n"}
    (checkout / "plain.yml").write_text("services: {}\n")
    assert await catalog.files("plain", ["Wiki/conf/app.ini"]) == {}


async def test_an_app_whose_folder_is_a_link_is_not_on_offer(
    tmp_path: Path, folder: Path, catalog: Catalog
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "compose.yaml").write_text("services: {}\n")
    (folder / "app").symlink_to(elsewhere)
    assert await catalog.items() == []
    with pytest.raises(BackendError, match="is a link"):
        await catalog.manifest("app")


async def test_contexts_are_packed_from_the_apps_own_folder(
    folder: Path, catalog: Catalog, tmp_path: Path
) -> None:
    assert isinstance(catalog, SupportsContexts)
    (folder / "wiki/web").mkdir(parents=True)
    (folder / "wiki/compose.yaml").write_text("services: {}")
    (folder / "wiki/web/Dockerfile").write_text("FROM scratch")
    (folder / "bare.yml").write_text("services: {}")
    web = ImageBuild(name="web", context="web")
    assert await catalog.why_not("wiki", web) == ""
    assert "no folder of its own" in await catalog.why_not("bare", web)
    assert "leads out" in await catalog.why_not("wiki", ImageBuild(name="web", context="../wiki"))
    with (tmp_path / "archive").open("wb") as archive:
        await catalog.pack("wiki", web, archive)
    with tarfile.open(tmp_path / "archive") as tar:
        assert tar.getnames() == ["Dockerfile"]
    (folder / "wiki").rename(folder / "other")
    (folder / "wiki").symlink_to(folder / "other")
    with (tmp_path / "archive").open("wb") as archive, pytest.raises(InvalidInput):
        await catalog.pack("wiki", web, archive)
