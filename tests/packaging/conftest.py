"""Wheels built here, installed into a throw-away folder, and run by a separate interpreter."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TEMPLATE = ROOT / "contrib" / "plugin-template"


@dataclass(frozen=True)
class Installed:
    """A folder of installed distributions."""

    site: Path
    home: Path

    @property
    def config(self) -> Path:
        """Of this device; not the machine's own, if the tests run on a machine that has one."""
        return self.home / "config.toml"

    def python(self, code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run code in a fresh interpreter that sees the folder."""
        return self._run("-c", code, *arguments)

    def homeserver(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run the command line as the installed script does."""
        return self._run("-c", "from fractal.cli.main import main; main()", *arguments)

    def _run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        environment: Mapping[str, str] = {
            **{k: v for k, v in os.environ.items() if not k.startswith(("XDG_", "HOMESERVER_", "PYTEST"))},
            "PYTHONPATH": f"{self.site}{os.pathsep}{ROOT}",
            "HOME": str(self.home),
            "HOMESERVER_CONFIG": str(self.config),
        }
        return subprocess.run(
            [sys.executable, *arguments],
            env=environment,
            cwd=self.home,
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )


def install(project: Path, site: Path, scratch: Path) -> None:
    """Build a wheel of `project` and unpack it into `site`, with what is on this machine alone."""
    wheels = scratch / "wheels"
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    quiet = ["--no-deps", "--no-index"]
    for command in (
        ["wheel", *quiet, "--no-build-isolation", "--wheel-dir", str(wheels), str(project)],
        ["install", *quiet, "--target", str(site), "--find-links", str(wheels), project.name],
    ):
        done = subprocess.run([*pip, *command], capture_output=True, text=True, timeout=100, check=False)
        assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """The template's plugin and a broken one, built from copies outside the repository."""
    scratch = tmp_path_factory.mktemp("outside")
    site, home = scratch / "site", scratch / "home"
    home.mkdir()
    example = scratch / "fractal-example"
    shutil.copytree(TEMPLATE, example, ignore=shutil.ignore_patterns("__pycache__", ".*"))
    # An observer whose doing can be seen from outside, and one event that it fails on.
    (example / "src/fractal_example/journal.py").write_text(
        "def note(event):\n"
        "    if event.kind == 'bad':\n"
        "        raise RuntimeError('cannot')\n"
        "    print('observed', event.kind, event.text)\n"
    )
    install(example, site, scratch)
    broken = scratch / "fractal-broken"
    broken.mkdir()
    (broken / "fractal_broken.py").write_text("import a_library_that_nobody_has\n")
    (broken / "pyproject.toml").write_text(
        '[build-system]\nrequires = ["hatchling"]\nbuild-backend = "hatchling.build"\n'
        '[project]\nname = "fractal-broken"\nversion = "0.3"\n'
        '[project.entry-points."fractal.plugins"]\nbroken = "fractal_broken"\n'
        '[project.entry-points."fractal.commands"]\nbroken = "fractal_broken:main"\n'
        '[tool.hatch.build.targets.wheel]\ninclude = ["fractal_broken.py"]\n'
    )
    install(broken, site, scratch)
    made = Installed(site, home)
    made.config.write_text('schema = 1\n[device]\nname = "Attic"\nstate_dir = "state"\nruntime_dir = "run"\n')
    return made
