"""Images of whole agents' apps: archived once, loaded ahead, the same everywhere, also where no registry is.

The engine is the process runtime behind a thin front that knows images: an image says how its service runs. Real engines are
tried in their plugins and in the stack.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from fractal.api.app import AppRun, AppSpec, ServiceSpec
from fractal.api.errors import NotFound, Unreachable
from fractal.api.runtime import Refusal, Runtime, SupportsImages
from fractal.core.entries import AppImages, DeviceUpdated
from fractal.manifest import parse
from fractal.testing.agents import Bed, bed, manifest, service

IMAGE = "registry.example/web:1"
TEXT = f"""
name: test
services:
  web:
    image: {IMAGE}
    volumes: ["data:/data"]
volumes: {{data: {{}}}}
"""


def built(word: str = "one") -> bytes:
    """An image: the manifest of the service that it makes, which serves `word`."""
    return manifest(service(word=word)).encode()


def digest_of(image: bytes) -> str:
    return "sha256:" + hashlib.sha256(image).hexdigest()


@dataclass
class Engine:
    """A runtime that runs images, out of its own little stock."""

    inner: Runtime
    stock: dict[str, bytes] = field(default_factory=dict)
    """Digest -> image."""
    names: dict[str, str] = field(default_factory=dict)
    loaded: list[str] = field(default_factory=list)
    started: list[str] = field(default_factory=list)
    arch: str = "x86_64"
    slow: asyncio.Event | None = None
    """Loading waits for it."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def tag(self, name: str, image: bytes) -> str:
        self.stock[digest_of(image)] = image
        self.names[name] = digest_of(image)
        return digest_of(image)

    def check(self, spec: AppSpec) -> list[Refusal]:
        return []

    async def image_digest(self, image: str) -> str:
        digest = self.names.get(image, image)
        if digest not in self.stock:
            raise NotFound(f"no image {image} here, and no registry")
        return digest

    async def image_architecture(self, image: str) -> str:
        await self.image_digest(image)
        return self.arch

    async def save_image(self, image: str) -> AsyncIterator[bytes]:
        yield self.stock[await self.image_digest(image)]

    async def load_image(self, image: str, chunks: AsyncIterator[bytes]) -> str:
        self.loaded.append(image)
        if self.slow is not None:
            await self.slow.wait()
        return self.tag(image, b"".join([chunk async for chunk in chunks]))

    async def _run(self, run: AppRun) -> AppRun:
        services: list[ServiceSpec] = []
        for wanted in run.spec.services:
            digest = await self.image_digest(run.images.get(wanted.image, wanted.image))
            self.started.append(digest)
            services += parse(self.stock[digest].decode()).services
        return replace(run, spec=replace(run.spec, services=tuple(services)))

    async def prepare(self, run: AppRun) -> None:
        await self.inner.prepare(await self._run(run))

    async def start(self, run: AppRun) -> None:
        await self.inner.start(await self._run(run))


@pytest.fixture
async def two(tmp_path: Path) -> AsyncIterator[Bed]:
    """An app on Attic, whose image only Attic has, and Den, which could stand in."""
    async with bed(tmp_path) as made:
        for name in ("Attic", "Den"):
            agent = await made.start(name)
            agent.runtime = Engine(agent.runtime)
            assert isinstance(agent.runtime, SupportsImages)
        await made.found("Attic")
        await made.join("Den", by="Attic")
        engine(made, "Attic").tag(IMAGE, built())
        await made.until(lambda: all(d.images for d in made.at("Attic").state.devices.values()))
        yield made


def engine(bed: Bed, name: str) -> Engine:
    found = bed.agents[name].runtime
    assert isinstance(found, Engine)
    return found


def status(bed: Bed, name: str) -> dict[str, Any]:
    return next(a for a in bed.at(name).status()["apps"] if a["name"] == "test")


def objects(bed: Bed) -> set[str]:
    found = (bed.folder / "shelf").rglob("*")
    return {p.parent.name for p in found if p.is_file() and "/image/" in str(p)}


async def test_no_registry_is_needed_anywhere_but_once(two: Bed) -> None:
    await two.install("Attic", TEXT)
    await two.until(lambda: IMAGE in two.app("Attic").pinned_images)
    assert status(two, "Attic")["unarchived"] == []
    digest = digest_of(built())
    # The standby has it before it is needed.
    await two.until(lambda: digest in engine(two, "Den").stock)
    assert engine(two, "Den").loaded == [IMAGE]
    # What the name means on that device, or at a registry by now, is of no matter.
    engine(two, "Den").tag(IMAGE, built("newer"))
    await two.call("Attic", "app.move", app="test", device="Den", wait_s=40)
    assert set(engine(two, "Den").started) == {digest}
    assert await two.starts("Den") == ["one", "one"]
    # One that lost it gets it from the store again.
    engine(two, "Attic").stock.clear()
    await two.call("Den", "app.move", app="test", device="Attic", wait_s=40)
    assert engine(two, "Attic").loaded == [IMAGE] and len(objects(two)) == 1


