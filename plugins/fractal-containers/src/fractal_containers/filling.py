"""An empty volume begins as what the image holds at its place, with its owners and modes, as an engine's own volumes do.

The engine fills such a volume for a container which never runs; from there it is copied. Nothing
of the image is unpacked by us, and no symbolic link of its is followed.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

from fractal.api.app import AppRun, ServiceSpec
from fractal.api.context import Context
from fractal.api.errors import BackendError
from fractal_containers.cgroup import RunCgroup
from fractal_containers.engine import Engine
from fractal_containers.labels import SERVICE, run_labels, run_name
from fractal_containers.wanted import Filling

COPYING = 900.0
"""Seconds after which copying is given up."""
HALF = "~filling"


async def fill(context: Context, engine: Engine, run: AppRun, service: ServiceSpec, image: str) -> None:
    """Fill those of the service's volumes that are empty. Raises BackendError."""
    for mount in service.mounts:
        if not mount.volume:
            continue  # it is as the device, or the engine, has it
        folder = run.folder(mount.volume)
        with os.scandir(folder) as entries:
            if any(entries):
                continue
        what = f"{run.key}: service {service.name}: filling {mount.volume}"
        async with filled(context, engine, run, image, mount.target, what) as source:
            if source is not None:
                await _copy(context, source, folder, what)


async def _copy(context: Context, source: Path, folder: Path, what: str) -> None:
    half = folder.with_name(folder.name + HALF)
    shutil.rmtree(half, ignore_errors=True)  # what a killed agent left
    try:
        await context.run(["cp", "-a", "--reflink=auto", "--", f"{source}/.", str(half)], timeout=COPYING)
        half.replace(folder)  # over an empty folder: all of it or nothing
    except OSError as error:
        raise BackendError(f"{what}: {folder}: {error.strerror}", retryable=True) from error
    finally:
        if half.exists():
            shutil.rmtree(half, ignore_errors=True)


@contextlib.asynccontextmanager
async def filled(
    context: Context, engine: Engine, run: AppRun, image: str, target: str, what: str
) -> AsyncIterator[Path | None]:
    """What the image has at `target`, in a folder of the engine's; None if it has nothing there."""
    await drop(context, engine, run.key)
    try:
        filling = Filling(
            name=_name(context, run.key),
            image=image,
            target=target,
            # No service, also if the image's own labels say that it is one.
            labels={**run_labels(context.device, run), SERVICE: ""},
            cgroup_parent=RunCgroup(run_name(context.device, run.key)).parent,
        )
        source = await engine.fill(filling, what)
        with os.scandir(source) as entries:
            empty = not any(entries)
        plain = source.stat().st_uid == source.stat().st_gid == 0 and source.stat().st_mode & 0o777 == 0o755
        yield None if empty and plain else source
    except OSError as error:
        raise BackendError(f"{what}: {error}; does the engine run on this device?", retryable=True) from error
    finally:
        await drop(context, engine, run.key)


def _name(context: Context, key: str) -> str:
    return f"fhs-fill-{run_name(context.device, key)}"


async def drop(context: Context, engine: Engine, key: str) -> None:
    """Remove what filling left in the engine, if anything."""
    await engine.drop(_name(context, key), f"{key}: filling")
