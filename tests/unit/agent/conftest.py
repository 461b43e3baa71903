"""Devices on one real log file, each with its own notes, as tests of membership use them."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from fractal.agent.journal import Journal
from fractal.agent.membership import group_addresses
from fractal.agent.notes import MemoryNotes, Notes
from fractal.api.context import Clock, Context, Entropy
from fractal.api.coordination import Coordinator
from fractal.builtin.sqlite import open_sqlite
from fractal.builtin.sqlite_config import SqliteConfig
from fractal.core.model import Role
from fractal.crypto.keys import DeviceKeys
from fractal.shell.clock import SystemClock
from fractal.shell.entropy import SystemEntropy
from fractal.shell.process import ProcessRun
from fractal.shell.workers import ThreadWorkers
from fractal.testing.group import World
from fractal.testing.journal_bench import APP, Bench


@dataclass
class Peer:
    """One device, as `fractal.agent.here.Here`."""

    name: str
    coordinator: Coordinator
    keys: DeviceKeys
    notes: Notes
    clock: Clock
    entropy: Entropy

    async def journal(self, group: str) -> Journal:
        """Its log of a group, read up to the head."""
        journal = Journal(
            group=group,
            address=group_addresses(self.notes)[group],
            coordinator=self.coordinator,
            keys=self.keys,
            notes=self.notes,
            clock=self.clock,
            entropy=self.entropy,
        )
        await journal.poll(0.0)
        return journal


MakePeer = Callable[[str], Awaitable[Peer]]


@pytest.fixture
def log_path(tmp_path: Path) -> Path:
    """The file that all peers of a test share."""
    return tmp_path / "log.sqlite"


@pytest.fixture
async def make_peer(tmp_path: Path, log_path: Path) -> AsyncIterator[MakePeer]:
    """Makes a device of a name, opened on the shared file."""
    async with AsyncExitStack() as stack:
        workers = await stack.enter_async_context(ThreadWorkers())

        async def make(name: str) -> Peer:
            keys = DeviceKeys.generate(SystemEntropy())
            context = Context(
                device=keys.id,
                state_dir=tmp_path,
                runtime_dir=tmp_path,
                logger=logging.getLogger("test"),
                clock=SystemClock(),
                entropy=SystemEntropy(),
                workers=workers,
                run=ProcessRun(),
            )
            log = await stack.enter_async_context(open_sqlite(context, SqliteConfig(path=str(log_path))))
            return Peer(name, log, keys, MemoryNotes(), SystemClock(), SystemEntropy())

        yield make


@pytest.fixture
def world() -> World:
    """Two members, and an app."""
    world = World.founded()
    world.join("kitchen", "bob", Role.ADMIN)
    world.install(APP)
    return world


@pytest.fixture
async def bench(world: World) -> Bench:
    """A journal on that world's log."""
    return Bench(world)
