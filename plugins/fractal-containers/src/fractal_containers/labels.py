"""Names and labels: how everything of a run is found again, by any agent, after any crash."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import asdict

from fractal.api.app import AppRun, ServiceSpec

PREFIX = "org.fractal-homeserver."
DEVICE, RUN, GROUP, APP, EPOCH = (PREFIX + name for name in ("device", "run", "group", "app", "epoch"))
SERVICE, ORDER, RESTART, GRACE = (PREFIX + name for name in ("service", "order", "restart", "grace"))
HEALTH, PORTS, BOOT, PRE_STOP = (PREFIX + name for name in ("health", "ports", "boot", "pre-stop"))
NETWORK, CLOSED = (PREFIX + name for name in ("network", "closed"))
_CLOSED = re.compile(r"fhs-[0-9a-f]{20}-1-[0-9a-f]{8}")
_UNSAFE = re.compile(r"[^A-Za-z0-9_.-]+")


def run_name(device: str, key: str) -> str:
    """A run's name in the engine and among cgroups: no two devices, groups, apps or epochs share one."""
    return hashlib.blake2b(f"{device} {key}".encode(), digest_size=10, person=b"fhs-run").hexdigest()


def bridges(device: str) -> str:
    """How the name of every bridge of a device begins: what its containers send comes in there."""
    return f"fhs{hashlib.blake2b(device.encode(), digest_size=2, person=b'fhs-bridge').hexdigest()}"


def bridge_name(device: str, key: str) -> str:
    """Of a run's network: an interface's name has room for 15 characters."""
    return bridges(device) + run_name(device, key)[:8]


def network_names(device: str, key: str, network: str, *, closed: bool) -> tuple[str, str]:
    """Name in the engine, and bridge, of one of several networks of a run. Those with a way out come first by their names, by
    which engines choose the way that a container has."""
    mark = hashlib.blake2b(f"{device} {key} {network}".encode(), digest_size=4, person=b"fhs-net").hexdigest()
    return f"fhs-{run_name(device, key)}-{int(closed)}-{mark}", bridges(device) + mark


def is_closed(network: str) -> bool:
    """Whether a network of ours has no way out, by its name in the engine."""
    return _CLOSED.fullmatch(network) is not None


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
        **({PRE_STOP: json.dumps([asdict(c) for c in service.pre_stop])} if service.pre_stop else {}),
    }
