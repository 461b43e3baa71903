"""Looking into a moment: whatever an app put there, nothing outside is read or written."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fractal.api.errors import Conflict, FractalError, InvalidInput, NotFound
from fractal.cli.trees import copy_out, differences, entries, walk


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A moment with a bit of everything."""
    root = tmp_path / "moment"
    (root / "data" / "deep").mkdir(parents=True)
    (root / "data" / "a.txt").write_text("a")
    (root / "data" / "deep" / "b.txt").write_text("bb")
    (root / "data" / "run").write_text("#!")
    (root / "data" / "run").chmod(0o6755)
    os.mkfifo(root / "data" / "pipe")
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_text("secret")
    (root / "data" / "escape").symlink_to(outside)
    (root / "data" / "passwd").symlink_to("/etc/passwd")
    return root


def test_a_folder_is_listed_and_links_are_shown_not_followed(root: Path) -> None:
    found = {i.path: i for i in entries(root, "data")}
    assert {n: i.kind for n, i in found.items()} == {
        "a.txt": "file",
        "deep": "folder",
        "escape": "link",
        "passwd": "link",
        "pipe": "special",
        "run": "file",
    }
    assert found["passwd"].target == "/etc/passwd"
    assert [i.path for i in entries(root, "/data/a.txt")] == ["a.txt"]
    assert [i.path for i in entries(root, "")] == ["data"]
    assert [i.path for i in walk(root, "data/deep")] == ["b.txt"]


@pytest.mark.parametrize(
    "path",
    ["data/escape/secret", "data/escape/", "../outside/secret", "data/../../outside", "data/a.txt/x", "\0"],
)
def test_no_path_leads_outside(root: Path, path: str, tmp_path: Path) -> None:
    with pytest.raises(FractalError):
        if path == "data/escape/":
            list(walk(root, path))
        else:
            entries(root, path)
    if path != "data/escape/":
        with pytest.raises(FractalError):
            copy_out(root, path, tmp_path / "copy")
        assert not (tmp_path / "copy").exists()


def test_what_is_copied_is_the_same_but_for_owner_and_set_id(root: Path, tmp_path: Path) -> None:
    os.utime(root / "data" / "a.txt", ns=(1_000_000_000, 2_000_000_000))
    target = tmp_path / "copy"
    count, left = copy_out(root, "data", target)
    assert (count, left) == (5, [str(target / "pipe")])
    assert (target / "deep" / "b.txt").read_text() == "bb"
    assert (target / "a.txt").stat().st_mtime_ns == 2_000_000_000
    assert (target / "run").stat().st_mode & 0o7777 == 0o755
    assert (target / "escape").is_symlink()
    assert copy_out(root, "data/a.txt", target / "deep") == (1, [])
    assert (target / "deep" / "a.txt").read_text() == "a"
    assert copy_out(root, "data/passwd", tmp_path / "link") == (1, [])
    assert str((tmp_path / "link").readlink()) == "/etc/passwd"


def test_nothing_is_overwritten_and_what_is_not_there_is_said(root: Path, tmp_path: Path) -> None:
    there = tmp_path / "there"
    there.write_text("mine")
    with pytest.raises(Conflict, match="nothing is overwritten"):
        copy_out(root, "data/a.txt", there)
    assert there.read_text() == "mine"
    dangling = tmp_path / "dangling"
    dangling.symlink_to(tmp_path / "nowhere")
    with pytest.raises(Conflict):
        copy_out(root, "data/a.txt", dangling)
    with pytest.raises(NotFound, match="no such file in this moment"):
        copy_out(root, "data/none", tmp_path / "none")
    with pytest.raises(NotFound):
        entries(tmp_path / "gone", "")


def test_folders_without_end_are_given_up(tmp_path: Path) -> None:
    folder = tmp_path / "moment"
    for _ in range(210):
        folder = folder / "d"
    folder.mkdir(parents=True)
    with pytest.raises(InvalidInput, match="inside each other"):
        list(walk(tmp_path / "moment"))
    with pytest.raises(InvalidInput, match="inside each other"):
        copy_out(tmp_path / "moment", "", tmp_path / "copy")


def test_two_moments_are_compared(root: Path, tmp_path: Path) -> None:
    after = tmp_path / "after"
    copy_out(root, "", after)
    (after / "data" / "run").chmod(0o6755)
    os.mkfifo(after / "data" / "pipe")
    stat = (root / "data" / "pipe").stat()
    os.utime(after / "data" / "pipe", ns=(stat.st_mtime_ns, stat.st_mtime_ns))
    for name in ("escape", "passwd"):
        made = (root / "data" / name).lstat()
        os.utime(after / "data" / name, ns=(made.st_mtime_ns, made.st_mtime_ns), follow_symlinks=False)
    assert list(differences(root, after)) == []
    (after / "data" / "a.txt").write_text("more")
    (after / "data" / "deep" / "b.txt").unlink()
    (after / "data" / "new").mkdir()
    (after / "data" / "new" / "c").write_text("c")
    assert [(how, i.path) for how, i in differences(root, after)] == [
        ("changed", "data/a.txt"),
        ("removed", "data/deep/b.txt"),
        ("added", "data/new"),
        ("added", "data/new/c"),
    ]
    assert [(how, i.path) for how, i in differences(root, after, "data/new")] == [("added", "c")]
