"""Volumes of the engine's that are none of the app's folders: shares in the network, and memory that services share."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Mapping

from fractal.api.app import AppRun, Mount, ServiceSpec
from fractal.api.context import Context
from fractal.api.errors import NotFound
from fractal_containers.engine import Engine
from fractal_containers.labels import run_labels, run_name
from fractal_containers.wanted import Attached


def attached(device: str, run: AppRun, service: ServiceSpec) -> tuple[Attached, ...]:
    """Those of a service. Services that name the same one share it."""
    return tuple(
        Attached(name=_name(device, run.key, mount), target=mount.target, read_only=mount.read_only)
        for mount in service.mounts
        if mount.engine
    )


def _name(device: str, key: str, mount: Mount) -> str:
    told = json.dumps(dict(mount.engine), sort_keys=True)
    mark = hashlib.blake2b(told.encode(), digest_size=8, person=b"fhs-volume").hexdigest()
    return f"fhs-{run_name(device, key)}-{mark}"


async def make(context: Context, engine: Engine, run: AppRun, service: ServiceSpec) -> None:
    """Make what a service names and is not there. The engine mounts it when a container with it starts."""
    for mount in service.mounts:
        if not mount.engine:
            continue
        name, what = _name(context.device, run.key, mount), f"{run.key}: volume {mount.target}"
        options = {key: text for key, text in mount.engine.items() if key != "volume"}
        await engine.create_volume(name, options, run_labels(context.device, run), what)


async def remove(engine: Engine, labels: Mapping[str, str], key: str) -> None:
    """Remove a run's, which no container has any more. What is on a share stays there."""
    for name in await engine.volumes(labels):
        with contextlib.suppress(NotFound):
            await engine.remove_volume(name, f"{key}: volume {name}")
