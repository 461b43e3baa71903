"""`deploy` of a Compose service: what of it means something on one device."""

from __future__ import annotations

from dataclasses import dataclass

from fractal.manifest.values import Where

_KEYS = frozenset({"resources", "replicas", "mode", "restart_policy"})
_POLICY_KEYS = frozenset({"condition", "delay", "max_attempts", "window"})
CONDITIONS = {"any": "always", "on-failure": "on-failure", "none": "no"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployment:
    """What it asks for; 0 and "" ask for nothing."""

    memory: int = 0
    """Bytes, at most."""
    cpus: float = 0.0
    processes: int = 0
    reserved: int = 0
    """Bytes that are the service's before others'."""
    restart: str = ""
    """As `ServiceSpec.restart`."""


def deployment(where: Where | None) -> Deployment:
    """Read it; what a cluster would need is refused by name."""
    if where is None:
        return Deployment()
    table = where.table(_KEYS)
    if "mode" in table:
        table["mode"].choice(frozenset({"replicated"}))
    if "replicas" in table and table["replicas"].text() != "1":
        table["replicas"].wrong("a service of an app runs once")
    resources = (
        table["resources"].table(frozenset({"limits", "reservations"})) if "resources" in table else {}
    )
    limits = resources["limits"].table(frozenset({"memory", "cpus", "pids"})) if "limits" in resources else {}
    reserved = resources["reservations"].table(frozenset({"memory"})) if "reservations" in resources else {}
    return Deployment(
        memory=limits["memory"].size() if "memory" in limits else 0,
        cpus=limits["cpus"].number() if "cpus" in limits else 0.0,
        processes=limits["pids"].integer(0, 1 << 22) if "pids" in limits else 0,
        reserved=reserved["memory"].size() if "memory" in reserved else 0,
        restart=_restart(table.get("restart_policy")),
    )


def _restart(where: Where | None) -> str:
    if where is None:
        return ""
    table = where.table(_POLICY_KEYS)  # how often and when is the agent's own, as with `on-failure:5`
    return (table["condition"].choice(CONDITIONS) if "condition" in table else "") or "always"
