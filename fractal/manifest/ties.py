"""What ties an app to the device that it runs on. Pure."""

from __future__ import annotations

from fractal.api.app import AppSpec
from fractal.manifest.values import VISIBLE


def ties(spec: AppSpec) -> tuple[str, ...]:
    """What it was allowed to have of a device, for which another device cannot stand in."""
    return tuple(name for name in spec.allowed if not name.startswith(VISIBLE))
