"""Images are built by the device's own engine, of a context that is sent to it, and come back like any other image."""

from __future__ import annotations

import io
from collections.abc import AsyncIterator
from contextlib import closing, suppress
from pathlib import Path

import docker
import pytest
from fractal_containers.testing import RememberingRuntime, TestEngine, opened
from fractal_containers.testing_images import BUSYBOX

from fractal.api.app import AppRun, AppSpec, ServiceSpec
from fractal.api.build_context import pack
from fractal.api.building import BUILT, ImageBuild
from fractal.api.errors import BackendError, NotFound

pytestmark = pytest.mark.usefixtures("inside")


@pytest.fixture
async def runtime(engine: TestEngine, tmp_path: Path, inside: None) -> AsyncIterator[RememberingRuntime]:
    async with opened(engine, tmp_path / "agent") as made:
        yield made


async def build(runtime: RememberingRuntime, folder: Path, wanted: ImageBuild) -> tuple[str, list[str]]:
    """The image's name, and what was said meanwhile."""
    archive, said = io.BytesIO(), list[str]()
    size = pack(folder, wanted, archive).bytes

    async def chunks() -> AsyncIterator[bytes]:
        archive.seek(0)
        while chunk := archive.read(1000):
            yield chunk

    return await runtime.build_image(wanted, size, chunks(), said.append), said


def forget(engine: TestEngine, *images: str) -> None:
    with closing(engine.api()) as client:
        for image in images:
            with suppress(docker.errors.APIError):
                client.remove_image(image, force=True)


DOCKERFILE = f"""
FROM {BUSYBOX} AS base
ARG COLOUR=red
RUN echo "$COLOUR" > /colour
FROM base AS shown
COPY pages /srv/pages
RUN ls -a /srv/pages > /list
LABEL from=dockerfile
CMD ["sh", "-c", "cat /colour /srv/pages/index /list; exec sleep 1000"]
FROM base
RUN false
"""


async def test_a_context_becomes_an_image_that_runs_and_travels(
    engine: TestEngine, runtime: RememberingRuntime, tmp_path: Path
) -> None:
    folder = tmp_path / "app"
    pages = folder / "site/pages"
    pages.mkdir(parents=True)
    (folder / "site/Dockerfile").write_text(DOCKERFILE)
    (folder / "site/.dockerignore").write_text("**/*.secret\n")
    (pages / "index").write_text("hello\n")
    (pages / "a.secret").write_text("not to be seen")
    wanted = ImageBuild(
        name="ada/Notes:2",
        context="./site",
        args={"COLOUR": "dark-blue-1"},
        labels={"made": "here"},
        target="shown",
    )
    image, said = await build(runtime, folder, wanted)
    try:
        digest = await runtime.image_digest(image)
        assert image == f"{BUILT}/notes:{digest.removeprefix('sha256:')}"
        assert any("COPY pages" in line for line in said)
        with closing(engine.api()) as client:
            labels = client.inspect_image(image)["Config"]["Labels"]
        assert labels["made"] == "here" and labels["from"] == "dockerfile"

        main = ServiceSpec(name="main", image=image, stop_grace=1.0)
        spec = AppSpec(name="x", services=(main,))
        run = AppRun(group="g", app="built", epoch=1, spec=spec, volume_root=tmp_path)
        await runtime.prepare(run)
        await runtime.start(run)
        text = b""
        async for chunk in runtime.logs(run.key, "main", follow=True):
            text += chunk
            if text.count(b"\n") >= 5:
                break
        assert text.split() == [b"dark-blue-1", b"hello", b".", b"..", b"index"]

        archive = b"".join([chunk async for chunk in runtime.save_image(image)])
        await runtime.kill(run.key)
        await runtime.remove(run.key)
        forget(engine, image)
        with pytest.raises(NotFound, match="it was built, so that no registry has it"):
            await runtime.prepare(run)

        async def once() -> AsyncIterator[bytes]:
            yield archive

        assert await runtime.load_image(image, once()) == digest
        await runtime.prepare(run)
    finally:
        forget(engine, image)


async def test_a_step_that_fails_is_shown_without_what_was_given(
    engine: TestEngine, runtime: RememberingRuntime, tmp_path: Path
) -> None:
    (tmp_path / "Dockerfile").write_text(
        f"FROM {BUSYBOX}\nARG KEY\nRUN echo using $KEY && echo no such thing >&2 && exit 7\n"
    )
    wanted = ImageBuild(name="web", context=".", args={"KEY": "sesame-opens"})
    with pytest.raises(BackendError) as raised:
        await build(runtime, tmp_path, wanted)
    text = str(raised.value)
    assert "building web: step " in text and "exit 7" in text and "no such thing" in text
    assert "sesame" not in text


async def test_a_base_image_that_nobody_has_is_named(runtime: RememberingRuntime, tmp_path: Path) -> None:
    wanted = ImageBuild(name="web", context=".", inline="FROM 127.0.0.1:1/nobody/has:this\n")
    with pytest.raises(BackendError, match="nobody/has"):
        await build(runtime, tmp_path, wanted)
    assert not await runtime.find_image("127.0.0.1:1/nobody/has:this")


async def test_what_runs_in_a_build_can_be_kept_from_the_network(
    engine: TestEngine, runtime: RememberingRuntime, tmp_path: Path
) -> None:
    text = f"FROM {BUSYBOX}\nRUN ls /sys/class/net > /nets && ! grep -v lo /nets\n"
    image, _ = await build(
        runtime, tmp_path, ImageBuild(name="web", context=".", inline=text, network="none", fresh=True)
    )
    forget(engine, image)


async def test_another_image_under_a_built_ones_name_is_not_run(
    engine: TestEngine, runtime: RememberingRuntime, tmp_path: Path
) -> None:
    image = f"{BUILT}/web:{'0' * 64}"
    with closing(engine.api()) as client:
        client.tag(BUSYBOX, *image.rsplit(":", 1))
    try:
        spec = AppSpec(name="x", services=(ServiceSpec(name="main", image=image),))
        with pytest.raises(BackendError, match="build it again"):
            await runtime.prepare(AppRun(group="g", app="false", epoch=1, spec=spec, volume_root=tmp_path))
    finally:
        forget(engine, image)
