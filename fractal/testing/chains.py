"""Random histories of a volume against a model in memory: every retained snapshot stays what it was, wherever it travels."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, TypeVar

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from fractal.api.snapshot import Snapshotter
from fractal.testing.trees import Tree, tree

T = TypeVar("T")

_LIMIT = 60.0
"""Seconds for one call of the backend."""
_paths = st.sampled_from(["a", "b", "d/a", "d/b", "d/e/f", "g/h"])
_contents = st.one_of(
    st.binary(max_size=40),
    st.builds(bytes.__mul__, st.binary(min_size=1, max_size=3), st.integers(0, 150_000)),
)


async def run_histories(backend: Snapshotter, count: int) -> None:
    """Run `count` random histories, each on volumes of its own, always the same ones."""
    loop = asyncio.get_running_loop()
    numbers = itertools.count()

    class Machine(ChainMachine):
        def __init__(self) -> None:
            super().__init__(backend, loop, next(numbers))

    options = settings(
        max_examples=count,
        stateful_step_count=20,
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )
    # Hypothesis is not asynchronous: it runs in a thread and hands each call back to this loop.
    await asyncio.to_thread(run_state_machine_as_test, Machine, settings=options)


class ChainMachine(RuleBasedStateMachine):
    """Writes into a root, snapshots it, sends chains to another volume, deletes, checks out; the model is `tree`'s result."""

    def __init__(self, backend: Snapshotter, loop: asyncio.AbstractEventLoop, number: int) -> None:
        super().__init__()
        self.backend = backend
        self.loop = loop
        self.here, self.there = f"here-{number}", f"there-{number}"
        self.kept: dict[str, Tree] = {}
        self.arrived: dict[str, Tree] = {}
        self.counter = itertools.count()
        self.root = self.call(backend.create_root(self.here))

    def call(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(_LIMIT)

    def target(self, path: str) -> Path | None:
        """Where to write, None if a file is in the way."""
        full = self.root / path
        for above in list(full.relative_to(self.root).parents)[-2::-1]:
            if (self.root / above).is_symlink() or (self.root / above).is_file():
                return None
        full.parent.mkdir(parents=True, exist_ok=True)
        return full

    @rule(path=_paths, content=_contents)
    def write(self, path: str, content: bytes) -> None:
        full = self.target(path)
        if full is not None and not full.is_dir():
            full.unlink(missing_ok=True) if full.is_symlink() else None
            full.write_bytes(content)

    @rule(path=_paths, offset=st.integers(0, 200_000), content=st.binary(min_size=1, max_size=20))
    def patch(self, path: str, offset: int, content: bytes) -> None:
        full = self.root / path
        if full.is_file() and not full.is_symlink():
            with full.open("r+b") as file:
                file.seek(offset)
                file.write(content)

    @rule(path=_paths, mode=st.sampled_from([0o600, 0o644, 0o755]))
    def change_mode(self, path: str, mode: int) -> None:
        full = self.root / path
        if full.is_file() and not full.is_symlink():
            full.chmod(mode)

    @rule(path=_paths, to=_paths)
    def link(self, path: str, to: str) -> None:
        full, source = self.target(path), self.root / to
        if full is not None and not full.exists() and not full.is_symlink() and source.is_file():
            if source.is_symlink():
                full.symlink_to("target")
            else:
                full.hardlink_to(source)

    @rule(path=_paths)
    def symlink(self, path: str) -> None:
        full = self.target(path)
        if full is not None and not full.exists() and not full.is_symlink():
            full.symlink_to("a")

    @rule(path=_paths)
    def remove(self, path: str) -> None:
        full = self.root / path
        if full.is_symlink() or full.is_file():
            full.unlink()
        elif full.is_dir() and not any(full.iterdir()):
            full.rmdir()

    @rule(path=_paths, to=_paths)
    def rename(self, path: str, to: str) -> None:
        source, full = self.root / path, self.target(to)
        if full is not None and source.is_file() and not full.exists() and not full.is_symlink():
            source.rename(full)

    @rule()
    def snapshot(self) -> None:
        name = f"s{next(self.counter)}"
        before = tree(self.root)
        made = self.call(self.backend.snapshot(self.here, name))
        assert tree(made.path) == before
        self.kept[name] = before

    @precondition(lambda self: self.kept)
    @rule(data=st.data())
    def send(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.kept)))
        parents = sorted(self.kept.keys() & self.arrived.keys())
        parent = data.draw(st.sampled_from([None, *parents]))
        if name in self.arrived:
            return
        self.call(self.travel(name, parent))
        self.arrived[name] = self.kept[name]

    async def travel(self, name: str, parent: str | None) -> None:
        stream = self.backend.send(self.here, name, parent)
        await self.backend.receive(self.there, name, stream, stream_format=self.backend.format, parent=parent)

    @precondition(lambda self: self.kept)
    @rule(data=st.data())
    def delete(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.kept)))
        self.call(self.backend.delete(self.here, name))
        del self.kept[name]

    @precondition(lambda self: self.kept)
    @rule(data=st.data())
    def restore(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.kept)))
        self.call(self.backend.delete_root(self.here))
        self.root = self.call(self.backend.checkout(self.here, name))
        assert tree(self.root) == self.kept[name]

    @rule()
    def set_aside(self) -> None:
        name, before = f"s{next(self.counter)}", tree(self.root)
        self.call(self.backend.set_aside(self.here, name))
        self.kept[name] = before
        self.root = self.call(self.backend.create_root(self.here))

    @invariant()
    def every_snapshot_is_what_it_was(self) -> None:
        for volume, model in ((self.here, self.kept), (self.there, self.arrived)):
            found = self.call(self.backend.snapshots(volume))
            assert {snapshot.name: tree(snapshot.path) for snapshot in found} == model

    def teardown(self) -> None:
        for volume in (self.here, self.there):
            self.call(self.backend.delete_root(volume))
            for snapshot in self.call(self.backend.snapshots(volume)):
                self.call(self.backend.delete(volume, snapshot.name))
