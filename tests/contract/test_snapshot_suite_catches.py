"""The snapshot suite must fail broken snapshotters, each by the test that is about its fault."""

from __future__ import annotations

import os
import shutil
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import pytest

from fractal.api.errors import Conflict, Corrupt, NotSupported
from fractal.api.snapshot import Snapshot, Usage
from fractal.builtin.copy.config import CopyConfig
from fractal.builtin.copy.snapshotter import CopySnapshotter, open_copy
from fractal.testing.context import real_context
from fractal.testing.snapshot import SnapshotContract
from fractal.testing.suite import Outcome, broken, failures, run_suites


async def drained(chunks: AsyncIterator[bytes]) -> bytes:
    return b"".join([chunk async for chunk in chunks])


async def one(data: bytes) -> AsyncIterator[bytes]:
    yield data


class LinkingTheLiveRoot(CopySnapshotter):
    """Saves the copy: the app goes on writing into the snapshot."""

    async def snapshot(self, volume: str, name: str) -> Snapshot:
        made = await super().snapshot(volume, name)
        root = self._volume(volume).root
        for path in root.rglob("*"):
            if path.is_file() and not path.is_symlink():
                (made.path / path.relative_to(root)).unlink()
                (made.path / path.relative_to(root)).hardlink_to(path)
        return made


class TrustingModificationTimes(CopySnapshotter):
    """Takes a file of the same size and mtime for the same file."""

    async def snapshot(self, volume: str, name: str) -> Snapshot:
        before = await self.snapshots(volume)
        made = await super().snapshot(volume, name)
        for path in before[-1].path.rglob("*") if before else ():
            new = made.path / path.relative_to(before[-1].path)
            if path.is_file() and not path.is_symlink() and new.is_file() and _times(path) == _times(new):
                new.unlink()
                new.hardlink_to(path)
        return made


def _times(path: Path) -> tuple[int, int]:
    info = path.stat()
    return info.st_size, info.st_mtime_ns


class ReplacingSnapshots(CopySnapshotter):
    async def snapshot(self, volume: str, name: str) -> Snapshot:
        await self.delete(volume, name)
        return await super().snapshot(volume, name)


class SnapshotOfNothing(CopySnapshotter):
    async def snapshot(self, volume: str, name: str) -> Snapshot:
        await self.create_root(volume)
        return await super().snapshot(volume, name)


class DroppingModes(CopySnapshotter):
    async def snapshot(self, volume: str, name: str) -> Snapshot:
        made = await super().snapshot(volume, name)
        for path in made.path.rglob("*"):
            if path.is_file() and not path.is_symlink():
                path.chmod(0o600)
        return made


class FollowingLinks(CopySnapshotter):
    async def snapshot(self, volume: str, name: str) -> Snapshot:
        made = await super().snapshot(volume, name)
        for path in made.path.rglob("*"):
            if path.is_symlink() and path.exists() and path.is_file():
                content = path.read_bytes()
                path.unlink()
                path.write_bytes(content)
        return made


class EmptyingRoots(CopySnapshotter):
    async def create_root(self, volume: str) -> Path:
        await self.delete_root(volume)
        return await super().create_root(volume)


class DeletingSnapshotsWithTheRoot(CopySnapshotter):
    async def delete_root(self, volume: str) -> None:
        await super().delete_root(volume)
        for snapshot in await self.snapshots(volume):
            await self.delete(volume, snapshot.name)


class KeepingTheRootSetAside(CopySnapshotter):
    async def set_aside(self, volume: str, name: str) -> None:
        if self._volume(volume).has_root():
            await self.snapshot(volume, name)


class ThrowingTheRootAway(CopySnapshotter):
    async def set_aside(self, volume: str, name: str) -> None:
        if self._volume(volume).has_root():
            self._volume(volume).refuse_existing(name)
            await self.delete_root(volume)
            await self.create_root(volume)
            await super().set_aside(volume, name)


class SortingByName(CopySnapshotter):
    async def snapshots(self, volume: str) -> Sequence[Snapshot]:
        return sorted(await super().snapshots(volume), key=lambda snapshot: snapshot.name)


class LinkingCheckouts(CopySnapshotter):
    """A checkout in no time, whose writes go into the snapshot."""

    async def checkout(self, volume: str, name: str) -> Path:
        root = await super().checkout(volume, name)
        source = self._volume(volume).path_of(name)
        shutil.rmtree(root)
        shutil.copytree(source, root, symlinks=True, copy_function=os.link)
        return root


class MovingCheckouts(CopySnapshotter):
    async def checkout(self, volume: str, name: str) -> Path:
        root = await super().checkout(volume, name)
        await self.delete(volume, name)
        return root


