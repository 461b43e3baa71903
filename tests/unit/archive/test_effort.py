"""How thoroughly an object is compressed: by whether the store or the processor is what takes the time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from pathlib import Path
from random import Random

import pytest

from fractal.archive import spool
from fractal.archive.backup import seal_frames
from fractal.crypto.stream import ObjectReader, ObjectSeal
from fractal.testing.context import real_context

KEY, HEADER = bytes(32), {"of": "a test"}
SIZE = 1 << 20
LETTERS = "etaoinshrdlucmfwypvbgk"


def text(seed: int) -> bytes:
    """Rows of a table, which compress the better the more thoroughly it is done."""
    chance = Random(seed)
    words = ["".join(Random(n).choices(LETTERS, k=2 + n % 8)) for n in range(4096)]
    rows = []
    for number in range(SIZE // 64):
        note = " ".join(words[int(4096 * chance.random() ** 4)] for _ in range(8))
        rows.append(
            f'{{"id": {chance.getrandbits(32)}, "price": {chance.random():.2f}, "row": {number}, "note": "{note}"}}'
        )
    return "\n".join(rows).encode()[:SIZE]


FRAMES = [text(seed) for seed in range(12)]


async def frames() -> AsyncGenerator[list[bytes], None]:
    for frame in FRAMES:
        yield [frame]
        await asyncio.sleep(0)


def sealed_sizes(*, quick: bool) -> list[int]:
    seal = ObjectSeal.of(KEY, HEADER)
    return [sum(map(len, seal.frame(i, [frame], quick=quick)[0])) for i, frame in enumerate(FRAMES)]


async def written(folder: Path, *, large: bool, uploads: bool) -> int:
    """Bytes of the sealed frames; `uploads`: somebody takes what is written as it comes."""
    async with real_context(folder) as context:
        writer = spool.ObjectWriter(folder / "object")

        async def upload() -> None:
            async for _ in writer.segment(0, context.workers):
                pass

        uploading = asyncio.create_task(upload()) if uploads else None
        await seal_frames(frames(), ObjectSeal.of(KEY, HEADER), writer, context.workers, large=large)
        writer.end()
        if uploading is not None:
            await uploading
        whole = b"".join(writer.held) if writer.held is not None else (folder / "object" / "0").read_bytes()
        return opened(whole)


def opened(whole: bytes) -> int:
    """Sealed bytes before the trailer, of an object that opens and holds what was written."""
    place = 0

    def read(size: int) -> bytes:
        nonlocal place
        part = whole[place : place + size]
        place += len(part)
        return part

    reader = ObjectReader(KEY, HEADER, read)
    total = 0
    for frame in FRAMES:
        sealed = reader.next_sealed()
        assert sealed is not None
        assert reader.add(*reader.open(*sealed)) == frame
        total += len(sealed[1])
    assert reader.next_frame() is None
    return total


@pytest.fixture
def lag(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if segments were small: a few of these frames may wait."""
    monkeypatch.setattr(spool, "LAG", SIZE)
    monkeypatch.setattr(spool, "HOLD", 1 << 10)


HEADS = 21 * len(FRAMES)


@pytest.mark.usefixtures("lag")
async def test_a_full_is_quick_while_the_store_keeps_up(tmp_path: Path) -> None:
    assert await written(tmp_path, large=True, uploads=True) + HEADS == sum(sealed_sizes(quick=True))


@pytest.mark.usefixtures("lag")
async def test_what_the_store_cannot_take_as_fast_is_compressed_thoroughly(tmp_path: Path) -> None:
    quick, thorough = sealed_sizes(quick=True), sealed_sizes(quick=False)
    assert all(a > b for a, b in zip(quick, thorough, strict=True))
    # As many as fit into the lag, and those that were begun beside them.
    size = await written(tmp_path, large=True, uploads=False) + HEADS
    assert sum(thorough) < size <= sum(quick[:8]) + sum(thorough[8:])


async def test_what_is_small_is_always_compressed_thoroughly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spool, "HOLD", 8 * SIZE)
    assert await written(tmp_path, large=False, uploads=True) + HEADS == sum(sealed_sizes(quick=False))
