"""Images that are built for a command: for which machines, and what is left when it goes wrong."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any, TypeVar

import pytest

from fractal.agent.contexts import Contexts
from fractal.agent.control.app_build import Builds
from fractal.api.building import ImageBuild
from fractal.api.errors import BackendError, Denied
from fractal.shell.clock import SystemClock
from fractal.shell.entropy import SystemEntropy

T = TypeVar("T")


class Threads:
    """Not needed to see what is left: blocking calls block."""

    async def run(self, function: Callable[..., T], /, *args: object) -> T:
        return function(*args)


class Engine:
    """Builds nothing."""

    async def build_image(self, build: ImageBuild, *_: object) -> str:
        raise BackendError(f"{build.name}: step 1 failed")

    async def find_image(self, *_: object) -> bool:
        return False


async def made(folder: Path, *names: str) -> Builds:
    folder.mkdir()
    contexts = Contexts(folder, SystemClock(), SystemEntropy(), Threads())

    async def write(file: IO[bytes]) -> None:
        file.write(b"archive")

    devices = {
        name: SimpleNamespace(name=name, arch=arch)
        for name, arch in (("desk", "x86_64"), ("pi", "aarch64"), ("new", ""))
    }
    agent: Any = SimpleNamespace(runtime=Engine(), contexts=contexts)
    group: Any = SimpleNamespace(me="desk", state=SimpleNamespace(devices=devices))
    return Builds(
        agent=agent,
        group=group,
        wanted={name: (ImageBuild(name=name, context="."), False) for name in names},
        contexts={name: await contexts.make(write) for name in names},
    )


async def test_a_build_that_fails_leaves_no_context_of_those_after_it(tmp_path: Path) -> None:
    builds = await made(tmp_path / "contexts", "web", "worker")
    assert len(list((tmp_path / "contexts").iterdir())) == 2
    said: Any = SimpleNamespace(say=print)
    with pytest.raises(BackendError, match="web: step 1 failed"):
        await builds.actions()[0].do(said)
    assert not list((tmp_path / "contexts").iterdir())


async def test_what_is_built_here_is_not_given_to_another_kind_of_machine(tmp_path: Path) -> None:
    builds = await made(tmp_path / "contexts", "web")
    for device in ("desk", "new", "gone"):
        builds.refuse_another_machine(device)
    with pytest.raises(
        Denied, match=r"pi cannot run what is built here: its architecture aarch64 .* --image"
    ):
        builds.refuse_another_machine("pi")
    (await made(tmp_path / "none")).refuse_another_machine("pi")
