"""Whether creating an object in the store is a lock: two processes race for the same names, the files tell who won.

Neither process is an agent, and no agent is asked: each opens the store as an agent does, and creates the name that is
called out to both at once. Who got it, and whose bytes stand, is judged by the file in the store's folder.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path

from fractal.api.errors import Conflict
from fractal.api.store_files import OBJECTS, object_names
from fractal.builtin.directory import open_directory
from fractal.builtin.directory_config import DirectoryConfig
from fractal.shell.context import real_context

FOLDER = "race"
ROUNDS = 40
"""Names that are raced for."""
TIMEOUT = 90.0
"""Seconds for all of them."""


def race(store: Path, environment: Mapping[str, str]) -> list[str]:
    """Race in the store of this folder; what was wrong, in words."""
    racers = [
        subprocess.Popen(
            [sys.executable, "-m", "fractal.demo.race", str(store), name],
            env=dict(environment),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for name in ("first", "second")
    ]
    watchdog = threading.Timer(TIMEOUT, _kill, [racers])
    watchdog.start()
    try:
        faults = []
        for _ in range(ROUNDS):
            key = f"{FOLDER}/{os.urandom(8).hex()}"
            answers = _round(racers, key)
            faults += _judge(store, key, answers)
            if "" in answers:
                break
        return faults
    finally:
        watchdog.cancel()
        _kill(racers)
        for racer in racers:
            racer.communicate()
        with contextlib.suppress(OSError):  # not there, or not empty: then the faults say more
            (store / OBJECTS / FOLDER).rmdir()


def _kill(racers: list[subprocess.Popen[str]]) -> None:
    for racer in racers:
        racer.kill()


def _round(racers: list[subprocess.Popen[str]], key: str) -> list[str]:
    """What each racer says of one name: `got`, `lost`, or nothing if it ended."""
    answers = []
    for racer in racers:
        assert racer.stdin is not None
        try:
            racer.stdin.write(key + "\n")
            racer.stdin.flush()
        except OSError:  # it ended: its silence is the answer
            continue
    for racer in racers:
        assert racer.stdout is not None
        answers.append(racer.stdout.readline().strip())
    return answers


def _judge(store: Path, key: str, answers: list[str]) -> list[str]:
    folders, name = object_names(key.split("/"))
    path = store.joinpath(OBJECTS, *folders, name)
    try:
        stands = path.read_text()
    except FileNotFoundError:
        return [f"{key}: nothing stands in the folder; the racers said {answers}"]
    path.unlink()
    if sorted(answers) != ["got", "lost"]:
        return [f"{key}: the racers said {answers}"]
    winner = ("first", "second")[answers.index("got")]
    return [] if stands == winner else [f"{key}: {winner} got it, but {stands!r} stands in the folder"]


async def _racer(store: Path, name: str) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        async with (
            real_context(Path(scratch)) as context,
            open_directory(context, DirectoryConfig(path=store)) as opened,
        ):
            while key := sys.stdin.readline().strip():  # nothing else goes on in this process
                try:
                    await opened.put_new(key, name.encode())
                except Conflict:
                    print("lost", flush=True)
                else:
                    print("got", flush=True)


if __name__ == "__main__":
    asyncio.run(_racer(Path(sys.argv[1]), sys.argv[2]))
