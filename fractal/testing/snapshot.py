"""The contract of a snapshotter: `class TestMine(SnapshotContract)` with the fixture `backend`, opened and empty.

The trees that it makes need no root: files, folders, links, odd names, holes, modes. A suite of random histories
(`fractal.testing.chains`) runs as one of the tests.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, ClassVar

import pytest

from fractal.api.errors import Conflict, InvalidInput, NotFound
from fractal.api.snapshot import Snapshotter, SupportsClone, SupportsLean
from fractal.testing.streams import StreamContract
from fractal.testing.suite import requires
from fractal.testing.trees import again, alter, describe, tree

BAD_NAMES = ("", ".", "..", "a/b", "/a", "../a", "A", "a b", "a\0", "a\n", "ä", "x" * 121)


class SnapshotContract(StreamContract):
    """What every snapshotter must do. See `fractal.api.snapshot.Snapshotter` for the words behind each test."""

    optional: ClassVar[dict[str, type[Any]]] = {
        "SupportsClone": SupportsClone,
        "SupportsLean": SupportsLean,
    }
    histories: ClassVar[int] = 12
    """How many random histories to run."""

    async def test_a_root_is_made_once(self, backend: Snapshotter) -> None:
        assert await backend.root("app") is None
        root = await backend.create_root("app")
        assert tree(root) == {}
        (root / "kept").write_bytes(b"kept")
        assert await backend.create_root("app") == root == await backend.root("app")
        assert (root / "kept").read_bytes() == b"kept"
        assert await backend.volumes() == ["app"]

    async def test_a_snapshot_equals_the_root(self, backend: Snapshotter) -> None:
        root = await self.planted(backend)
        before = tree(root)
        snapshot = await backend.snapshot("app", "s1")
        assert (snapshot.volume, snapshot.name) == ("app", "s1")
        assert tree(snapshot.path) == before == tree(root)
        assert list(await backend.snapshots("app")) == [snapshot]

    async def test_a_snapshot_stays_as_it_was(self, backend: Snapshotter) -> None:
        root = await self.planted(backend)
        first = await backend.snapshot("app", "s1")
        before = tree(first.path)
        alter(root)
        altered = tree(root)
        second = await backend.snapshot("app", "s2")
        with (root / "data" / "big.db").open("r+b") as file:
            file.write(b"in place, after both")
        assert tree(first.path) == before
        assert tree(second.path) == altered

    async def test_a_change_that_hides_its_time_is_seen(self, backend: Snapshotter) -> None:
        root = await self.planted(backend)
        file = root / "data" / "notes.txt"
        await backend.snapshot("app", "s1")
        times = file.stat()
        with file.open("r+b") as writer:
            writer.write(b"F")
        os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
        assert not await backend.unchanged("app", "s1")
        second = await backend.snapshot("app", "s2")
        assert (second.path / "data" / "notes.txt").read_bytes() == b"First line\n"

    async def test_a_change_right_after_a_snapshot_is_seen(self, backend: Snapshotter) -> None:
        root = await backend.create_root("app")
        for number in range(20):
            (root / "counter").write_bytes(b"%04d" % number)
            snapshot = await backend.snapshot("app", f"s{number}")
            assert (snapshot.path / "counter").read_bytes() == b"%04d" % number

    async def test_snapshot_names_are_taken_once(self, backend: Snapshotter) -> None:
        root = await self.planted(backend)
        first = await backend.snapshot("app", "s1")
        before = tree(first.path)
        alter(root)
        with pytest.raises(Conflict):
            await backend.snapshot("app", "s1")
        assert tree(first.path) == before

    async def test_without_a_root_there_is_nothing_to_snapshot(self, backend: Snapshotter) -> None:
        with pytest.raises(NotFound):
            await backend.snapshot("app", "s1")
        assert list(await backend.snapshots("app")) == []
        assert await backend.volumes() == []

    async def test_snapshots_are_listed_oldest_first(self, backend: Snapshotter) -> None:
        await backend.create_root("app")
        for name in ("z", "a", "m", "b10", "b9"):
            await backend.snapshot("app", name)
        await backend.delete("app", "m")
        await backend.snapshot("app", "again")
        assert await self.names(backend, "app") == ["z", "a", "b10", "b9", "again"]

    async def test_deleting_a_snapshot_leaves_the_others(self, backend: Snapshotter) -> None:
        root = await self.planted(backend)
        states = []
        for number in range(3):
            (root / "number").write_bytes(b"%d" % number)
            states.append(tree((await backend.snapshot("app", f"s{number}")).path))
        await backend.delete("app", "s1")
        await backend.delete("app", "s1")
        await backend.delete("nobody", "s1")
        left = await backend.snapshots("app")
        assert [snapshot.name for snapshot in left] == ["s0", "s2"]
        assert [tree(snapshot.path) for snapshot in left] == [states[0], states[2]]
        assert tree(root) == states[2]

    async def test_a_name_may_be_used_again(self, backend: Snapshotter) -> None:
        root = await self.planted(backend)
        await backend.snapshot("app", "s1")
        await backend.delete("app", "s1")
        (root / "data" / "notes.txt").write_bytes(b"other line\n")
        assert not await backend.unchanged("app", "s1")
        assert tree((await backend.snapshot("app", "s1")).path) == tree(root)
        await backend.delete("app", "s1")
        other = await backend.create_root("other")
        (other / "x").write_bytes(b"y")
        await backend.snapshot("other", "s1")
        chunks = await self.sent(backend, "other", "s1")
        await backend.receive("app", "s1", again(*chunks), stream_format=backend.format)
        assert not await backend.unchanged("app", "s1")
        assert tree((await backend.snapshot("app", "s2")).path) == tree(root)

    async def test_deleting_a_root_leaves_its_snapshots(self, backend: Snapshotter) -> None:
        root = await self.planted(backend)
        before = tree(root)
        snapshot = await backend.snapshot("app", "s1")
        await backend.delete_root("app")
        await backend.delete_root("app")
        assert await backend.root("app") is None
        assert tree(snapshot.path) == before
        assert await backend.volumes() == ["app"]
        assert tree(await backend.create_root("app")) == {}

    async def test_a_root_is_set_aside_whole(self, backend: Snapshotter) -> None:
        await backend.set_aside("app", "nothing")
        assert list(await backend.snapshots("app")) == []
        root = await self.planted(backend)
        await backend.snapshot("app", "s1")
        alter(root)
        before = tree(root)
        with pytest.raises(Conflict):
            await backend.set_aside("app", "s1")
        assert tree(root) == before
        await backend.set_aside("app", "aside")
        assert await backend.root("app") is None
        assert await self.names(backend, "app") == ["s1", "aside"]
        assert tree((await backend.snapshots("app"))[1].path) == before
        assert tree(await backend.checkout("app", "aside")) == before

    async def test_a_checkout_is_independent(self, backend: Snapshotter) -> None:
        root = await self.planted(backend)
        snapshot = await backend.snapshot("app", "s1")
        before = tree(snapshot.path)
        with pytest.raises(Conflict):
            await backend.checkout("app", "s1")
        await backend.delete_root("app")
        with pytest.raises(NotFound):
            await backend.checkout("app", "s2")
        root = await backend.checkout("app", "s1")
        assert await backend.root("app") == root
        assert tree(root) == before
        alter(root)
        assert tree(snapshot.path) == before
        assert tree((await backend.snapshot("app", "s2")).path) == tree(root)

    async def test_unchanged_is_certain(self, backend: Snapshotter) -> None:
        root = await self.planted(backend)
        assert not await backend.unchanged("app", "s1")
        changes: list[Callable[[], object]] = [
            lambda: (root / "data" / "notes.txt").write_bytes(b"x"),
            (root / "data" / "added").touch,
            (root / "data" / "added").unlink,
            lambda: (root / "data" / "script").chmod(0o711),
            lambda: (root / "data" / "empty").rename(root / "data" / "void"),
            lambda: os.truncate(root / "data" / "big.db", 5),
        ]
        for number, change in enumerate(changes):
            await backend.snapshot("app", f"s{number}")
            assert await backend.unchanged("app", f"s{number}"), "nothing was written since"
            change()
            assert not await backend.unchanged("app", f"s{number}"), number
        await backend.snapshot("app", "last")
        assert not await backend.unchanged("app", "s0")
        assert await backend.unchanged("app", "last")
        await backend.delete_root("app")
        assert not await backend.unchanged("app", "last")

    async def test_links_are_kept_and_never_followed(self, backend: Snapshotter, tmp_path: Path) -> None:
        outside = tmp_path / "outside"
        outside.mkdir()
        (outside / "secret").write_bytes(b"what nobody may see")
        root = await backend.create_root("app")
        (root / "file").symlink_to(outside / "secret")
        (root / "folder").symlink_to(outside)
        snapshot = await backend.snapshot("app", "s1")
        assert (snapshot.path / "file").is_symlink()
        assert (snapshot.path / "folder").is_symlink()
        assert b"what nobody may see" not in b"".join(await self.sent(backend, "app", "s1"))
        await self.copied(backend, "s1")
        await backend.checkout("copy", "s1")
        for volume in ("app", "copy"):
            await backend.delete_root(volume)
            await backend.delete(volume, "s1")
        assert tree(outside) == {"secret": describe(outside / "secret")}

    @pytest.mark.parametrize("bad", BAD_NAMES, ids=repr)
    async def test_names_outside_the_rules_are_refused(self, backend: Snapshotter, bad: str) -> None:
        await self.planted(backend)
        await backend.snapshot("app", "s1")
        calls: list[Coroutine[Any, Any, object]] = [
            backend.create_root(bad),
            backend.root(bad),
            backend.delete_root(bad),
            backend.set_aside(bad, "s2"),
            backend.set_aside("app", bad),
            backend.snapshot(bad, "s2"),
            backend.snapshot("app", bad),
            backend.snapshots(bad),
            backend.delete(bad, "s1"),
            backend.delete("app", bad),
            self.sent(backend, "app", bad),
            self.sent(backend, "app", "s1", bad),
            backend.receive(bad, "s1", again(), stream_format=backend.format),
            backend.receive("app", bad, again(), stream_format=backend.format),
            backend.checkout(bad, "s1"),
            backend.unchanged("app", bad),
        ]
        for call in calls:
            with pytest.raises(InvalidInput):
                await call
        assert await backend.volumes() == ["app"]
        assert await self.names(backend, "app") == ["s1"]

    async def test_usage_is_of_a_real_disk(self, backend: Snapshotter) -> None:
        usage = await backend.usage()
        assert 0 <= usage.free <= usage.total
        assert usage.total > 0

    @requires("SupportsClone")
    async def test_a_clone_is_independent(self, backend: Snapshotter) -> None:
        assert isinstance(backend, SupportsClone)
        root = await self.planted(backend)
        before = tree(root)
        snapshot = await backend.snapshot("app", "s1")
        cloned = await backend.clone("app", "s1", "fork")
        assert await backend.root("fork") == cloned
        assert tree(cloned) == before
        alter(cloned)
        assert tree(root) == before == tree(snapshot.path)
        assert tree((await backend.snapshot("fork", "s1")).path) == tree(cloned)
        with pytest.raises(Conflict):
            await backend.clone("app", "s1", "fork")
        with pytest.raises(NotFound):
            await backend.clone("app", "s2", "third")

    @requires("SupportsLean")
    async def test_a_lean_stream_brings_the_same(self, backend: Snapshotter) -> None:
        assert isinstance(backend, SupportsLean)
        root = await self.planted(backend)
        await backend.snapshot("app", "s1")
        await self.copied(backend, "s1")
        alter(root)
        (root / "data" / "big.db").rename(root / "moved.db")
        with (root / "moved.db").open("r+b") as file:
            same = file.read(60_000)
            file.seek(0)
            file.write(same)
        altered = tree(root)
        await backend.snapshot("app", "s2")
        chunks = [chunk async for chunk in backend.send_lean("app", "s2", "s1")]
        assert max(map(len, chunks)) <= 1 << 20
        whole = await self.sent(backend, "app", "s2", "s1")
        assert sum(map(len, chunks)) <= sum(map(len, whole))
        made = await backend.receive("copy", "s2", again(*chunks), stream_format=backend.format, parent="s1")
        assert tree(made.path) == altered
        for name, parent in (("s2", "s3"), ("s3", "s1")):
            with pytest.raises(NotFound):
                await anext(aiter(backend.send_lean("app", name, parent)))

    async def test_random_histories_are_kept(self, backend: Snapshotter) -> None:
        from fractal.testing.chains import run_histories

        await run_histories(backend, self.histories)
