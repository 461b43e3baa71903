"""Docker's words (Engine API 1.41) for what is wanted and what was found. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from docker.types import DeviceRequest, Healthcheck, LogConfig, Mount, NetworkingConfig
from docker.types import Ulimit as DockerUlimit
from docker.types.containers import HostConfig
from docker.types.networks import EndpointConfig
from fractal_containers.found import Checked, Container, lived
from fractal_containers.options import Options
from fractal_containers.wanted import Attached, Bind, Wanted

from fractal.api.app import HealthSpec

API = "1.41"
"""Docker 20.10, the oldest that is supported."""
LOOPBACK = "127.0.0.1"
NANO = 1_000_000_000


def payload(wanted: Wanted) -> dict[str, Any]:
    """Keyword arguments of the SDK's `create_container`."""
    options = wanted.options
    return {
        "image": wanted.image,
        "name": wanted.name,
        "command": list(wanted.argv) or None,
        "entrypoint": list(wanted.entrypoint) or None,
        "environment": dict(wanted.env),
        "labels": dict(wanted.labels),
        "user": wanted.user or None,
        "working_dir": wanted.working_dir or None,
        "hostname": options.hostname or None,
        "platform": options.platform or None,
        "ports": list(wanted.exposed),
        "stop_signal": wanted.stop_signal or None,
        "healthcheck": _healthcheck(wanted.health, disabled=options.no_health),
        "networking_config": _networking(wanted) if wanted.networks else None,
        "stdin_open": options.stdin_open,
        "host_config": _host(wanted),
    }


def _bind(bind: Bind) -> Mount:
    how = "rshared" if bind.shared else None
    return Mount(bind.target, str(bind.source), type="bind", read_only=bind.read_only, propagation=how)


def _volume(volume: Attached) -> Mount:
    return Mount(volume.target, volume.name, type="volume", read_only=volume.read_only)


def _gpu(count: int, ids: Sequence[str]) -> DeviceRequest:
    return DeviceRequest(driver="nvidia", count=count, device_ids=list(ids), capabilities=[["gpu"]])


def _mode(wanted: Wanted) -> str:
    if wanted.options.host_network:
        return "host"
    if wanted.joins:
        return f"container:{wanted.joins}"
    return "none" if wanted.options.no_network else wanted.networks[0]


def _networking(wanted: Wanted) -> NetworkingConfig:
    """The first one: a container is made in one network, and put into others before it starts."""
    return NetworkingConfig({wanted.networks[0]: EndpointConfig(API, aliases=aliases(wanted))})


def aliases(wanted: Wanted) -> list[str]:
    """How the others in its networks find it."""
    return [wanted.alias, *wanted.options.aliases]


def _filter(options: Options) -> list[str]:
    """Docker is given the text itself."""
    return [f"seccomp={options.filtered}"] if options.filtered else []


def _host(wanted: Wanted) -> HostConfig:
    limits, options = wanted.limits, wanted.options
    log = {"max-size": str(wanted.log_bytes), "max-file": str(wanted.log_files)}
    return HostConfig(
        version=API,
        network_mode=_mode(wanted),
        mounts=[*map(_bind, wanted.binds), *map(_volume, wanted.attached)],
        port_bindings={f"{number}/{protocol}": (LOOPBACK, None) for number, protocol in wanted.ports},
        cgroup_parent=wanted.cgroup_parent,
        restart_policy={"Name": "no"},  # an engine that restarts apps would start them without a lease
        security_opt=["no-new-privileges", *options.unprotected, *_filter(options)],
        mem_limit=limits.memory or None,
        nano_cpus=round(limits.cpus * NANO) or None,
        pids_limit=limits.processes or None,
        ulimits=[DockerUlimit(Name=u.name, Soft=u.soft, Hard=u.hard) for u in wanted.ulimits],
        log_config=LogConfig(type="json-file", config=log),
        dns=list(options.dns) or None,
        dns_opt=list(options.dns_options) or None,
        dns_search=list(options.dns_search) or None,
        privileged=options.privileged,
        sysctls=dict(options.sysctls) or None,
        devices=[":".join(device) for device in options.devices] or None,
        device_requests=[_gpu(count, ids) for count, ids in options.gpus] or None,
        group_add=list(options.groups) or None,
        cpu_shares=options.cpu_shares or None,
        oom_score_adj=options.oom_score_adj or None,
        pid_mode="host" if options.host_pid else None,
        ipc_mode="host" if options.host_ipc else None,
        uts_mode="host" if options.host_uts else None,
        cgroupns="host" if options.host_cgroup else None,
        device_cgroup_rules=[
            f"{kind} {major}:{minor} {how}" for kind, major, minor, how in options.device_rules
        ]
        or None,
        mem_reservation=options.mem_reservation or None,
        memswap_limit=options.mem_swap or None,
        cap_add=list(options.cap_add),
        cap_drop=list(options.cap_drop),
        extra_hosts=[f"{name}:{address}" for name, address in options.extra_hosts] or None,
        init=True if options.init else None,
        read_only=options.read_only or None,
        shm_size=options.shm_size or None,
        tmpfs=dict(options.tmpfs) or None,
    )


def _healthcheck(health: HealthSpec | None, *, disabled: bool) -> Any:
    if health is None:
        return Healthcheck(test=["NONE"]) if disabled else None  # the image's own, if it has one
    return Healthcheck(
        test=["CMD", *health.test],
        interval=max(round(health.interval * NANO), 1_000_000),
        timeout=max(round(health.timeout * NANO), 1_000_000),
        retries=health.retries,
        start_period=_period(health.start_period),
    )


def _period(seconds: float) -> int:
    return 0 if seconds <= 0 else max(round(seconds * NANO), 1_000_000)


def container(raw: Mapping[str, Any]) -> Container:
    """Of `GET /containers/ID/json`."""
    state, config, network = raw["State"], raw["Config"], raw["NetworkSettings"]
    published = network.get("Ports") or {}
    networks = network.get("Networks") or {}
    ours = (raw.get("HostConfig") or {}).get("NetworkMode") == "host"
    return Container(
        id=str(raw["Id"]),
        labels=config.get("Labels") or {},
        running=bool(state.get("Running")),
        begun=state.get("Status") != "created",
        code=int(state.get("ExitCode", 0)),
        error=str(state.get("Error") or ""),
        started=str(state.get("StartedAt")),
        lived=lived(state.get("StartedAt"), state.get("FinishedAt")),
        stop_signal=str(config.get("StopSignal") or "SIGTERM"),
        checked=_checked(state.get("Health") or {}),
        published={
            port: (str(bindings[0]["HostIp"]), int(bindings[0]["HostPort"]))
            for port, bindings in published.items()
            if bindings
        },
        address=LOOPBACK
        if ours
        else next((str(n["IPAddress"]) for n in networks.values() if n.get("IPAddress")), ""),
        host_network=ours,
    )


def _checked(health: Mapping[str, Any]) -> Checked | None:
    status = str(health.get("Status", "none"))
    if status == "none":
        return None
    entries = health.get("Log") or [{}]
    return Checked(status, str(entries[-1].get("Output", "")))
