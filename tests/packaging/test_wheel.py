"""What is published: a source archive, and a wheel that works in an environment of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import venv
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Built:
    """Both archives, and the wheel that was built from the unpacked source archive."""

    source: Path
    wheel: Path
    rebuilt: Path


def run(*argv: str | Path, cwd: Path, **env: str) -> str:
    """Output of a command that must succeed."""
    done = subprocess.run(
        argv, cwd=cwd, env=env or None, capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def build(project: Path, folder: Path, *targets: str) -> None:
    run(sys.executable, "-m", "hatchling", "build", "-d", folder, *targets, cwd=project, **os.environ)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    folder = tmp_path_factory.mktemp("built")
    build(ROOT, folder, "-t", "sdist", "-t", "wheel")
    (source,), (wheel,) = folder.glob("*.tar.gz"), folder.glob("*.whl")
    with tarfile.open(source) as archive:
        # No `filter`: Python 3.11 has it only from 3.11.4 on, and the archive is ours.
        archive.extractall(folder)
    build(folder / source.name.removesuffix(".tar.gz"), folder / "again", "-t", "wheel")
    return Built(source, wheel, folder / "again" / wheel.name)


@pytest.fixture(scope="module")
def environment(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new environment with the wheel; its dependencies are those of this interpreter."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False, symlinks=True)
    python = folder / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", str(python), "--disable-pip-version-check", "--quiet"]
    run(*pip, "install", "--no-deps", "--no-index", built.wheel, cwd=folder, **os.environ)
    site = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder).strip()
    # Not the folder itself: what is installed there in development mode would be announced, and not be found.
    for path in Path(sysconfig.get_path("purelib")).iterdir():
        ours = path.name.startswith("fractal") or path.suffix == ".pth"
        if not ours and not Path(site, path.name).exists():
            Path(site, path.name).symlink_to(path)
    return folder


def names(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def tracked(folder: str) -> Iterable[str]:
    """Files of a folder, without what running them left."""
    found = (path for path in (ROOT / folder).rglob("*") if path.is_file() and path.suffix != ".pyc")
    return (str(path.relative_to(ROOT)) for path in found)


def test_the_wheel_holds_every_file_of_the_package_and_the_licence(built: Built) -> None:
    held = names(built.wheel)
    assert set(tracked("fractal")) <= held
    assert {"fractal/catalog/radicale.yml", "fractal/py.typed", "fractal/cli/data/homeserver.service"} <= held
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in held)
    assert not {name for name in held if name.startswith(("tests/", "contrib/", "plugins/", "docs/"))}


def test_the_source_archive_builds_the_same_wheel(built: Built) -> None:
    assert names(built.rebuilt) == names(built.wheel)
    with tarfile.open(built.source) as archive:
        held = {name.partition("/")[2] for name in archive.getnames()}
    assert {"LICENSE", "README.md", "Makefile", "constraints.txt", "tests/unit/testing/test_skips.py"} <= held
    assert not {name for name in held if name.startswith(("plugins/", ".venv/", ".demo/"))}


def test_it_runs_from_an_environment_of_its_own(environment: Path, tmp_path: Path) -> None:
    command = environment / "bin" / "homeserver"
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    clean = {"PATH": os.defpath, "HOME": str(tmp_path), "LANG": "C.UTF-8"}
    assert run(command, "--version", cwd=tmp_path, **clean) == f"homeserver {version}\n"
    where = run(
        environment / "bin" / "python", "-c", "import fractal; print(fractal.__file__)", cwd=tmp_path, **clean
    )
    assert Path(where.strip()).is_relative_to(environment)
    config = ("--config", tmp_path / "config.toml", "config")  # for root the default is the machine's own
    run(command, *config, "init", "--name", "Attic", "--state-dir", "state", "--yes", cwd=tmp_path, **clean)
    run(command, *config, "check", cwd=tmp_path, **clean)
    assert "process" in run(command, "plugin", "list", cwd=tmp_path, **clean)
    assert "ExecStart=" in run(command, "agent", "install", "--dry-run", cwd=tmp_path, **clean)


def test_shells_and_manuals_find_their_files(environment: Path) -> None:
    share = environment / "share"
    for path in (
        "bash-completion/completions/homeserver",
        "fish/vendor_completions.d/homeserver.fish",
        "zsh/site-functions/_homeserver",
        "man/man1/homeserver.1",
        "man/man1/homeserver-app.1",
    ):
        assert (share / path).stat().st_size > 0
