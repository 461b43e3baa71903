"""A service as the engine is told to make it. Pure."""

from __future__ import annotations

import posixpath
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from docker.types import Healthcheck, LogConfig, Mount, NetworkingConfig, Ulimit
from docker.types.containers import HostConfig
from docker.types.networks import EndpointConfig

from fractal.api.app import AppRun, HealthSpec, ServiceSpec
from fractal.api.errors import BackendError
from fractal_docker.cgroup import RunCgroup
from fractal_docker.config import DockerConfig
from fractal_docker.engine import API
from fractal_docker.labels import container_name, service_labels
from fractal_docker.options import settings

LOOPBACK = "127.0.0.1"
SECRETS = "/run/secrets"
SECRET_USE = re.compile(r"\{secret\.([A-Za-z0-9_]+)\}")
_NANO = 1_000_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a run's containers are made."""

    device: str
    boot: str
    cgroup: RunCgroup
    network: str
    config: DockerConfig


def payload(
    place: Place, run: AppRun, service: ServiceSpec, order: int, image: str, secrets: Path | None
) -> dict[str, Any]:
    """Keyword arguments of the SDK's `create_container`. `secrets` is the folder bound to /run/secrets."""
    options = settings(service.options, frozenset(place.config.capabilities))
    container, host = options["container"], options["host"]
    ports = {f"{port.container}/{port.protocol}" for port in service.ports}
    exposed = [(port.container, port.protocol) for port in service.ports] + container.get("expose", [])
    return {
        "image": image,
        "name": container_name(place.device, run, service.name),
        "command": list(service.argv) or None,
        "entrypoint": list(service.entrypoint) or None,
        "environment": environment(run, service),
        "labels": {
            **container.get("labels", {}),
            **service_labels(place.device, run, service, order, place.boot),
        },
        "user": service.user or None,
        "working_dir": service.working_dir or None,
        "hostname": container.get("hostname"),
        "platform": container.get("platform"),
        "ports": list(dict.fromkeys(exposed)),
        # An image may name the signal it wants; SIGTERM is only what we say when nobody says anything.
        "stop_signal": None if service.stop_signal == "SIGTERM" else service.stop_signal,
        "healthcheck": _healthcheck(service.health, disabled=container.get("no_health", False)),
        "networking_config": NetworkingConfig({place.network: EndpointConfig(API, aliases=[service.name])}),
        "host_config": _host(place, run, service, host, ports, secrets),
    }


def _host(
    place: Place,
    run: AppRun,
    service: ServiceSpec,
    given: dict[str, Any],
    ports: set[str],
    secrets: Path | None,
) -> HostConfig:
    limits = service.limits
    ulimits = [Ulimit(**limit) for limit in given.pop("ulimits", [])]
    if limits.files and not any(limit.name == "nofile" for limit in ulimits):
        ulimits.append(Ulimit(Name="nofile", Soft=limits.files, Hard=limits.files))
    mounts = [
        Mount(m.target, str(run.volume_root / m.volume), type="bind", read_only=m.read_only)
        for m in service.mounts
    ]
    if secrets is not None:
        mounts.append(Mount(SECRETS, str(secrets), type="bind", read_only=True))
    log = {"max-size": str(place.config.log_bytes), "max-file": "2"}
    return HostConfig(
        version=API,
        network_mode=place.network,
        mounts=mounts,
        port_bindings=dict.fromkeys(ports, (LOOPBACK, None)),
        cgroup_parent=place.cgroup.parent,
        restart_policy={"Name": "no"},  # an engine that restarts apps would start them without a lease
        security_opt=["no-new-privileges"],
        mem_limit=limits.memory or None,
        nano_cpus=round(limits.cpus * _NANO) or None,
        pids_limit=limits.processes or None,
        ulimits=ulimits,
        log_config=LogConfig(type="json-file", config=log),
        **given,
    )


def environment(run: AppRun, service: ServiceSpec) -> dict[str, str]:
    """The service's variables with secrets filled in. Raises BackendError for a secret without a value."""

    def value(match: re.Match[str]) -> str:
        return secret(run, service, match[1])

    return {name: SECRET_USE.sub(value, text) for name, text in service.env.items()}


def secret(run: AppRun, service: ServiceSpec, name: str) -> str:
    """A secret's value, if the service may see it."""
    if name not in service.secrets or name not in run.secrets:
        raise BackendError(f"{run.key}: service {service.name}: secret {name!r} has no value")
    return run.secrets[name]


def secret_files(run: AppRun, service: ServiceSpec) -> dict[str, str]:
    """Those that are given as files: all that the environment does not name."""
    named = {name for text in service.env.values() for name in SECRET_USE.findall(text)}
    return {name: secret(run, service, name) for name in service.secrets if name not in named}


def _healthcheck(health: HealthSpec | None, *, disabled: bool) -> Any:
    if health is None and not disabled:
        return None  # the image's own, if it has one
    if health is None or not health.test:
        return Healthcheck(test=["NONE"])
    return Healthcheck(
        test=["CMD", *health.test],
        interval=max(round(health.interval * _NANO), 1_000_000),
        timeout=max(round(health.timeout * _NANO), 1_000_000),
        retries=health.retries,
        start_period=_period(health.start_period),
    )


def _period(seconds: float) -> int:
    return 0 if seconds <= 0 else max(round(seconds * _NANO), 1_000_000)


def bad_target(target: str) -> bool:
    """Whether a mount there would hide what the runtime or the kernel puts there."""
    path = posixpath.normpath(target)
    return path == "/" or any(
        path == top or path.startswith(top + "/") for top in ("/proc", "/sys", "/dev", SECRETS)
    )