class OverwritingTheRoot(CopySnapshotter):
    async def checkout(self, volume: str, name: str) -> Path:
        self._volume(volume).path_of(name)
        await self.delete_root(volume)
        return await super().checkout(volume, name)


class AlwaysUnchanged(CopySnapshotter):
    async def unchanged(self, volume: str, name: str) -> bool:
        await super().unchanged(volume, name)
        return await self.root(volume) is not None


class NeverUnchanged(CopySnapshotter):
    async def unchanged(self, volume: str, name: str) -> bool:
        await super().unchanged(volume, name)
        return False


class SendingAllEachTime(CopySnapshotter):
    """Sends whole files where a block changed. Correct and dear."""

    def send(self, volume: str, name: str, parent: str | None = None) -> AsyncIterator[bytes]:
        self._volume(volume).path_of(parent or name)
        return super().send(volume, name)


class ForgettingDeletions(CopySnapshotter):
    async def receive(
        self,
        volume: str,
        name: str,
        chunks: AsyncIterator[bytes],
        *,
        stream_format: str,
        parent: str | None = None,
    ) -> Snapshot:
        made = await super().receive(volume, name, chunks, stream_format=stream_format, parent=parent)
        if parent is not None:
            old = self._volume(volume).path_of(parent)
            for path in old.rglob("*"):
                new = made.path / path.relative_to(old)
                if (
                    path.is_file()
                    and not path.is_symlink()
                    and not os.path.lexists(new)
                    and new.parent.is_dir()
                ):
                    shutil.copy2(path, new)
        return made


class OneGreatChunk(CopySnapshotter):
    async def send(self, volume: str, name: str, parent: str | None = None) -> AsyncIterator[bytes]:
        yield await drained(super().send(volume, name, parent))


class TakingAnyFormat(CopySnapshotter):
    async def receive(
        self,
        volume: str,
        name: str,
        chunks: AsyncIterator[bytes],
        *,
        stream_format: str,
        parent: str | None = None,
    ) -> Snapshot:
        return await super().receive(volume, name, chunks, stream_format=self.format, parent=parent)


class ReceivingOver(CopySnapshotter):
    async def receive(
        self,
        volume: str,
        name: str,
        chunks: AsyncIterator[bytes],
        *,
        stream_format: str,
        parent: str | None = None,
    ) -> Snapshot:
        await self.delete(volume, name)
        return await super().receive(volume, name, chunks, stream_format=stream_format, parent=parent)


class ForgivingDamage(CopySnapshotter):
    """Keeps what came before the damage."""

    async def receive(
        self,
        volume: str,
        name: str,
        chunks: AsyncIterator[bytes],
        *,
        stream_format: str,
        parent: str | None = None,
    ) -> Snapshot:
        try:
            return await super().receive(volume, name, chunks, stream_format=stream_format, parent=parent)
        except Corrupt:
            await self.create_root(volume)
            return await self.snapshot(volume, name)


class LeavingPartials(CopySnapshotter):
    """Raises as it should, but what arrived so far is listed."""

    async def receive(
        self,
        volume: str,
        name: str,
        chunks: AsyncIterator[bytes],
        *,
        stream_format: str,
        parent: str | None = None,
    ) -> Snapshot:
        try:
            return await super().receive(volume, name, chunks, stream_format=stream_format, parent=parent)
        except (NotSupported, Conflict, Corrupt):
            raise
        except BaseException:
            await self.create_root(volume)
            await self.snapshot(volume, name)
            raise


class TakingAnyParent(CopySnapshotter):
    """Applies an incremental stream to whatever it is given: here, to what the sender meant."""

    async def receive(
        self,
        volume: str,
        name: str,
        chunks: AsyncIterator[bytes],
        *,
        stream_format: str,
        parent: str | None = None,
    ) -> Snapshot:
        try:
            return await super().receive(volume, name, chunks, stream_format=stream_format, parent=parent)
        except Corrupt as error:
            if "made against" not in str(error):
                raise
            await self.create_root(volume)
            return await self.snapshot(volume, name)


class Unchecked(CopySnapshotter):
    """Puts names into paths as they come."""

    async def create_root(self, volume: str) -> Path:
        return await super().create_root(
            volume.replace("/", "-").replace("..", "up").lower().strip() or "none"
        )


class NothingFree(CopySnapshotter):
    async def usage(self) -> Usage:
        return Usage(total=0, free=0)


class SharedClone(CopySnapshotter):
    """A clone that is the snapshot itself."""

    async def clone(self, volume: str, name: str, target: str) -> Path:
        root = await super().clone(volume, name, target)
        if target != volume:
            shutil.rmtree(root)
            shutil.copytree(self._volume(volume).path_of(name), root, symlinks=True, copy_function=os.link)
        return root


