"""Reproducible data for the archive's figures: what an app's volume and its changes look like to a snapshotter.

A volume is many small files (log-normal sizes, half of them JSON, half photographs or archives, which nothing compresses) and
a SQLite file that holds three times as much, as in the measurements that the goals come from. `zstd -3` about halves it. A tick is scattered pages of such a SQLite file, as copy-on-write file systems send them, and a few new small files.
"""

from __future__ import annotations

import random
import sqlite3  # noqa: TID253 - a script, not the product
import struct
import tarfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

PAGE = 4096
_LETTERS = "etaoinshrdlucmfwypvbgk"
_ROWS = 2_000
"""Rows written at a time."""


def make_volume(path: Path, size: int, seed: int) -> None:
    """A stream of `size` bytes: small files for a quarter of it, then a SQLite file."""
    chance = random.Random(seed)  # noqa: S311 - reproducible data, no secret
    words = _vocabulary(chance)
    database = path.with_suffix(".sqlite")
    _make_database(database, size * 3 // 4 + (1 << 20), chance, words)
    with path.open("wb") as file:
        with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as tar:
            while file.tell() < size // 4:
                _add_small_file(tar, chance, words)
        file.truncate(size // 4)
        file.seek(size // 4)
        with database.open("rb") as pages:
            while file.tell() < size:
                file.write(pages.read(1 << 20))
        file.truncate(size)
    database.unlink()


def make_tick(path: Path, size: int, seed: int) -> None:
    """Pages of a SQLite file, 4 to 16 KiB at a time, each with a small header of its own, and 40 small files."""
    chance = random.Random(seed)  # noqa: S311 - reproducible data, no secret
    words = _vocabulary(chance)
    database = path.with_suffix(".sqlite")
    _make_database(database, 3 * size, chance, words)
    content = database.read_bytes()
    database.unlink()
    with path.open("wb") as file:
        with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as tar:
            for _ in range(40):
                _add_small_file(tar, chance, words)
        while file.tell() < size:
            count = chance.choice((1, 2, 4))
            offset = chance.randrange(len(content) // PAGE - count) * PAGE
            file.write(struct.pack("<IHQ", count * PAGE + 32, 15, offset) + b"data/db.sqlite")
            file.write(content[offset : offset + count * PAGE])
        file.truncate(size)


def _vocabulary(chance: random.Random) -> list[str]:
    return [
        "".join(chance.choices(_LETTERS, weights=range(len(_LETTERS), 0, -1), k=chance.randint(2, 9)))
        for _ in range(4_000)
    ]


def _sentence(chance: random.Random, words: list[str], most: int) -> str:
    # Few words are frequent and most are rare, as in any text.
    picked = (words[int(len(words) * chance.random() ** 4)] for _ in range(chance.randint(2, most)))
    return " ".join(picked)


def _row(chance: random.Random, words: list[str]) -> str:
    return (
        f'{{"id": {chance.getrandbits(32)}, "name": "{_sentence(chance, words, 4)}", "price": {chance.random() * 1000:.2f}, '
        f'"updated": "2026-{chance.randint(1, 12):02}-{chance.randint(1, 28):02}T{chance.randint(0, 23):02}:'
        f'{chance.randint(0, 59):02}:{chance.randint(0, 59):02}", "etag": "{chance.getrandbits(32):08x}", '
        f'"note": "{_sentence(chance, words, 24)}"}}'
    )


def _add_small_file(tar: tarfile.TarFile, chance: random.Random, words: list[str]) -> None:
    size = min(int(chance.lognormvariate(9.5, 1.4)), 8 << 20)
    if chance.random() < 0.5:
        rows, length = [], 0
        while length < size:
            rows.append(_row(chance, words))
            length += len(rows[-1])
        content, kind = "\n".join(rows).encode()[:size], "json"
    else:
        content, kind = chance.randbytes(size), "jpg"
    entry = tarfile.TarInfo(f"data/{chance.getrandbits(16):04x}/{chance.getrandbits(32):08x}.{kind}")
    entry.size, entry.mtime = size, 1_750_000_000 + chance.getrandbits(24)
    tar.addfile(entry, BytesIO(content))


def _make_database(path: Path, size: int, chance: random.Random, words: list[str]) -> None:
    path.unlink(missing_ok=True)
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA journal_mode = OFF")
        db.execute("PRAGMA synchronous = OFF")
        db.execute("CREATE TABLE item (id INTEGER PRIMARY KEY, at REAL, digest BLOB, body TEXT)")
        db.execute("CREATE INDEX item_digest ON item (digest)")
        row: Callable[[], tuple[float, bytes, str]] = lambda: (  # noqa: E731 - read once, right here
            chance.random() * 1e9,
            chance.randbytes(chance.choice((8, 16, 32))),
            _row(chance, words),
        )
        while path.stat().st_size < size:
            db.executemany(
                "INSERT INTO item (at, digest, body) VALUES (?, ?, ?)", (row() for _ in range(_ROWS))
            )
            db.commit()
    db.close()
