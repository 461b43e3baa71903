"""Making a volume root fails and is tried again: that piles nothing up."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

import pytest

from fractal.agent.app_data import make_folder
from fractal.agent.local import LocalFacts
from fractal.agent.notes import MemoryNotes
from fractal.agent.rooting import Rooting
from fractal.api.errors import BackendError, Corrupt
from fractal.archive.layout import base_key
from fractal.core.chain import EMPTY
from fractal.core.model import Point
from fractal.testing.agents import bed
from tests.unit.agent.test_clock_steps import Clocks

if TYPE_CHECKING:
    from fractal.agent.app_job import AppJob

BASE = Point(epoch=1, number=7)


@dataclass
class Disk:
    """One volume: whether it has a root, and the names of its snapshots."""

    rooted: bool = False
    held: list[str] = field(default_factory=list)

    async def root(self, volume: str) -> Path | None:
        return Path("/volume") if self.rooted else None

    async def create_root(self, volume: str) -> None:
        self.rooted = True

    async def checkout(self, volume: str, name: str) -> None:
        assert not self.rooted
        self.rooted = True

    async def delete_root(self, volume: str) -> None:
        self.rooted = False

    async def set_aside(self, volume: str, name: str) -> None:
        self.rooted = False
        self.held.append(name)

    async def snapshots(self, volume: str) -> Sequence[SimpleNamespace]:
        return [SimpleNamespace(name=name) for name in self.held]

    async def delete(self, volume: str, name: str) -> None:
        self.held.remove(name)


class Bench:
    """A device that was given epoch 2 of an app, whose parts fail as a test wants it."""

    def __init__(self, base: Point | None = BASE) -> None:
        self.clock, self.disk = Clocks(), Disk()
        self.base, self.problem = base, ""
        self.spoilt = False
        self.facts = LocalFacts(MemoryNotes(), "g", "a")
        data = SimpleNamespace(
            volume="v",
            fetched=None,
            bases=self._bases,
            hold=self._hold,
            look=self._look,
            forget_ignored=_nothing,
            make_folders=self._folders,
        )
        opened = SimpleNamespace(
            store=SimpleNamespace(staleness=0.0), epochs=SimpleNamespace(create_base=self._create)
        )

        async def listed(store: str) -> object:
            return opened

        group = SimpleNamespace(
            agent=SimpleNamespace(clock=self.clock, snapshotter=self.disk), list_epochs=listed
        )
        job = SimpleNamespace(
            id="a",
            app=SimpleNamespace(epoch=2, store="s", source=None),
            data=data,
            facts=self.facts,
            group=group,
        )
        self.rooting = Rooting(cast("AppJob", job))

    async def _bases(self) -> dict[int, Point]:
        return {} if self.base is None else {2: self.base}

    async def _hold(self, point: Point, *, prune: bool) -> str:
        return "p-1-7"

    async def _look(self) -> Point:
        return EMPTY

    async def _create(self, app: str, epoch: int, point: Point) -> Point:
        if self.spoilt:
            raise Corrupt("the base: not an object of this system")
        return point

    async def _folders(self) -> None:
        if self.problem:
            raise BackendError(self.problem)


async def _nothing() -> None:
    return


@pytest.mark.parametrize("base", [BASE, None], ids=["of a snapshot", "empty"])
async def test_a_root_in_which_nothing_ran_is_not_put_aside_at_each_try(base: Point | None) -> None:
    bench = Bench(base)
    bench.problem = "no space left on device"
    for _ in range(3):
        with pytest.raises(BackendError, match="no space"):
            await bench.rooting.prepare()
    assert not bench.disk.rooted
    assert not bench.disk.held
    bench.problem = ""
    await bench.rooting.prepare()
    assert (bench.disk.rooted, bench.facts.now.root) == (True, 2)


async def test_of_roots_that_crashes_left_one_is_kept() -> None:
    bench = Bench()
    bench.disk.held = ["t-1-9", "stray-9", "p-1-7"]
    bench.facts.change(counter=9)
    bench.disk.rooted = True
    await bench.rooting.prepare()
    assert bench.disk.held == ["t-1-9", "p-1-7", "stray-10"]


async def test_the_first_failure_counts_until_a_try_succeeds() -> None:
    bench = Bench()
    assert bench.rooting.since(2) is None
    bench.problem = "no space left on device"
    for _ in range(2):
        with pytest.raises(BackendError):
            await bench.rooting.prepare()
        bench.clock.boot += 5.0
    assert bench.rooting.since(2) == 1000.0
    assert bench.rooting.since(3) is None, "another epoch has its own time"
    bench.problem = ""
    await bench.rooting.prepare()
    assert bench.rooting.since(2) is None


async def test_only_the_base_itself_makes_an_epoch_unusable() -> None:
    """A snapshot that is damaged is not the epoch's fault: another epoch would start from it as well."""
    bench = Bench(None)

    async def damaged() -> Point:
        raise Corrupt("record 1.7: not an object of this system")

    bench.rooting._job.data.look = damaged  # type: ignore[method-assign]
    with pytest.raises(Corrupt, match=r"1\.7"):
        await bench.rooting.prepare()
    assert not bench.rooting.spoilt(2)
    bench.rooting._job.data.look = bench._look  # type: ignore[method-assign]
    bench.spoilt = True
    with pytest.raises(Corrupt, match="base"):
        await bench.rooting.prepare()
    assert bench.rooting.spoilt(2)
    assert not bench.rooting.spoilt(3)


def test_a_folder_that_cannot_be_made_is_an_error_of_the_backend(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the job ends as by a bug, and the next try begins without knowing of this one."""

    def full(self: Path, mode: int = 0o777) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "mkdir", full)
    with pytest.raises(BackendError, match="No space left"):
        make_folder(tmp_path / "data")


async def test_garbage_in_place_of_bases_costs_epochs_and_not_the_app(tmp_path: Path) -> None:
    """On real parts: whoever has the store's credentials put it there before the app was moved."""
    async with bed(tmp_path) as beds:
        await beds.start("attic")
        await beds.start("den")
        await beds.found("attic")
        await beds.join("den", by="attic")
        await beds.install("attic")
        await beds.until(lambda: beds.agents["den"].keys.id in beds.app("attic").keys[-1].sealed)
        store = beds.at("attic").stores[beds.app("attic").store].store
        for epoch in (2, 3):
            await store.put_new(base_key(beds.group, beds.app("attic").id, epoch), b"garbage")
        moved = await beds.call("attic", "app.move", app="test", device="den", wait_s=55)
        assert moved["done"], await beds.call("den", "status.show")
        await beds.until(lambda: beds.app("den").serving == 4)
        assert beds.app("den").owner == beds.agents["den"].keys.id
        assert not beds.app("den").failed
        assert await beds.starts("den") == ["one", "one"], "with the data of before"
