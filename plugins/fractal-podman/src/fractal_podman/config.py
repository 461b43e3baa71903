"""Settings of the `podman` runtime."""

from __future__ import annotations

from dataclasses import dataclass, field

from fractal_containers.config import EngineConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class PodmanConfig(EngineConfig):
    """`[runtime.podman]`."""

    socket: str = field(
        default="/run/podman/podman.sock",
        metadata={"help": "Unix socket of `podman system service`; the agent needs access."},
    )
