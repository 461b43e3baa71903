"""Archives written by every version so far still open. Never regenerate a file: add one for each new version."""

from __future__ import annotations

import base64
import json
import os
from pathlib import Path

import pytest

from fractal.core.chain import EMPTY
from fractal.core.model import Point, Timers
from fractal.testing.archive_world import APP, World

FOLDER = Path(__file__).parents[2] / "golden" / "archive"
ONE = {"a.txt": b"one\n", "b/c": b"the same\n" * 3000}
TWO = {"a.txt": b"two\n", "b/c": b"the same\n" * 3000, "empty": b""}


async def write(world: World) -> None:
    """What the golden store holds: two snapshots of Attic, then Kitchen takes over and adds one."""
    attic, kitchen = world.device("Attic"), world.device("Kitchen")
    await attic.epochs.create(APP, 1, Timers())
    await attic.epochs.create_base(APP, 1, EMPTY)
    one = await attic.save(1, "t-1", ONE, None)
    two = await attic.save(1, "t-2", TWO, one)
    await kitchen.fetch(two)
    await kitchen.epochs.create(APP, 2, Timers(proof=25_000, margin=4_000))
    await kitchen.epochs.create_base(APP, 2, two)
    await kitchen.save(2, "t-1", ONE, two)


def load(path: Path) -> dict[str, bytes]:
    return {key: base64.b64decode(data) for key, data in json.loads(path.read_text()).items()}


@pytest.mark.parametrize("path", sorted(FOLDER.glob("store-*.json")), ids=lambda p: p.stem)
async def test_an_archive_of_that_version_opens(world: World, path: Path) -> None:
    world.objects.update(load(path))
    attic, kitchen, shed = world.device("Attic"), world.device("Kitchen"), world.device("Shed")
    listed = (await shed.epochs.listing())[APP]
    assert [(r.owner, r.proof_ms, r.margin_ms) for r in listed.values()] == [
        (attic.keys.id, 12_000, 2_000),
        (kitchen.keys.id, 25_000, 4_000),
    ]
    bases = {epoch: base for epoch in listed if (base := await shed.epochs.base(APP, epoch)) is not None}
    assert bases == {1: EMPTY, 2: Point(epoch=1, number=2)}
    line = (await shed.archive.timeline()).main(bases, 2)
    assert [await shed.fetch(r.point) for r in line] == [ONE, TWO, ONE]
    assert (await shed.archive.verify(deep=True)).problems == ()


async def test_the_current_version_writes_the_golden_bytes(world: World) -> None:
    """Same keys, same randomness, same bytes: a change of the format cannot go unnoticed (zstd's own output aside)."""
    await write(world)
    path = FOLDER / "store-1.json"
    if os.environ.get("FRACTAL_WRITE_GOLDEN") and not path.exists():
        text = {key: base64.b64encode(data).decode() for key, data in sorted(world.objects.items())}
        path.write_text(json.dumps(text, indent=1) + "\n")
    golden = load(path)
    assert sorted(world.objects) == sorted(golden)
    assert {k: len(v) for k, v in world.objects.items()} == {k: len(v) for k, v in golden.items()}
    for key in golden:
        if "/epoch/" in key:
            assert world.objects[key] == golden[key]
