"""Run by a test: does what a device does with a volume, killed before and after every step that changes the file system.

    python killed_everywhere.py STATE BTRFS-FOLDER STREAMS-FOLDER

Each time in a process of its own that a single-threaded one forks. Prints the step at which each was killed.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

from fractal_btrfs import ioctls
from fractal_btrfs.config import BtrfsConfig
from fractal_btrfs.snapshotter import BtrfsSnapshotter, open_btrfs

from fractal.streams.replay import Receiver
from fractal.testing.context import real_context
from fractal.testing.trees import again, tree

STEPS: list[tuple[Any, str]] = [
    *((ioctls, name) for name in ("create", "snapshot", "destroy", "set_read_only", "set_received")),
    (ioctls, "sync_file_system"),
    (Receiver, "feed"),
    (Receiver, "finish"),
    (Path, "rename"),
    (os, "fsync"),
]


class Killer:
    """Kills this process at the n-th place; each step has one before and one after it."""

    def __init__(self, place: int, told: int) -> None:
        self.left = place
        self.told = told

    def here(self, what: str) -> None:
        """A place."""
        self.left -= 1
        if self.left == 0:
            os.write(self.told, what.encode())
            os.kill(os.getpid(), signal.SIGKILL)

    def around(self, owner: Any, name: str) -> None:
        """Make places of a step."""
        step: Callable[..., Any] = getattr(owner, name)
        what = f"{owner.__name__.rpartition('.')[2]}.{name}"

        def killed(*given: Any, **named: Any) -> Any:
            self.here(f"before {what}")
            result = step(*given, **named)
            self.here(f"after {what}")
            return result

        setattr(owner, name, killed)


async def work(opened: BtrfsSnapshotter, streams: dict[str, bytes]) -> None:
    """As a standby that becomes the owner, restores, and gives up what it has; what was done already is left out."""
    held = {s.name for s in await opened.snapshots("app")}
    for name, parent in (("s1", None), ("s2", "s1")):
        if name not in held and "s3" not in held:
            await opened.receive(
                "app", name, again(streams[name]), stream_format=opened.format, parent=parent
            )
    if "aside" not in held:
        if await opened.root("app") is None:
            await opened.checkout("app", "s2")
        await opened.set_aside("app", "aside")
    if await opened.root("app") is None:
        await opened.checkout("app", "s1")
    if "s3" not in held:
        await opened.snapshot("app", "s3")
    await opened.delete("app", "aside")


async def check(opened: BtrfsSnapshotter, trees: dict[str, Any]) -> None:
    """Whatever is there is whole."""
    for snapshot in await opened.snapshots("app"):
        assert tree(snapshot.path) == trees[snapshot.name], snapshot.name
        try:
            (snapshot.path / "new").touch()
        except OSError:
            continue
        raise AssertionError(f"{snapshot.name} can be written to")
    root = await opened.root("app")
    assert root is None or tree(root) in (trees["s1"], trees["s2"])
    left = [p.name for p in (opened._volumes.folder / "app").glob(".new-*")]
    assert left == [], left


async def once(state: Path, place: Path, what: Callable[[BtrfsSnapshotter], Any]) -> None:
    """Open it, do one thing."""
    async with real_context(state) as context, open_btrfs(context, BtrfsConfig(path=place)) as opened:
        await what(opened)


def main() -> None:
    """See above."""
    state, top, folder = map(Path, sys.argv[1:])
    streams = {name: (folder / name).read_bytes() for name in ("s1", "s2")}
    expected = {name: tree(folder / f"{name}-tree") for name in ("s1", "s2")}
    trees = {**expected, "aside": expected["s2"], "s3": expected["s1"]}
    for number in count(1):
        place = top / f"{number}"
        place.mkdir()
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            killer = Killer(number, writer)
            for owner, name in STEPS:
                killer.around(owner, name)
            asyncio.run(once(state / f"{number}", place, lambda opened: work(opened, streams)))
            os._exit(0)
        os.close(writer)
        _, status = os.waitpid(child, 0)
        where = os.read(reader, 100).decode()
        os.close(reader)
        if not os.WIFSIGNALED(status):
            assert os.waitstatus_to_exitcode(status) == 0
            break
        asyncio.run(once(state / f"{number}", place, lambda opened: check(opened, trees)))
        asyncio.run(once(state / f"{number}", place, lambda opened: work(opened, streams)))
        asyncio.run(once(state / f"{number}", place, lambda opened: check(opened, trees)))
        print(json.dumps(where), flush=True)


if __name__ == "__main__":
    main()
