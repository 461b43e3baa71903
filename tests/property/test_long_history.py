"""A log of 100,000 entries: a checkpoint and the tail say what a replay says, and neither grows with what is over."""

from __future__ import annotations

import pytest

from fractal.core.entries import Answered, Challenged
from fractal.core.log import checkpoint_bytes, fold, state_from_checkpoint, state_hash
from fractal.core.model import GroupState
from fractal.testing.group import World

pytestmark = pytest.mark.timeout(1200)
MANY = 100_000
TAIL = 40


def test_a_checkpoint_and_the_tail_equal_a_replay_of_a_long_history() -> None:
    world = World.founded()
    world.join("shed", "ann")
    world.install()
    real = list(world.log)
    # Most of it is what a log's server, or somebody without a key, may put there; now and then a device says something.
    said = [f"noise {n}".encode() if n % 3 else real[n % len(real)] for n in range(MANY)]
    for raw in said[:1_000]:
        world.put(raw)
    early = len(checkpoint_bytes(world.state))
    for raw in said[1_000:]:
        world.put(raw)
    stated = world.state
    data = checkpoint_bytes(stated)
    tail: list[bytes] = []
    for n in range(TAIL):
        device = world.machines["shed"].id
        entry = Answered(seen=n) if n % 2 else Challenged(device=device)
        tail.append(world.seal("shed" if n % 2 else "attic", entry))
        world.put(tail[-1])
    replayed = GroupState()
    reader = world.reader("shed")
    for raw in [*real, *said, *tail]:
        replayed = fold(replayed, raw, reader)
    short = state_from_checkpoint(data, state_hash(stated))
    for raw in tail:
        short = fold(short, raw, reader)
    assert state_hash(short) == state_hash(replayed) == state_hash(world.state)
    assert replayed.position == len(real) + MANY + TAIL
    # What is kept, and so what a step of the fold costs, does not grow with the history.
    assert len(data) < early + 1_000 and len(replayed.skips) < 600 and len(replayed.recent) < 600
