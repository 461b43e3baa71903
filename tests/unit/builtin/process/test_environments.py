"""Python environments of the process runtime: made once, from wheels alone, by nobody else's modules."""

from __future__ import annotations

import asyncio
import zipfile
from pathlib import Path

import pytest

from fractal.api.errors import BackendError
from fractal.builtin.process.config import ProcessConfig
from fractal.builtin.process.environments import Environments
from fractal.testing.context import real_context


def wheel(folder: Path, name: str, version: str) -> None:
    """A wheel with one module, without any tool or index."""
    folder.mkdir(exist_ok=True)
    info = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as file:
        file.writestr(f"{name}.py", f"VERSION = {version!r}\n")
        file.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        file.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: x\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        file.writestr(f"{info}/RECORD", "")


async def test_environments_are_made_once_for_all_agents(tmp_path: Path) -> None:
    wheel(tmp_path / "wheels", "greeting", "1.0")
    config = ProcessConfig(wheels=str(tmp_path / "wheels"), envs=str(tmp_path / "envs"))
    async with real_context(tmp_path / "a") as one, real_context(tmp_path / "b") as two:
        agents = [Environments(one, config), Environments(two, config)]
        found = await asyncio.gather(*(agent.python(["greeting==1.0"]) for agent in agents))
        assert found[0] == found[1]
        done = await one.run([str(found[0]), "-c", "import greeting; print(greeting.VERSION)"])
        assert done.stdout == b"1.0\n"
        # One that was killed half-way is made anew; a whole one is left alone.
        before = found[0].lstat().st_mtime_ns
        assert await agents[0].python(["greeting==1.0"]) == found[0]
        assert found[0].lstat().st_mtime_ns == before
        (found[0].parents[1] / "complete.json").unlink()
        await agents[1].python(["greeting==1.0"])
        assert found[0].lstat().st_mtime_ns != before


async def test_nothing_is_imported_from_where_the_agent_was_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody else may write there, and `-m` would look there first."""
    wheel(tmp_path / "wheels", "greeting", "1.0")
    here = tmp_path / "here"
    here.mkdir()
    for module in ("venv", "pip", "sitecustomize", "ensurepip", "json", "shutil"):
        (here / f"{module}.py").write_text(f"open({str(here / 'ran')!r}, 'w'); raise SystemExit(9)\n")
    monkeypatch.chdir(here)
    async with real_context(tmp_path / "one") as context:
        environments = Environments(context, ProcessConfig(wheels=str(tmp_path / "wheels")))
        assert (await environments.python(["greeting==1.0"])).exists()
    assert not (here / "ran").exists()


async def test_a_requirement_that_does_not_exist_is_named_and_may_come_later(tmp_path: Path) -> None:
    (tmp_path / "wheels").mkdir()
    async with real_context(tmp_path) as context:
        environments = Environments(context, ProcessConfig(wheels=str(tmp_path / "wheels")))
        with pytest.raises(BackendError, match=r"greeting==1\.0") as caught:
            await environments.python(["greeting==1.0"])
        assert caught.value.retryable
        wheel(tmp_path / "wheels", "greeting", "1.0")
        assert (await environments.python(["greeting==1.0"])).exists()
        with pytest.raises(BackendError, match="pinned"):
            await environments.python(["--help"])
