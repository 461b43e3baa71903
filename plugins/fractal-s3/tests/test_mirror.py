"""A whole agent whose app has its archive in a folder and a mirror on a real server, or the other way round."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from random import Random
from typing import Any, Protocol

import pytest
from fractal_s3.testing import ACCESS_KEY, SECRET_KEY, S3Server
from fractal_s3.testing_line import Fault, Proxy, proxy

from fractal.testing.agents import Bed, bed

MIB = 1 << 20
Held = dict[str, bytes]


class Side(Protocol):
    """One of the two stores, seen behind the agent's back."""

    name: str

    def everything(self) -> Held:
        """All that lies in it, by the names that both kinds of store give their objects."""

    def spoil(self, key: str, data: bytes) -> None:
        """Have other bytes under a name."""

    def drop(self, key: str) -> None:
        """Lose an object."""


@dataclass
class Folder:
    """The bed's own store."""

    top: Path
    name: str = "Shelf"

    def everything(self) -> Held:
        """As `Side.everything`."""
        files = [path for path in (self.top / "objects").rglob("*") if path.is_file()]
        return {str(path.relative_to(self.top)): path.read_bytes() for path in files}

    def spoil(self, key: str, data: bytes) -> None:
        """As `Side.spoil`: a file of its own, as the old one may have further names."""
        self.drop(key)
        (self.top / key).write_bytes(data)

    def drop(self, key: str) -> None:
        """As `Side.drop`."""
        (self.top / key).unlink()


@dataclass
class Bucket:
    """A part of a bucket."""

    server: S3Server
    bucket: str
    name: str = "Rented"
    prefix: str = "home/"

    @cached_property
    def client(self) -> Any:
        """The library's own."""
        return self.server.client()

    def everything(self) -> Held:
        """As `Side.everything`."""
        pages = self.client.get_paginator("list_objects_v2").paginate(
            Bucket=self.bucket, Prefix=f"{self.prefix}objects/"
        )
        keys = [entry["Key"] for page in pages for entry in page.get("Contents", [])]
        return {
            key.removeprefix(self.prefix): self.client.get_object(Bucket=self.bucket, Key=key)["Body"].read()
            for key in keys
        }

    def spoil(self, key: str, data: bytes) -> None:
        """As `Side.spoil`."""
        self.client.put_object(Bucket=self.bucket, Key=self.prefix + key, Body=data)

    def drop(self, key: str) -> None:
        """As `Side.drop`."""
        self.client.delete_object(Bucket=self.bucket, Key=self.prefix + key)


@dataclass
class Pair:
    """An agent with an app, the app's store and its mirror; which of them is on the server is the test's parameter."""

    bed: Bed
    server: S3Server
    line: Proxy
    """Through which the agent talks to it."""
    arbiter: Side
    mirror: Side
    moments: dict[str, str] = field(default_factory=dict)
    """What the app's file held, by moment."""

    async def save(self, word: str, size: int = 0) -> None:
        """Take a snapshot with this word in it, and so many bytes that nothing makes smaller."""
        data = await self.bed.job("Attic").data.root() / "data"
        (data / "word").write_text(word)
        if size:
            (data / "noise").write_bytes(Random(word).randbytes(size))
        taken = await self.bed.call("Attic", "snapshot.create", app="test", wait_s=60)
        assert taken["done"], self.bed.job("Attic").saver.problem
        self.moments[str(taken["moment"])] = word

    async def have_mirrored(self) -> None:
        """From now on."""
        await self.bed.call("Attic", "app.policy", app="test", mirrors=[self.mirror.name])

    def lag(self) -> dict[str, Any]:
        """What status says of the mirror."""
        (app,) = self.bed.at("Attic").status()["apps"]
        return next((dict(m) for m in app["mirrors"] if m["store"] == self.mirror.name), {})

    async def level(self) -> Held:
        """Wait until nothing is lacking; what both have."""
        told = {"store": self.mirror.name, "behind": 0, "since_s": None, "problem": ""}
        await self.bed.until(lambda: self.lag() == told)
        ours, theirs = await self.held(self.arbiter), await self.held(self.mirror)
        assert {key for key in ours if "/epoch/" in key} and not any("/epoch/" in key for key in theirs)
        assert archive(theirs) == archive(ours)
        return ours

    async def held(self, side: Side) -> Held:
        """What is in one of the stores; the agent goes on meanwhile."""
        return await asyncio.to_thread(side.everything)

    async def lose_segments(self) -> None:
        """All that the arbiter has."""
        for key in segments(await self.held(self.arbiter)):
            await asyncio.to_thread(self.arbiter.drop, key)

    async def forget(self) -> None:
        """Leave no snapshot on the device: what is opened has to be brought."""
        job, snapshotter = self.bed.job("Attic"), self.bed.agents["Attic"].snapshotter
        for snapshot in await snapshotter.snapshots(job.data.volume):
            await snapshotter.delete(job.data.volume, snapshot.name)

    async def words(self) -> dict[str, str]:
        """What every moment holds, brought anew."""
        await self.forget()
        found = {}
        for moment in self.moments:
            opened = await self.bed.call("Attic", "snapshot.open", app="test", at=moment)
            found[moment] = (Path(opened["path"]) / "data" / "word").read_text()
        return found


def archive(held: Held) -> Held:
    """Segments and records, of which a mirror has the same."""
    return {key: data for key, data in held.items() if "/object/" in key or "/record/" in key}


def segments(held: Held) -> list[str]:
    """Their names, in an order that has nothing to do with time."""
    return sorted(key for key in held if "/object/" in key)


