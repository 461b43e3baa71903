"""Settings that every engine's runtime has."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """Common part of `[runtime.docker]` and `[runtime.podman]`."""

    socket: str = field(default="", metadata={"help": "Unix socket of the engine; the agent needs access."})
    timeout: float = field(
        default=20.0, metadata={"help": "Seconds after which the engine counts as hung, per request."}
    )
    pull_timeout: float = field(
        default=1800.0,
        metadata={"help": "Seconds after which pulling, saving or loading an image is given up."},
    )
    capabilities: tuple[str, ...] = field(
        default=(),
        metadata={
            "help": "Capabilities that let an app reach the device itself and that apps may have all the same."
        },
    )
    allow: tuple[str, ...] = field(
        default=(),
        metadata={
            "help": "What of this device apps may have if whoever installs them allows it too, such as host-path:/srv/media,"
            " device:/dev/dri, host-network; `all`: everything but capabilities."
        },
    )
    reach: tuple[str, ...] = field(
        default=(),
        metadata={
            "help": "Private networks that apps may reach beside the internet, such as 192.168.1.0/24."
        },
    )
    log_bytes: int = field(
        default=4 << 20,
        metadata={"help": "Size at which a service's log is rotated; Docker keeps one older file."},
    )

    def allows(self, what: str) -> bool:
        """Whether apps may have something of this device: by its name, or for a path by that of a folder above it."""
        kind, _, path = what.partition(":")
        for allowed in self.allow:
            above, _, folder = allowed.partition(":")
            if allowed in ("all", what) or (
                above == kind and folder and path.startswith(folder.rstrip("/") + "/")
            ):
                return True
        return False
