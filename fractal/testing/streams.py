"""The half of the snapshotter's contract that is about streams: sent, received, damaged, cut, foreign."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from pathlib import Path

import pytest

from fractal.api.errors import Conflict, Corrupt, FractalError, NotFound, NotSupported
from fractal.api.snapshot import Snapshotter
from fractal.testing.suite import Contract
from fractal.testing.trees import Tree, again, alter, nothing, plant, tree, undo

CHUNK = 1 << 20


class StreamContract(Contract[Snapshotter]):
    """Part of `fractal.testing.snapshot.SnapshotContract`, which is what an author subclasses."""

    async def planted(self, backend: Snapshotter, volume: str = "app") -> Path:
        """A root with `plant`'s tree."""
        root = await backend.create_root(volume)
        plant(root)
        return root

    async def sent(
        self, backend: Snapshotter, volume: str, name: str, parent: str | None = None
    ) -> list[bytes]:
        """A stream, kept."""
        return [chunk async for chunk in backend.send(volume, name, parent)]

    async def copied(
        self,
        backend: Snapshotter,
        name: str,
        parent: str | None = None,
        *,
        volume: str = "app",
        to: str = "copy",
    ) -> Tree:
        """Send a snapshot to another volume and give the tree that arrives there."""
        chunks = await self.sent(backend, volume, name, parent)
        made = await backend.receive(to, name, again(*chunks), stream_format=backend.format, parent=parent)
        assert (made.volume, made.name) == (to, name)
        return tree(made.path)

    async def names(self, backend: Snapshotter, volume: str) -> list[str]:
        """Names of a volume's snapshots as listed."""
        return [snapshot.name for snapshot in await backend.snapshots(volume)]

    async def test_what_it_sends_it_receives(self, backend: Snapshotter) -> None:
        assert backend.format in backend.receives

    async def test_two_names_of_one_file_stay_so(self, backend: Snapshotter) -> None:
        root = await backend.create_root("app")
        (root / "one").write_bytes(b"shared")
        (root / "two").hardlink_to(root / "one")
        (root / "alone").write_bytes(b"shared")
        await backend.snapshot("app", "s1")
        (root / "three").hardlink_to(root / "one")
        (root / "two").unlink()
        (root / "two").write_bytes(b"shared")
        await backend.snapshot("app", "s2")
        await self.copied(backend, "s1")
        await self.copied(backend, "s2", "s1")
        for volume, name, linked in (("copy", "s1", {"one", "two"}), ("copy", "s2", {"one", "three"})):
            restored = await backend.checkout(volume, name)
            with (restored / "one").open("r+b") as file:
                file.write(b"SHARED")
            found = {path.name for path in restored.iterdir() if path.read_bytes() == b"SHARED"}
            assert found == linked
            await backend.delete_root(volume)

    async def test_a_full_stream_brings_everything(self, backend: Snapshotter) -> None:
        root = await self.planted(backend)
        await backend.snapshot("app", "s1")
        assert await self.copied(backend, "s1") == tree(root)
        restored = await backend.checkout("copy", "s1")
        assert tree(restored) == tree(root)

    async def test_an_incremental_stream_brings_every_change(self, backend: Snapshotter) -> None:
        root = await self.planted(backend)
        states = {}
        changes: list[Callable[[Path], None]] = [nothing, alter, undo, nothing]
        for number, change in enumerate(changes):
            change(root)
            states[f"s{number}"] = tree(root)
            await backend.snapshot("app", f"s{number}")
            parent = f"s{number - 1}" if number else None
            assert await self.copied(backend, f"s{number}", parent) == states[f"s{number}"]
        received = await backend.snapshots("copy")
        assert {snapshot.name: tree(snapshot.path) for snapshot in received} == states

    async def test_a_stream_may_skip_snapshots(self, backend: Snapshotter) -> None:
        root = await self.planted(backend)
        await backend.snapshot("app", "s1")
        await self.copied(backend, "s1")
        alter(root)
        await backend.snapshot("app", "s2")
        (root / "more").write_bytes(b"more")
        await backend.snapshot("app", "s3")
        assert await self.copied(backend, "s3", "s1") == tree(root)

    async def test_only_the_change_is_sent(self, backend: Snapshotter) -> None:
        root = await backend.create_root("app")
        with (root / "big").open("wb") as file:
            for number in range(512):
                file.write(number.to_bytes(4, "big") * 4096)
        await backend.snapshot("app", "s1")
        with (root / "big").open("r+b") as file:
            file.seek(5 << 20)
            file.write(b"changed")
        await backend.snapshot("app", "s2")
        await backend.snapshot("app", "s3")
        full = sum(map(len, await self.sent(backend, "app", "s1")))
        assert full > 8 << 20
        assert sum(map(len, await self.sent(backend, "app", "s2", "s1"))) < full / 16
        assert sum(map(len, await self.sent(backend, "app", "s3", "s2"))) < full / 128

    async def test_chunks_are_bounded(self, backend: Snapshotter) -> None:
        root = await backend.create_root("app")
        (root / "big").write_bytes(os.urandom(5 << 20))
        await backend.snapshot("app", "s1")
        sizes = [len(chunk) for chunk in await self.sent(backend, "app", "s1")]
        assert max(sizes) <= CHUNK
        assert min(sizes) > 0

    async def test_a_chain_survives_a_move_and_back(self, backend: Snapshotter) -> None:
        await self.planted(backend)
        await backend.snapshot("app", "s1")
        await self.copied(backend, "s1", to="there")
        root = await backend.checkout("there", "s1")
        alter(root)
        await backend.snapshot("there", "s2")
        arrived = await self.copied(backend, "s2", "s1", volume="there", to="app")
        assert arrived == tree(root)
        await backend.delete_root("app")
        root = await backend.checkout("app", "s2")
        (root / "home").write_bytes(b"again")
        await backend.snapshot("app", "s3")
        assert await self.copied(backend, "s3", "s2", volume="app", to="there") == tree(root)

    async def test_what_was_received_outlives_its_parent(self, backend: Snapshotter) -> None:
        root = await self.planted(backend)
        await backend.snapshot("app", "s1")
        await self.copied(backend, "s1")
        alter(root)
        await backend.snapshot("app", "s2")
        state = await self.copied(backend, "s2", "s1")
        await backend.delete("copy", "s1")
        assert tree((await backend.snapshots("copy"))[0].path) == state

    async def test_a_damaged_stream_leaves_nothing(self, backend: Snapshotter) -> None:
        await self.planted(backend)
        await backend.snapshot("app", "s1")
        whole = b"".join(await self.sent(backend, "app", "s1"))
        flipped = bytearray(whole)
        flipped[len(whole) // 2] ^= 0x40
        damaged = [b"", whole[:1], whole[: len(whole) // 2], whole[:-1], bytes(flipped), whole[::-1]]
        for number, data in enumerate(damaged):
            cut = [data[at : at + 100_000] for at in range(0, len(data), 100_000)]
            with pytest.raises(Corrupt):
                await backend.receive("copy", f"bad{number}", again(*cut), stream_format=backend.format)
            assert list(await backend.snapshots("copy")) == [], number
        await self.copied(backend, "s1")

    async def test_a_stream_that_fails_leaves_nothing(self, backend: Snapshotter) -> None:
        class LineCutError(Exception):
            pass

        await self.planted(backend)
        await backend.snapshot("app", "s1")
        whole = b"".join(await self.sent(backend, "app", "s1"))

        async def failing() -> AsyncIterator[bytes]:
            yield whole[: len(whole) // 2]
            raise LineCutError

        with pytest.raises(LineCutError):
            await backend.receive("copy", "s1", failing(), stream_format=backend.format)
        assert list(await backend.snapshots("copy")) == []
        await self.copied(backend, "s1")

    async def test_a_cancelled_receive_leaves_nothing(self, backend: Snapshotter) -> None:
        await self.planted(backend)
        await backend.snapshot("app", "s1")
        whole = b"".join(await self.sent(backend, "app", "s1"))
        begun = asyncio.Event()

        async def endless() -> AsyncIterator[bytes]:
            yield whole[: len(whole) // 2]
            begun.set()
            await asyncio.Event().wait()

        receive = asyncio.create_task(backend.receive("copy", "s1", endless(), stream_format=backend.format))
        waiter = asyncio.create_task(begun.wait())
        await asyncio.wait([receive, waiter], timeout=30, return_when=asyncio.FIRST_COMPLETED)
        waiter.cancel()
        receive.cancel()
        await asyncio.wait([receive], timeout=30)
        assert receive.cancelled()
        assert list(await backend.snapshots("copy")) == []
        await self.copied(backend, "s1")

    async def test_a_stream_needs_its_own_parent(self, backend: Snapshotter) -> None:
        root = await self.planted(backend)
        await backend.snapshot("app", "s1")
        await self.copied(backend, "s1")
        alter(root)
        await backend.snapshot("app", "s2")
        other = await backend.create_root("other")
        (other / "stranger").write_bytes(b"?")
        await backend.snapshot("other", "s1")
        chunks = await self.sent(backend, "app", "s2", "s1")
        for volume, parent in (("other", "s1"), ("copy", None)):
            with pytest.raises(FractalError):
                await backend.receive(
                    volume, "s2", again(*chunks), stream_format=backend.format, parent=parent
                )
            assert "s2" not in await self.names(backend, volume)
        with pytest.raises(NotFound):
            await backend.receive("copy", "s2", again(*chunks), stream_format=backend.format, parent="s9")

    async def test_unknown_formats_are_refused(self, backend: Snapshotter) -> None:
        await self.planted(backend)
        await backend.snapshot("app", "s1")
        chunks = await self.sent(backend, "app", "s1")
        with pytest.raises(NotSupported):
            await backend.receive("copy", "s1", again(*chunks), stream_format="punched-cards/3")
        assert list(await backend.snapshots("copy")) == []

    async def test_receive_overwrites_nothing(self, backend: Snapshotter) -> None:
        root = await self.planted(backend)
        snapshot = await backend.snapshot("app", "s1")
        chunks = await self.sent(backend, "app", "s1")
        before = tree(root)
        with pytest.raises(Conflict):
            await backend.receive("app", "s1", again(*chunks), stream_format=backend.format)
        assert tree(snapshot.path) == before

    async def test_what_is_absent_is_not_sent(self, backend: Snapshotter) -> None:
        await self.planted(backend)
        await backend.snapshot("app", "s1")
        for volume, name, parent in (("app", "s2", None), ("nobody", "s1", None), ("app", "s1", "s0")):
            with pytest.raises(NotFound):
                await self.sent(backend, volume, name, parent)

    async def test_a_stream_may_be_left_early(self, backend: Snapshotter) -> None:
        root = await backend.create_root("app")
        (root / "big").write_bytes(os.urandom(5 << 20))
        await backend.snapshot("app", "s1")
        chunks = backend.send("app", "s1")
        await anext(chunks)
        assert isinstance(chunks, AsyncGenerator), "so that whoever leaves early can close it"
        await chunks.aclose()
        await backend.delete("app", "s1")
        assert list(await backend.snapshots("app")) == []
