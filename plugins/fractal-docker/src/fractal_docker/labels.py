"""Names and labels: how everything of a run is found again, by any agent, after any crash."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from fractal.api.app import AppRun, HealthSpec, ServiceSpec

PREFIX = "org.fractal-homeserver."
DEVICE, RUN, GROUP, APP, EPOCH = (PREFIX + name for name in ("device", "run", "group", "app", "epoch"))
SERVICE, ORDER, RESTART, GRACE = (PREFIX + name for name in ("service", "order", "restart", "grace"))
HEALTH, PORTS, BOOT = (PREFIX + name for name in ("health", "ports", "boot"))
_UNSAFE = re.compile(r"[^A-Za-z0-9_.-]+")


def run_name(device: str, key: str) -> str:
    """A run's name in the engine and among cgroups: no two devices, groups, apps or epochs share one."""
    return hashlib.blake2b(f"{device} {key}".encode(), digest_size=10, person=b"fhs-docker").hexdigest()


def container_name(device: str, run: AppRun, service: str) -> str:
    """Readable first, unique by its end."""
    app = _UNSAFE.sub("-", run.spec.name).strip("-.")[:40] or "app"
    return f"fhs-{app}-{service}-{run_name(device, run.key)}"


def run_labels(device: str, run: AppRun) -> dict[str, str]:
    """Of everything that belongs to a run."""
    return {DEVICE: device, RUN: run.key, GROUP: run.group, APP: run.app, EPOCH: str(run.epoch)}


def service_labels(device: str, run: AppRun, service: ServiceSpec, order: int, boot: str) -> dict[str, str]:
    """Of a container: also what `stop` and `observe` need to know of it."""
    health = json.dumps(asdict(service.health)) if service.health is not None else ""
    return run_labels(device, run) | {
        SERVICE: service.name,
        ORDER: str(order),
        RESTART: service.restart,
        GRACE: f"{service.stop_grace:g}",
        HEALTH: health,
        PORTS: json.dumps({port.name: f"{port.container}/{port.protocol}" for port in service.ports}),
        BOOT: boot,
    }


@dataclass(frozen=True, slots=True)
class Container:
    """One of our containers as the engine describes it (`GET /containers/ID/json`)."""

    raw: Mapping[str, Any]

    @property
    def id(self) -> str:
        """The engine's."""
        return str(self.raw["Id"])

    @property
    def labels(self) -> Mapping[str, str]:
        """All of them."""
        return self.raw["Config"].get("Labels") or {}

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

    @property
    def state(self) -> Mapping[str, Any]:
        """Status, exit code, times, health."""
        return self.raw["State"]  # type: ignore[no-any-return]

    @property
    def running(self) -> bool:
        """Whether it has a process (the engine counts a paused one as running too)."""
        return bool(self.state.get("Running"))

    @property
    def begun(self) -> bool:
        """Whether it was ever started."""
        return self.state.get("Status") != "created"

    @property
    def exit_code(self) -> int | None:
        """None while it runs and before it was started."""
        return None if self.running or not self.begun else int(self.state.get("ExitCode", 0))

    @property
    def health(self) -> HealthSpec | None:
        """The specification's."""
        try:
            found = json.loads(self.labels.get(HEALTH) or "null")
            return None if found is None else HealthSpec(**{**found, "test": tuple(found["test"])})
        except (ValueError, TypeError, KeyError):
            return None

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
        """Where this device reaches its ports: on loopback, at numbers that the engine chose."""
        published = self.raw["NetworkSettings"].get("Ports") or {}
        return tuple(
            (name, str(binding["HostIp"]), int(binding["HostPort"]))
            for name, port in self.ports.items()
            for binding in (published.get(port) or [])[:1]
        )

    @property
    def address(self) -> str:
        """In the run's network; "" while it has none."""
        networks = self.raw["NetworkSettings"].get("Networks") or {}
        return next((str(n["IPAddress"]) for n in networks.values() if n.get("IPAddress")), "")
