"""Random file operations, real snapshots, a real store: every moment comes back on another device, also after a re-start."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path
from random import Random

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fractal.agent.notes import MemoryNotes
from fractal.api.context import Context
from fractal.archive.archive import AppKeyring, Archive
from fractal.builtin.copy.config import CopyConfig
from fractal.builtin.copy.snapshotter import open_copy
from fractal.builtin.directory import open_directory
from fractal.builtin.directory_config import DirectoryConfig
from fractal.core.model import Point
from fractal.crypto.keys import DeviceKeys, app_keypair
from fractal.testing.archive_world import APP, GROUP
from fractal.testing.context import real_context

NAMES = st.sampled_from(["a", "b", "c.db", "d/e", "d/f", "g/h/i"])
OPERATIONS = st.one_of(
    st.tuples(st.just("write"), NAMES, st.integers(0, 200_000)),
    st.tuples(st.just("patch"), NAMES, st.integers(0, 150_000)),
    st.tuples(st.just("delete"), NAMES, st.just(0)),
    st.tuples(st.just("rename"), NAMES, st.integers(0, 5)),
    st.tuples(st.just("link"), NAMES, st.integers(0, 5)),
    st.tuples(st.just("mode"), NAMES, st.sampled_from([0o600, 0o644, 0o755])),
    st.tuples(st.just("save"), st.just(""), st.just(0)),
)
Operation = tuple[str, str, int]
Tree = dict[str, tuple[int, str, bytes]]


def apply(root: Path, operation: Operation, seed: int) -> None:
    """One change as an app would make it; what cannot be done is not."""
    what, name, number = operation
    path = root / name
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if what == "write":
            path.write_bytes(Random(seed).randbytes(number))
        elif what == "patch":
            with path.open("r+b") as file:
                file.seek(number)
                file.write(b"patched %d" % seed)
        elif what == "delete":
            path.unlink()
        elif what == "rename":
            path.rename(root / f"renamed-{number}")
        elif what == "link":
            (root / f"link-{number}").symlink_to(name)
        elif what == "mode":
            path.chmod(number)
    except OSError:
        return


def tree(root: Path) -> Tree:
    """Everything below `root`: kind and mode, link target, contents."""
    found: Tree = {}
    for path in sorted(root.rglob("*")):
        mode = path.lstat().st_mode
        target = str(path.readlink()) if path.is_symlink() else ""
        data = path.read_bytes() if path.is_file() and not path.is_symlink() else b""
        found[str(path.relative_to(root))] = (0 if target else mode, target, data)
    return found


class Group:
    """Keys of two devices that share an app."""

    def __init__(self, context: Context) -> None:
        self.public, self.secret = app_keypair(context.entropy)
        self.keys = DeviceKeys.generate(context.entropy)

    def archive(self, context: Context, store: object, folder: Path, notes: MemoryNotes) -> Archive:
        return Archive(
            group=GROUP,
            app=APP,
            store=store,  # type: ignore[arg-type]  # a Store; spelled so that the import stays out of the signature
            keys=self.keys,
            app_keys=AppKeyring(generation=1, public=self.public, secrets={1: self.secret}),
            group_key=lambda _: (1, bytes(32)),
            sign_key_of=lambda _: self.keys.sign_public,
            clock=context.clock,
            entropy=context.entropy,
            workers=context.workers,
            spool=folder,
            notes=notes,
        )


def name_of(point: Point) -> str:
    return f"p-{point.epoch}-{point.number}"


async def run(operations: list[Operation], folder: Path, *, again: bool) -> None:
    async with (
        real_context(folder / "one") as one,
        real_context(folder / "two") as two,
        open_copy(one, CopyConfig(path=folder / "volumes-1")) as here,
        open_copy(two, CopyConfig(path=folder / "volumes-2")) as there,
        open_directory(one, DirectoryConfig(path=folder / "store")) as store,
    ):
        group, notes = Group(one), MemoryNotes()
        archive = group.archive(one, store, folder / "spool-1", notes)
        root = await here.create_root("v")
        moments: dict[Point, Tree] = {}
        last: Point | None = None
        for seed, operation in enumerate([*operations, ("save", "", 0)]):
            if operation[0] != "save":
                apply(root, operation, seed)
                continue
            name = name_of(Point(epoch=1, number=(last.number if last else 0) + 1))
            expected = tree(root)
            await here.snapshot("v", name)
            if again:
                archive = group.archive(one, store, folder / "spool-1", notes)
            record = await archive.write(
                1, snapshotter=here, volume="v", name=name, wall_ms=seed, parent=last, name_of=name_of
            )
            last = record.point
            moments[last] = expected
        other = group.archive(two, store, folder / "spool-2", MemoryNotes())
        points = sorted(moments, reverse=again)
        for point in points:
            snapshot = await other.restore(point, snapshotter=there, volume="w", name_of=name_of)
            assert tree(snapshot.path) == moments[point]
        assert (await other.verify(deep=True)).problems == ()
        assert await other.orphans() == []


@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(operations=st.lists(OPERATIONS, max_size=25), again=st.booleans())
def test_every_moment_comes_back(operations: list[Operation], again: bool) -> None:
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(run(operations, Path(folder), again=again))
