"""The contract suites on a backend as a device configures it: what `homeserver plugin check` runs.

Nothing that the device uses is touched. Every test opens the backend with folders of its own; where its settings have a
`path`, a throw-away one beside the configured path takes its place, so that the same file system is tested. A store without
a path and a snapshotter must be empty, and are emptied after each test.
"""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from fractal.api.backend import Backend
from fractal.api.errors import Conflict
from fractal.testing.context import real_context
from fractal.testing.suite import Contract, Outcome, broken, run_suites

Opener = Callable[[Path], AbstractAsyncContextManager[Any]]


def run_contract(kind: str, record: Backend[Any, Any], settings: Any) -> tuple[list[Outcome], str]:
    """Each test's outcome, and a note where the kind's suite cannot be run on this backend without its author's help.

    Must not be called from a running event loop.
    """
    suite = contract_of(kind, record, settings)
    if suite is None:
        return (
            [],
            f"no suite for a {kind} {record.name!r} here: its author runs fractal.testing with a fixture of its own",
        )
    with contextlib.redirect_stdout(sys.stderr):  # pytest's progress; stdout is for the report
        return run_suites({record.name: suite})[record.name], ""


def contract_of(kind: str, record: Backend[Any, Any], settings: Any) -> type[Contract[Any]] | None:
    """The finished suite for a backend as a device configures it; None where its author alone can run one."""
    declared = {"capabilities": record.capabilities}
    match kind, record.name:
        case "store", _:
            from fractal.testing.store import StoreContract

            return broken(StoreContract, _emptied(record, settings), **declared)
        case "snapshot", _:
            from fractal.testing.snapshot import SnapshotContract

            return broken(SnapshotContract, cleared(record, settings), **declared)
        case "coordination", _:
            from fractal.testing.coordination import CoordinationContract

            return broken(CoordinationContract, _log_bed(record, settings), **declared)
        case "runtime", "process":
            from fractal.testing.process_bed import ProcessContract, opened

            def open_(folder: Path) -> AbstractAsyncContextManager[Any]:
                return opened(folder, settings)

            return broken(ProcessContract, open_, settings=settings, **declared)
        case "transport", "direct":
            from fractal.testing.direct_bed import direct_bed
            from fractal.testing.transport import TransportContract

            return broken(TransportContract, direct_bed, **declared)
        case _:
            return record.contract(settings) if record.contract is not None else None


def _opened(record: Backend[Any, Any], settings: Any) -> Opener:
    @asynccontextmanager
    async def opened(folder: Path) -> AsyncIterator[Any]:
        with elsewhere(settings) as own:
            async with real_context(folder) as context, record.open(context, own) as backend:
                yield backend

    return opened


def cleared(record: Backend[Any, Any], settings: Any) -> Opener:
    """A snapshotter whose subvolumes and mounts, which no `rmtree` can remove, are gone when it is closed."""

    @asynccontextmanager
    async def opened(folder: Path) -> AsyncIterator[Any]:
        try:
            async with _opened(record, settings)(folder) as snapshotter:
                if found := await snapshotter.volumes():
                    raise Conflict(
                        f"the place is not empty (it has volume {found[0]}): the check needs an empty one"
                    )
                try:
                    yield snapshotter
                finally:
                    for volume in await snapshotter.volumes():
                        await snapshotter.delete_root(volume)
                        for snapshot in await snapshotter.snapshots(volume):
                            await snapshotter.delete(volume, snapshot.name)
        finally:
            _unmount_below(folder)

    return opened


def _unmount_below(folder: Path) -> None:
    """What the backend mounted below its own folder; a device's agent would leave it mounted."""
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    targets = [line.split(" ")[4] for line in lines]
    for target in sorted((t for t in targets if t.startswith(f"{folder.resolve()}/")), reverse=True):
        subprocess.run(["umount", target], check=True, timeout=60)


def _emptied(record: Backend[Any, Any], settings: Any) -> Opener:
    @asynccontextmanager
    async def opened(folder: Path) -> AsyncIterator[Any]:
        async with _opened(record, settings)(folder) as store:
            async for found in store.list(""):
                raise Conflict(f"the store is not empty (it has {found.key}): the check needs an empty one")
            try:
                yield store
            finally:
                for key in [found.key async for found in store.list("")]:
                    await store.delete(key)

    return opened


def _log_bed(record: Backend[Any, Any], settings: Any) -> Opener:
    from fractal.testing.coordination_parts import LogBed

    @asynccontextmanager
    async def opened(folder: Path) -> AsyncIterator[LogBed]:
        with elsewhere(_shared(record, settings, folder)) as own:

            @asynccontextmanager
            async def device(name: str) -> AsyncIterator[Any]:
                async with (
                    real_context(folder / name, device=name) as context,
                    record.open(context, own) as log,
                ):
                    yield log

            yield LogBed(open=device)

    return opened


def _shared(record: Backend[Any, Any], settings: Any, folder: Path) -> Any:
    """The builtins that keep a log per agent unless told otherwise: one log for all devices of a bed."""
    if record.name == "memory" and hasattr(settings, "hub"):
        from fractal.builtin.memory_log import MemoryHub

        return replace(settings, hub=settings.hub or MemoryHub())
    if record.name == "sqlite" and not settings.path:
        return replace(settings, path=str(folder / "log.sqlite"))
    return settings


@contextlib.contextmanager
def elsewhere(settings: Any) -> Iterator[Any]:
    """The settings with `path`, if they have one, in a fresh folder beside the configured place; removed at the end."""
    path = getattr(settings, "path", None)
    if not isinstance(path, str | Path) or not str(path):
        yield settings
        return
    place = Path(path)
    folder = Path(tempfile.mkdtemp(prefix=f".{place.name}-check-", dir=place.parent))
    try:
        own = folder / place.name
        yield replace(settings, path=str(own) if isinstance(path, str) else own)
    finally:
        shutil.rmtree(folder)
