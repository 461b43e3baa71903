"""A folder of the device that apps may have is that folder, wherever links in it lead by now."""

from __future__ import annotations

from pathlib import Path

import pytest
from fractal_containers.config import EngineConfig
from fractal_containers.files import refuse_detours

from fractal.api.app import AppRun, AppSpec, Mount, ServiceSpec
from fractal.api.errors import BackendError


def run(host: Path) -> AppRun:
    mount = Mount(volume="", target="/media", host=str(host))
    service = ServiceSpec(name="web", image="x", mounts=(mount,))
    spec = AppSpec(name="a", services=(service,))
    return AppRun(group="g" * 32, app="a" * 16, epoch=1, spec=spec, volume_root=host.parent)


def test_a_link_that_an_app_planted_in_a_shared_folder_leads_no_other_app_out_of_it(tmp_path: Path) -> None:
    media = tmp_path / "media"
    (media / "films").mkdir(parents=True)
    (media / "x").symlink_to("/")
    config = EngineConfig(allow=(f"host-path:{media}",))
    refuse_detours(run(media), config)
    refuse_detours(run(media / "films"), config)
    with pytest.raises(BackendError, match="leads to /, which this device gives to no app"):
        refuse_detours(run(media / "x"), config)
    refuse_detours(run(media / "x"), EngineConfig(allow=("all",)))


def test_a_name_that_the_system_itself_makes_a_link_is_meant_where_it_leads(tmp_path: Path) -> None:
    """As /var/run is /run."""
    (tmp_path / "run").mkdir()
    (tmp_path / "var-run").symlink_to(tmp_path / "run")
    refuse_detours(run(tmp_path / "var-run"), EngineConfig(allow=(f"host-path:{tmp_path / 'var-run'}",)))
