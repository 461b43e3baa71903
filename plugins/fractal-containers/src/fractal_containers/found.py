"""What an engine says that there is, as plain values."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from fractal.api.app import Command, HealthSpec
from fractal_containers.labels import CLOSED, GRACE, HEALTH, ORDER, PORTS, PRE_STOP, RESTART, RUN, SERVICE


@dataclass(frozen=True, slots=True)
class Image:
    """A local image."""

    digest: str
    """`sha256:` and 64 hex digits: of its configuration."""
    architecture: str
    """Go's name, with its variant: `amd64`, `arm/v7`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """A network of ours."""

    name: str
    labels: Mapping[str, str]
    bridge: str = ""
    """Name of its interface on this device, up to 15 characters."""
    resolver: str = ""
    """IPv4 address on this device at which the engine resolves names for its members; "" if it does so elsewhere."""

    @property
    def closed(self) -> bool:
        """Whether it has no way out."""
        return self.labels.get(CLOSED) == "yes"


@dataclass(frozen=True, slots=True)
class Checked:
    """What the engine's own health check says."""

    status: str
    """`starting` | `healthy` | `unhealthy`."""
    output: str = ""
    """Of the last look."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Container:
    """One of our containers."""

    id: str
    labels: Mapping[str, str]
    running: bool
    """Whether it has a process, be it a paused one."""
    begun: bool
    """Whether it was ever started."""
    code: int
    """Exit code of its last life."""
    error: str = ""
    """Why it did not start."""
    started: str = ""
    """When it was last started, in the engine's words: one start is told from another by it."""
    lived: float = 0.0
    """Seconds between its last start and end."""
    stop_signal: str = "SIGTERM"
    checked: Checked | None = None
    test: HealthSpec | None = None
    """Its health command in the engine's words: the app's or the image's."""
    published: Mapping[str, tuple[str, int]] = field(default_factory=dict)
    """`80/tcp` -> host and port at which this device reaches it."""
    address: str = ""
    """In the run's network; "" while it has none."""
    host_network: bool = False
    """Whether its network is this device's."""

    @property
    def key(self) -> str:
        """`AppRun.key`."""
        return self.labels.get(RUN, "")

    @property
    def service(self) -> str:
        """Its service's name."""
        return self.labels.get(SERVICE, "")

    @property
    def order(self) -> int:
        """Its place in dependency order."""
        text = self.labels.get(ORDER, "0")
        return int(text) if text.isdecimal() else 0

    @property
    def grace(self) -> float:
        """Seconds between stop signal and SIGKILL."""
        try:
            return max(0.0, float(self.labels.get(GRACE, "10")))
        except ValueError:
            return 10.0

    def outlived(self, other: Container | None) -> bool:
        """Whether the other one runs, and was started after this one."""
        try:
            return (
                other is not None
                and other.running
                and datetime.fromisoformat(other.started) > datetime.fromisoformat(self.started)
            )
        except ValueError:
            return False

    @property
    def exit_code(self) -> int | None:
        """None while it runs and before it was started."""
        return None if self.running or not self.begun else self.code

    @property
    def completed(self) -> bool:
        """Whether it was there to do something once, and did."""
        return self.exit_code == 0 and self.labels.get(RESTART, "always") != "always"

    @property
    def health(self) -> HealthSpec | None:
        """The specification's."""
        try:
            found = json.loads(self.labels.get(HEALTH) or "null")
            return None if found is None else HealthSpec(**{**found, "test": tuple(found["test"])})
        except (ValueError, TypeError, KeyError):
            return None

    @property
    def pre_stop(self) -> tuple[Command, ...]:
        """What it wants run before its end."""
        try:
            found = json.loads(self.labels.get(PRE_STOP) or "[]")
            return tuple(Command(**{**one, "argv": tuple(one["argv"])}) for one in found)
        except (ValueError, TypeError, KeyError):
            return ()

    @property
    def ports(self) -> Mapping[str, str]:
        """Port name -> `80/tcp`."""
        try:
            found = json.loads(self.labels.get(PORTS) or "{}")
        except ValueError:
            return {}
        return found if isinstance(found, dict) else {}

    @property
    def endpoints(self) -> tuple[tuple[str, str, int], ...]:
        """Where this device reaches its ports on loopback: at numbers that the engine chose, or in its own network at theirs."""
        if self.host_network:
            return tuple(
                (name, "127.0.0.1", int(port.partition("/")[0])) for name, port in self.ports.items()
            )
        return tuple(
            (name, *self.published[port]) for name, port in self.ports.items() if port in self.published
        )


def lived(started: object, finished: object) -> float:
    """Seconds between two times in an engine's words (RFC 3339); 0 if one is not there or they are the wrong way round."""
    try:
        begin, end = (datetime.fromisoformat(str(moment)[:19]) for moment in (started, finished))
    except ValueError:
        return 0.0
    return max(0.0, (end - begin).total_seconds())
