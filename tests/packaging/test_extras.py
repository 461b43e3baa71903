"""Every bundled plugin is a distribution of its own that an extra of the core brings, and works from its wheel."""

from __future__ import annotations

import json
import os
import sys
import sysconfig
import tomllib
import venv
from pathlib import Path
from typing import Any

import pytest

from .test_wheel import build, run

ROOT = Path(__file__).parents[2]
PLUGINS = sorted(path.parent for path in ROOT.glob("plugins/*/pyproject.toml"))


def project(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
    return found


def offered() -> dict[str, Path]:
    """Plugins by the name of their entry point; the others are libraries that plugins share."""
    found = {}
    for folder in PLUGINS:
        for name in project(folder).get("entry-points", {}).get("fractal.plugins", {}):
            found[name] = folder
    return found


def test_each_plugin_has_an_extra_of_its_name_and_each_extra_a_plugin() -> None:
    extras = dict(project(ROOT)["optional-dependencies"])
    del extras["testing"]
    assert set(extras) == set(offered())
    for name, (wanted,) in extras.items():
        assert wanted == f"fractal-{name}>=0.1,<1"


@pytest.mark.parametrize("folder", PLUGINS, ids=lambda p: p.name)
def test_each_brings_what_a_distribution_needs(folder: Path) -> None:
    for name in ("README.md", "LICENSE", "tests"):
        assert (folder / name).exists()
    found = project(folder)
    assert found["name"] == folder.name and found["requires-python"] == ">=3.11"
    assert any(d.startswith("fractal-homeserver") for d in found["dependencies"])


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new environment into which the core was installed with every extra, from wheels, as a stranger would."""
    folder = tmp_path_factory.mktemp("extras")
    wheels, place = folder / "wheels", folder / "environment"
    for source in (ROOT, *PLUGINS):
        build(source, wheels, "-t", "wheel")
    venv.create(place, with_pip=False, symlinks=True)
    python = place / "bin" / "python"
    site = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder).strip()
    # What others publish is that of this interpreter: pip checks that it is what the wheels ask for.
    for path in Path(sysconfig.get_path("purelib")).iterdir():
        if (
            not path.name.startswith("fractal")
            and path.suffix != ".pth"
            and not Path(site, path.name).exists()
        ):
            Path(site, path.name).symlink_to(path)
    pip = [sys.executable, "-m", "pip", "--python", str(python), "--disable-pip-version-check", "--quiet"]
    wanted = f"fractal-homeserver[{','.join(sorted(offered()))}]"
    run(*pip, "install", "--no-index", "--find-links", wheels, wanted, cwd=folder, **os.environ)
    return place


def test_every_plugin_works_from_its_wheel(environment: Path, tmp_path: Path) -> None:
    command = environment / "bin" / "homeserver"
    clean = {"PATH": os.defpath, "HOME": str(tmp_path), "LANG": "C.UTF-8"}
    listed = json.loads(run(command, "plugin", "list", "--json", cwd=tmp_path, **clean))
    assert listed["broken"] == []
    assert set(offered()) <= {backend["plugin"] for backend in listed["backends"]}
    for name in offered():
        assert run(command, "plugin", "show", name, cwd=tmp_path, **clean)