class DeletingTheNext(CopySnapshotter):
    """Deleting one snapshot takes its only child along."""

    async def delete(self, volume: str, name: str) -> None:
        listed = [snapshot.name for snapshot in await self.snapshots(volume)]
        await super().delete(volume, name)
        if name in listed[:-1]:
            await super().delete(volume, listed[listed.index(name) + 1])


class Unbroken(CopySnapshotter):
    """A lean stream may hold everything."""

    async def send_lean(self, volume: str, name: str, parent: str) -> AsyncIterator[bytes]:
        async for chunk in self.send(volume, name, parent):
            yield chunk


class SparingTooMuch(CopySnapshotter):
    """A lean stream that leaves out what changed."""

    async def send_lean(self, volume: str, name: str, parent: str) -> AsyncIterator[bytes]:
        async for chunk in self.send(volume, parent, parent):
            yield chunk


EXPECTED: dict[type[CopySnapshotter], str] = {
    LinkingTheLiveRoot: "test_a_snapshot_stays_as_it_was",
    TrustingModificationTimes: "test_a_change_that_hides_its_time_is_seen",
    ReplacingSnapshots: "test_snapshot_names_are_taken_once",
    SnapshotOfNothing: "test_without_a_root_there_is_nothing_to_snapshot",
    DroppingModes: "test_a_snapshot_equals_the_root",
    FollowingLinks: "test_links_are_kept_and_never_followed",
    EmptyingRoots: "test_a_root_is_made_once",
    DeletingSnapshotsWithTheRoot: "test_deleting_a_root_leaves_its_snapshots",
    KeepingTheRootSetAside: "test_a_root_is_set_aside_whole",
    ThrowingTheRootAway: "test_a_root_is_set_aside_whole",
    SortingByName: "test_snapshots_are_listed_oldest_first",
    LinkingCheckouts: "test_a_checkout_is_independent",
    MovingCheckouts: "test_random_histories_are_kept",
    OverwritingTheRoot: "test_a_checkout_is_independent",
    AlwaysUnchanged: "test_unchanged_is_certain",
    NeverUnchanged: "test_unchanged_is_certain",
    SendingAllEachTime: "test_only_the_change_is_sent",
    ForgettingDeletions: "test_an_incremental_stream_brings_every_change",
    OneGreatChunk: "test_chunks_are_bounded",
    TakingAnyFormat: "test_unknown_formats_are_refused",
    ReceivingOver: "test_receive_overwrites_nothing",
    ForgivingDamage: "test_a_damaged_stream_leaves_nothing",
    LeavingPartials: "test_a_stream_that_fails_leaves_nothing",
    TakingAnyParent: "test_a_stream_needs_its_own_parent",
    Unchecked: "test_names_outside_the_rules_are_refused",
    NothingFree: "test_usage_is_of_a_real_disk",
    SharedClone: "test_a_clone_is_independent",
    SparingTooMuch: "test_a_lean_stream_brings_the_same",
    DeletingTheNext: "test_deleting_a_snapshot_leaves_the_others",
}


def opening(kind: type[CopySnapshotter]) -> Callable[[Path], AbstractAsyncContextManager[CopySnapshotter]]:
    @asynccontextmanager
    async def opened(folder: Path) -> AsyncIterator[CopySnapshotter]:
        async with real_context(folder) as context, open_copy(context, CopyConfig()) as snapshotter:
            yield kind(context, snapshotter._volumes)

    return opened


@pytest.fixture(scope="module")
def outcomes() -> dict[str, list[Outcome]]:
    """Each broken snapshotter runs only the test that must catch it: the others take minutes and prove nothing more."""
    kinds: list[type[CopySnapshotter]] = [Unbroken, *EXPECTED]
    clone = frozenset({"SupportsClone"})
    suites = {
        kind.__name__: broken(
            SnapshotContract,
            opening(kind),
            capabilities=clone | {"SupportsLean"} if hasattr(kind, "send_lean") else clone,
            histories=4,
        )
        for kind in kinds
    }
    return run_suites(suites, "--tb=line", only={kind.__name__: test for kind, test in EXPECTED.items()})


def test_the_unbroken_snapshotter_passes(outcomes: dict[str, list[Outcome]]) -> None:
    assert {outcome.result for outcome in outcomes["Unbroken"]} == {"passed"}


@pytest.mark.parametrize("kind", EXPECTED, ids=lambda kind: kind.__name__)
def test_a_broken_snapshotter_is_caught(
    outcomes: dict[str, list[Outcome]], kind: type[CopySnapshotter]
) -> None:
    assert EXPECTED[kind] in failures(outcomes[kind.__name__])
