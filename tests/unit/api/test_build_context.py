"""Contexts of builds: what gets in, what `.dockerignore` leaves out, and that nothing outside the folder ever does."""

from __future__ import annotations

import io
import os
import re
import socket
import tarfile
from pathlib import Path

import pytest

from fractal.api import build_context
from fractal.api.build_context import ignoring, pack, why_not
from fractal.api.building import INLINE, ImageBuild
from fractal.api.errors import InvalidInput

WEB = ImageBuild(name="web", context="web")


@pytest.fixture
def web(tmp_path: Path) -> Path:
    folder = tmp_path / "web"
    folder.mkdir()
    (folder / "Dockerfile").write_text("FROM scratch\n")
    return folder


def packed(folder: Path, build: ImageBuild = WEB) -> dict[str, tarfile.TarInfo]:
    archive = io.BytesIO()
    told = pack(folder, build, archive)
    archive.seek(0)
    with tarfile.open(fileobj=archive) as tar:
        found = {entry.name: entry for entry in tar}
    assert told.bytes == len(archive.getvalue())
    return found


def test_a_folder_is_packed_without_owners(web: Path, tmp_path: Path) -> None:
    (web / "bin").mkdir()
    (web / "bin/run").write_text("#!/bin/sh\n")
    (web / "bin/run").chmod(0o755)
    (web / "bin/again").symlink_to("run")
    (web / "up").symlink_to("bin/../Dockerfile")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(web / "s"))
    found = packed(tmp_path)
    assert list(found) == ["Dockerfile", "bin", "bin/again", "bin/run", "up"]
    assert found["bin/run"].mode == 0o755 and found["bin/again"].linkname == "run"
    assert {(entry.uid, entry.gid, entry.uname) for entry in found.values()} == {(0, 0, "")}


def test_a_dockerfile_of_the_manifest_is_put_in(tmp_path: Path) -> None:
    build = ImageBuild(name="web", context=".", inline="FROM scratch\n")
    assert list(packed(tmp_path, build)) == [INLINE] == [build.file]
    assert why_not(tmp_path, build) == ""


@pytest.mark.parametrize("target", ["/etc/passwd", "../outside", "bin/../../outside", "/"])
def test_a_link_that_leads_out_is_refused(web: Path, tmp_path: Path, target: str) -> None:
    (tmp_path / "outside").write_text("secret")
    (web / "link").symlink_to(target)
    with pytest.raises(InvalidInput, match=r"link is a link to .* leads out"):
        packed(tmp_path)
    (web / ".dockerignore").write_text("link\n")
    assert "link" not in packed(tmp_path)


@pytest.mark.parametrize(
    "context", ["../web", "/etc", "a/../..", "~", "nothing", "linked", "linked/inner", "Dockerfile"]
)
def test_a_context_is_a_folder_beside_the_manifest(web: Path, tmp_path: Path, context: str) -> None:
    elsewhere = tmp_path / "elsewhere/inner"
    elsewhere.mkdir(parents=True)
    (web / "linked").symlink_to(elsewhere.parent)
    build = ImageBuild(name="web", context=context, inline="FROM scratch")
    assert why_not(web, build)
    with pytest.raises(InvalidInput, match=re.escape(f"build context {context}: ")):
        packed(web, build)


@pytest.mark.parametrize("made", ["nothing", "folder", "link"])
def test_a_dockerfile_has_to_be_there(web: Path, tmp_path: Path, made: str) -> None:
    (web / "Dockerfile").rename(web / "other")
    if made == "folder":
        (web / "Dockerfile").mkdir()
    elif made == "link":
        (web / "Dockerfile").symlink_to("other")
    with pytest.raises(InvalidInput, match="holds no Dockerfile"):
        packed(tmp_path)


def test_a_pipe_is_refused_and_not_read(web: Path, tmp_path: Path) -> None:
    os.mkfifo(web / "pipe")
    with pytest.raises(InvalidInput, match="pipe: neither a file"):
        packed(tmp_path)


def test_what_is_too_large_is_told_with_its_size(web: Path, tmp_path: Path) -> None:
    (web / "media").mkdir()
    with (web / "media/film").open("wb") as file:
        file.truncate(build_context.MAX_BYTES + (3 << 20))
    with pytest.raises(InvalidInput, match=r"515\.0 MiB in 3 files.*most of it: media 515\.0 MiB"):
        packed(tmp_path)
    (web / ".dockerignore").write_text("media\n")
    assert list(packed(tmp_path)) == [".dockerignore", "Dockerfile"]


def test_what_is_left_out_and_taken_back(web: Path, tmp_path: Path) -> None:
    for path in (
        "a.log",
        "keep.log",
        "deep/er/b.log",
        "node/x/y",
        "node/keep/z",
        "text/a.md",
        "text/README.md",
    ):
        (web / path).parent.mkdir(parents=True, exist_ok=True)
        (web / path).write_text("")
    text = "# what\n**/*.log\n!keep.log\n/node\n!node/keep\ntext/*.md\n!text/README.md\nDockerfile\n"
    (web / ".dockerignore").write_text(text)
    assert list(packed(tmp_path)) == [
        *(".dockerignore", "Dockerfile", "deep", "deep/er", "keep.log", "node", "node/keep"),
        *("node/keep/z", "text", "text/README.md"),
    ]
    (web / "Dockerfile.dockerignore").write_text("*\n")  # goes before the other one
    assert list(packed(tmp_path)) == ["Dockerfile"]


@pytest.mark.parametrize(
    ("pattern", "fits", "not_"),
    [
        ("*/temp*", ["a/temp", "a/temporary.txt"], ["temp", "a/b/temp"]),
        ("**/*.go", ["a.go", "a/b/c.go"], ["a.gone"]),
        ("temp?", ["tempa"], ["temp", "tempab"]),
        ("a/**", ["a/b", "a/b/c"], ["b"]),
        ("a/**/z", ["a/z", "a/b/c/z"], ["az"]),
        ("[a-c]x", ["bx"], ["dx"]),
        ("[^a]x", ["bx"], ["ax"]),
        ("a.b", ["a.b", "a.b/c"], ["axb"]),
        ("./a/", ["a", "a/b"], ["b"]),
        (r"\*", ["*"], ["a"]),
        ("a/../.env", [".env"], ["a"]),
    ],
)
def test_patterns_are_dockers(pattern: str, fits: list[str], not_: list[str]) -> None:
    found = ignoring(pattern)
    assert [path for path in (*fits, *not_) if found.matches(path)] == fits


@pytest.mark.parametrize("pattern", ["*a" * 9, "**/" + "*/" * 8 + "x", "[z-a]", "x\n" * 1001])
def test_a_pattern_that_is_not_looked_for_lets_nothing_in(web: Path, tmp_path: Path, pattern: str) -> None:
    (web / ".dockerignore").write_text(f"\n{pattern}\n.env\n")
    (web / ".env").write_text("PASSWORD=x")
    with pytest.raises(InvalidInput, match=r"build context web: \.dockerignore:(2|1002): "):
        packed(tmp_path)


def test_patterns_that_lead_nowhere_fit_nothing() -> None:
    found = ignoring("**/" * 500 + "x\n[\n../..\n../x/../..\n!\n#a\n")
    assert len(found.patterns) == 2
    assert [path for path in ("a", "b/x", "[", "..") if found.matches(path)] == ["b/x", "["]
