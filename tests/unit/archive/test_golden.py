"""Archives written by every version so far still open. Never regenerate a file: add one for each new version."""

from __future__ import annotations

import base64
import json
import os
from pathlib import Path

import pytest

from fractal.core.chain import EMPTY
from fractal.core.model import Point, Timers
from fractal.core.retention import Keep
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


# --- merges and trims ---------------------------------------------------------------------------------------------------

THINNED = FOLDER / "thinned-1.json"
HOURS = [{"a.txt": b"%d\n" % n, "b/c": b"the same\n" * 3000, f"d{n % 3}": b"%d" % n * 500} for n in range(8)]


async def write_thinned(world: World) -> None:
    """What the golden store of merges and trims holds: eight half hours of Attic, thinned once; nothing collected."""
    attic = world.device("Attic")
    attic.keep = Keep(ticks=2, hourly=1, daily=1, weekly=1)
    await attic.epochs.create(APP, 1, Timers())
    await attic.epochs.create_base(APP, 1, EMPTY)
    last: Point | None = None
    for number, files in enumerate(HOURS):
        world.clock.now += 1800.0
        last = await attic.save(1, f"t-{number}", files, last)
    while (await attic.thin()).merged is not None:
        pass


async def test_a_thinned_archive_of_that_version_opens(world: World) -> None:
    world.objects.update(load(THINNED))
    world.device("Attic")
    shed = world.device("Shed")
    timeline = await shed.archive.timeline()
    assert timeline.trim is not None and timeline.trim.body.levels
    assert timeline.let_go(Point(epoch=1, number=2)) and timeline.gaps == ()
    assert not timeline.unread
    for point in timeline.points:
        shed.volumes.held.clear()
        assert await shed.fetch(point) == HOURS[point.number - 1]
    assert any(record.level for record in timeline.counting.values())
    assert (await shed.archive.verify(deep=True)).problems == ()


async def test_the_current_version_writes_the_golden_bytes_of_a_thinned_archive(world: World) -> None:
    await write_thinned(world)
    if os.environ.get("FRACTAL_WRITE_GOLDEN") and not THINNED.exists():
        text = {key: base64.b64encode(data).decode() for key, data in sorted(world.objects.items())}
        THINNED.write_text(json.dumps(text, indent=1) + "\n")
    golden = load(THINNED)
    # Hashes in records and trims follow what zstd wrote, so their bytes are not compared.
    assert {k: len(v) for k, v in world.objects.items()} == {k: len(v) for k, v in golden.items()}
