"""Settings of the `docker` runtime."""

from __future__ import annotations

from dataclasses import dataclass, field

from fractal_containers.config import EngineConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class DockerConfig(EngineConfig):
    """`[runtime.docker]`."""

    socket: str = field(
        default="/var/run/docker.sock",
        metadata={"help": "Unix socket of the engine; the agent needs access."},
    )
