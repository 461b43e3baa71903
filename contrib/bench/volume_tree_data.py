"""A volume as files, and what an app does to it between two snapshots: what `archive_real.py` measures with.

Small files (log-normal sizes, half of them JSON, half what nothing compresses) and three SQLite files. A tick writes pages of 4, 8
and 16 KiB at random places of these, brings 40 small files and deletes 20. Run as a program, it makes a tree: FOLDER MB.
"""

from __future__ import annotations

import os
import random
import sys
from pathlib import Path

from volume_data import _make_database, _row, _vocabulary

PAGE = 4096
SHARES = (0.44, 0.22, 0.08)
"""Of the volume's bytes, for each SQLite file; small files have the rest."""
FOLDERS = 200


def make_tree(top: Path, size: int, seed: int) -> int:
    """Make the tree of about `size` bytes in an empty folder; how many small files it has."""
    chance = random.Random(seed)  # noqa: S311 - reproducible data, no secret
    words = _vocabulary(chance)
    left, count = int(size * (1 - sum(SHARES))), 0
    while left > 0:
        left -= _small(top / f"small/{count % FOLDERS:03}", count, chance, words)
        count += 1
    for number, share in enumerate(SHARES):
        _make_database(top / f"db{number}.sqlite", int(size * share), chance, words)
    return count


def change_tree(top: Path, written: int, seed: int) -> None:
    """One tick: `written` bytes of pages, each with other contents than before, and some small files; all on the disk."""
    chance = random.Random(seed)  # noqa: S311 - reproducible data, no secret
    words = _vocabulary(chance)
    files = [os.open(top / f"db{number}.sqlite", os.O_RDWR) for number in range(len(SHARES))]
    sizes = [os.fstat(file).st_size // PAGE for file in files]
    try:
        while written > 0:
            pages = chance.choice((1, 2, 4))
            (which,) = chance.choices(range(len(files)), weights=sizes)
            source, target = (chance.randrange(1, sizes[which] - pages) * PAGE for _ in range(2))
            content = bytearray(os.pread(files[which], pages * PAGE, source))
            # Not the same page elsewhere: a row or so of each is new.
            for page in range(pages):
                row = _row(chance, words).encode()[:400]
                at = page * PAGE + chance.randrange(PAGE - len(row))
                content[at : at + len(row)] = row
            os.pwrite(files[which], content, target)
            written -= len(content)
    finally:
        for file in files:
            os.fsync(file)
            os.close(file)
    for number in range(40):
        _small(top / f"small/{chance.randrange(FOLDERS):03}", 10**6 * (seed + 1) + number, chance, words)
    for _ in range(20):
        folder = top / f"small/{chance.randrange(FOLDERS):03}"
        if there := sorted(folder.iterdir()):
            chance.choice(there).unlink()


def _small(folder: Path, number: int, chance: random.Random, words: list[str]) -> int:
    size = min(int(chance.lognormvariate(9.35, 1.4)), 8 << 20)
    folder.mkdir(parents=True, exist_ok=True)
    if chance.random() < 0.5:
        rows, length = [], 0
        while length < size:
            rows.append(_row(chance, words))
            length += len(rows[-1])
        (folder / f"{number}.json").write_bytes("\n".join(rows).encode()[:size])
    else:
        (folder / f"{number}.jpg").write_bytes(chance.randbytes(size))
    return size


if __name__ == "__main__":
    print(make_tree(Path(sys.argv[1]), int(sys.argv[2]) << 20, 1))