async def test_an_app_whose_image_is_being_loaded_can_be_moved_on(two: Bed) -> None:
    """Loading may take minutes on a small device: nothing that the app has to do meanwhile waits for it."""
    await two.install("Attic", TEXT)
    await two.until(lambda: IMAGE in two.app("Attic").pinned_images)
    den, slow = engine(two, "Den"), asyncio.Event()
    await two.until(lambda: digest_of(built()) in den.stock)
    den.stock.clear()
    den.slow = slow
    await two.call("Attic", "app.move", app="test", device="Den", wait_s=0)
    await two.until(lambda: den.loaded == [IMAGE, IMAGE])
    assert two.app("Den").owner == two.at("Den").me
    await two.call("Attic", "app.move", app="test", device="Attic", wait_s=40)
    await two.until(lambda: two.app("Attic").serving == two.app("Attic").epoch == 3)
    assert not slow.is_set() and not den.started
    slow.set()


async def test_a_mirror_has_the_image_too_and_gives_it_when_the_store_lost_it(two: Bed) -> None:
    cellar = two.folder / "cellar"
    cellar.mkdir()
    await two.install("Attic", TEXT)
    await two.until(lambda: IMAGE in two.app("Attic").pinned_images)
    await two.until(lambda: digest_of(built()) in engine(two, "Den").stock)
    await two.call("Attic", "store.add", name="Cellar", backend="directory", config={"path": str(cellar)})
    await two.call("Attic", "app.policy", app="test", mirrors=["Cellar"])
    await two.until(lambda: [p for p in cellar.rglob("*") if p.is_file() and "/image/" in str(p)])
    for path in (two.folder / "shelf").rglob("*"):
        if path.is_file() and "/image/" in str(path):
            path.unlink()
    engine(two, "Den").stock.clear()
    await two.call("Attic", "app.move", app="test", device="Den", wait_s=40)
    assert await two.starts("Den") == ["one", "one"]
    # What is named as a mirror's is no orphan there.
    images = await two.at("Den").images(next(iter(two.app("Den").mirrors)))
    assert await images.orphans() == []


async def test_a_fork_runs_what_its_origin_runs_and_shares_the_object(two: Bed) -> None:
    await two.install("Attic", TEXT, device="Attic")
    await two.until(lambda: IMAGE in two.app("Attic").pinned_images)
    await two.call("Attic", "snapshot.create", app="test", wait_s=30)
    result = await two.call("Attic", "app.fork", app="test", name="copy", device="Den", wait_s=40)
    assert result["done"], two.at("Den").status()
    assert set(engine(two, "Den").started) == {digest_of(built())}
    copy = next(a for a in two.at("Den").state.apps.values() if a.name == "copy")
    await two.until(lambda: IMAGE in two.at("Den").state.apps[copy.id].pinned_images)
    assert len(objects(two)) == 1


async def test_a_device_of_another_machine_is_left_out_and_status_says_why(two: Bed) -> None:
    await two.install("Attic", TEXT)
    await two.until(lambda: IMAGE in two.app("Attic").pinned_images)
    den = two.at("Den")
    await den.journal.append(DeviceUpdated(device=den.me, arch="riscv64"))
    await two.until(lambda: status(two, "Attic")["excluded"])
    (found,) = status(two, "Attic")["excluded"]
    assert found["device"] == "Den" and f"{IMAGE} is for x86_64" in found["reason"]


async def test_an_image_that_the_store_lost_is_brought_again(two: Bed) -> None:
    await two.install("Attic", TEXT)
    await two.until(lambda: IMAGE in two.app("Attic").pinned_images)
    for path in [p for p in (two.folder / "shelf").rglob("*") if p.is_file() and "/image/" in str(p)]:
        path.unlink()
    (before,) = two.app("Attic").images
    two.job("Attic").images._stood.clear()  # as after a day
    await two.until(lambda: two.app("Attic").images[0].object != before.object)
    assert two.app("Attic").images[0].digest == before.digest and len(objects(two)) == 1


async def test_an_image_that_is_not_what_the_log_says_never_starts(two: Bed) -> None:
    """The engine computes the digest of what it loaded, so an object that was exchanged by somebody with the key is noticed."""
    await two.install("Attic", TEXT)
    await two.until(lambda: digest_of(built()) in engine(two, "Den").stock)
    den = engine(two, "Den")
    den.stock.clear()

    async def another(image: str, chunks: AsyncIterator[bytes]) -> str:
        async for _ in chunks:
            pass
        return den.tag(image, built("evil"))

    den.load_image = another  # type: ignore[method-assign]
    den.started.clear()
    await two.call("Attic", "app.move", app="test", device="Den", wait_s=0)
    await two.until(lambda: "the group's log says" in two.job("Den").trouble)
    assert digest_of(built("evil")) not in den.started


async def test_an_image_is_stored_once_however_often_the_log_does_not_answer(
    two: Bed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fractal.agent.images.AGAIN", 0.1)
    journal, tries = two.at("Attic").journal, 0
    append = journal.append

    async def away(entry: object, **given: Any) -> object:
        nonlocal tries
        if isinstance(entry, AppImages) and tries < 5:
            tries += 1
            raise Unreachable("the log does not answer")
        return await append(entry, **given)  # type: ignore[arg-type]

    monkeypatch.setattr(journal, "append", away)
    await two.install("Attic", TEXT, device="Attic")
    await two.until(lambda: IMAGE in two.app("Attic").pinned_images)
    assert tries == 5 and len(objects(two)) == 1