def records(held: Held) -> list[str]:
    """Their names, oldest first."""
    return sorted(key for key in held if "/record/" in key)


@asynccontextmanager
async def paired(folder: Path, server: S3Server, bucket: str, *, arbiter: str) -> AsyncIterator[Pair]:
    """The agent `Attic`, and its app in the store of that name."""
    async with proxy(server.port) as line, bed(folder) as made:
        await made.start("Attic")
        await made.found("Attic")
        shelf, rented = Folder(folder / "shelf"), Bucket(server, bucket)
        where = {"endpoint": f"http://127.0.0.1:{line.port}", "bucket": bucket, "prefix": rented.prefix}
        await made.call("Attic", "store.add", name=rented.name, backend="s3", config=where)
        await made.install("Attic", interval_s=3600, store=arbiter)
        sides: dict[str, Side] = {side.name: side for side in (shelf, rented)}
        first = sides.pop(arbiter)
        (second,) = sides.values()
        yield Pair(made, server, line, first, second)


@pytest.fixture(params=["folder, ceph", "folder, rclone", "ceph, folder"])
async def pair(
    request: pytest.FixtureRequest,
    bucket: Callable[[S3Server], str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> AsyncIterator[Pair]:
    """The app's store and the mirror. rclone's server, which fences not, is good enough for a mirror."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", ACCESS_KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET_KEY)
    first, second = request.param.split(", ")
    server: S3Server = request.getfixturevalue(second if first == "folder" else first)
    arbiter = "Shelf" if first == "folder" else "Rented"
    async with paired(tmp_path, server, bucket(server), arbiter=arbiter) as made:
        yield made


async def test_a_mirror_that_comes_later_is_filled_and_gives_back_what_the_store_lost(pair: Pair) -> None:
    await pair.save("one")
    await pair.save("two", 9 * MIB)  # more than one part of what is sent at once
    await pair.save("three")
    await pair.have_mirrored()
    await pair.save("four", 100_000)
    before = await pair.level()
    assert len(records(before)) >= 4

    # One of each kind is lost, and one has other bytes.
    lost, rotten, *_ = segments(before)
    _, missing, damaged, *_ = records(before)
    pair.arbiter.drop(lost)
    pair.arbiter.spoil(rotten, os.urandom(len(before[rotten])))
    pair.arbiter.drop(missing)
    pair.arbiter.spoil(damaged, b"no record")
    assert await pair.words() == pair.moments
    report = await pair.bed.call("Attic", "snapshot.verify", app="test", deep=True)
    assert len(report["problems"]) == 4
    assert all(f"store {pair.mirror.name} has it" in problem["what"] for problem in report["problems"])
    done = await pair.bed.call("Attic", "snapshot.repair", app="test", deep=True)
    assert {(m["store"], m["source"]) for m in done["mended"]} == {(pair.arbiter.name, pair.mirror.name)}
    assert (len(done["mended"]), done["left"]) == (4, [])
    assert await pair.held(pair.arbiter) == before

    # What rots in the mirror comes back the same way.
    pair.mirror.spoil(rotten, os.urandom(len(before[rotten])))
    done = await pair.bed.call("Attic", "snapshot.repair", app="test", deep=True)
    assert [(m["store"], m["source"]) for m in done["mended"]] == [(pair.mirror.name, pair.arbiter.name)]
    assert (await pair.bed.call("Attic", "snapshot.repair", app="test", deep=True))["plan"] == []
    assert archive(await pair.held(pair.mirror)) == archive(before)


async def test_an_app_goes_back_to_a_moment_of_which_only_the_mirror_has_the_bytes(pair: Pair) -> None:
    await pair.have_mirrored()
    for word in ("one", "two", "three"):
        await pair.save(word, 50_000)
    before = await pair.level()
    await pair.lose_segments()
    assert await pair.words() == pair.moments
    await pair.forget()
    first = next(iter(pair.moments))
    assert (await pair.bed.call("Attic", "app.restore", app="test", at=first, wait_s=60))["done"]
    root = await pair.bed.job("Attic").data.root()
    assert (root / "data" / "word").read_text() == "one"
    # Upkeep puts all of it back without being asked.
    care = pair.bed.job("Attic").care
    care._note(verified_ms=0)
    await care.look()
    now = await pair.held(pair.arbiter)
    assert {key: now.get(key) for key in archive(before)} == archive(before)


async def test_a_server_that_is_killed_in_between_and_comes_back_leaves_both_level(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With half of a segment sent: the first that the mirror gets, or one of a snapshot that is being stored."""
    monkeypatch.setattr("fractal.agent.mirrors.AGAIN", 0.2)
    killed = asyncio.Event()

    def kill() -> None:
        pair.server.interrupt()
        killed.set()

    for number in range(3):
        await pair.save(f"before {number}", 3 * MIB)
    pair.line.midway = kill
    pair.line.arrange(Fault.MIDWAY, "PUT", "/object/")
    await pair.have_mirrored()
    saving = asyncio.create_task(pair.save("meanwhile", 3 * MIB))
    try:
        await asyncio.wait_for(killed.wait(), 60)
        if pair.arbiter.name == "Shelf":
            await saving  # a mirror that is away delays no snapshot
            await pair.bed.until(lambda: pair.lag()["problem"])
            assert pair.lag()["behind"] >= 3
        else:
            await pair.bed.until(lambda: pair.bed.job("Attic").saver.problem)
    finally:
        if killed.is_set():
            await asyncio.to_thread(pair.server.resume)
    await saving
    await pair.level()
    await pair.lose_segments()
    assert await pair.words() == pair.moments
