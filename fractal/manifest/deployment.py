"""`deploy` of a Compose service: what of it means something on one device."""

from __future__ import annotations

from dataclasses import dataclass

from fractal.manifest import keys
from fractal.manifest.values import Where

_KEYS = frozenset({"resources", "replicas", "mode", "restart_policy", *keys.DEPLOY_IDLE})
_POLICY_KEYS = frozenset({"condition", "delay", "max_attempts", "window"})
MODES = frozenset({"replicated", "global", "replicated-job", "global-job"})
CONDITIONS = {"any": "always", "on-failure": "on-failure", "none": "no"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployment:
    """What it asks for; 0 and "" ask for nothing."""

    memory: int = 0
    """Bytes, at most."""
    cpus: float = 0.0
    processes: int = 0
    devices: Where | None = None
    """`resources.reservations.devices`."""
    reserved: int = 0
    """Bytes that are the service's before others'."""
    restart: str = ""
    """As `ServiceSpec.restart`."""


def deployment(where: Where | None) -> Deployment:
    """Read it; what a cluster would need is refused by name."""
    if where is None:
        return Deployment()
    table = where.table(_KEYS, extensions=True)
    for key in keys.DEPLOY_IDLE.keys() & table.keys():
        table[key].idle(keys.DEPLOY_IDLE[key])
    for key in ("mode", "replicas"):
        if key in table:
            table[key].idle("a service of an app runs once")
    if "mode" in table:
        table["mode"].choice(MODES)
    if "replicas" in table:
        table["replicas"].integer(0, 1 << 16)
    resources = (
        table["resources"].table(frozenset({"limits", "reservations"})) if "resources" in table else {}
    )
    limits = resources["limits"].table(frozenset({"memory", "cpus", "pids"})) if "limits" in resources else {}
    reserved = (
        resources["reservations"].table(frozenset({"memory", "cpus", "devices", "generic_resources"}))
        if "reservations" in resources
        else {}
    )
    if "cpus" in reserved:
        reserved["cpus"].idle("engines keep no processors free; `limits` bound them")
    if "generic_resources" in reserved:
        reserved["generic_resources"].idle(keys.CLUSTER)
    return Deployment(
        memory=limits["memory"].size() if "memory" in limits else 0,
        cpus=limits["cpus"].number() if "cpus" in limits else 0.0,
        processes=max(0, limits["pids"].integer(-1, 1 << 22)) if "pids" in limits else 0,
        reserved=reserved["memory"].size() if "memory" in reserved else 0,
        devices=reserved.get("devices"),
        restart=_restart(table.get("restart_policy")),
    )


def _restart(where: Where | None) -> str:
    if where is None:
        return ""
    table = where.table(_POLICY_KEYS)
    for key in table.keys() - {"condition"}:
        table[key].idle("how often is the system's own: it waits longer each time")
    return (table["condition"].choice(CONDITIONS) if "condition" in table else "") or "always"
