"""Folders of an app's data, whose content is the app's."""

from __future__ import annotations

from pathlib import Path

import pytest

from fractal.agent.app_data import make_folder
from fractal.api.errors import BackendError


def test_a_volume_is_a_folder_of_the_root_and_no_way_out_of_it(tmp_path: Path) -> None:
    root, outside = tmp_path / "root", tmp_path / "outside"
    root.mkdir()
    outside.mkdir()
    make_folder(root / "data")
    make_folder(root / "data")
    assert (root / "data").is_dir()
    (root / "link").symlink_to(outside)
    (root / "dangling").symlink_to(tmp_path / "nowhere")
    (root / "file").touch()
    for name in ("link", "dangling", "file"):
        with pytest.raises(BackendError):
            make_folder(root / name)
    assert not (tmp_path / "nowhere").exists()
