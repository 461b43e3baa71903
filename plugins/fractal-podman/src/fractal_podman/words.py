"""Libpod's words (API 4) for what is wanted and what was found. Pure."""

from __future__ import annotations

import re
import signal
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from fractal_containers.found import Container, lived
from fractal_containers.labels import is_closed
from fractal_containers.options import Options
from fractal_containers.wanted import Bind, Wanted

from fractal.api.app import HealthSpec

LIBPOD = "4.0.0"
"""Version of the API that is asked for; every Podman since 4.0 answers it."""
LOOPBACK = "127.0.0.1"
_MEMORY = re.compile(r"size=(\d{1,12})([kmg]?)", re.IGNORECASE)
_TIMES = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30}
NANO = 1_000_000_000
PERIOD = 100_000
"""Microseconds in which a quota of processor time is counted: the kernel's default."""
RUNNING = frozenset({"running", "paused", "stopping"})
NEVER_BEGUN = frozenset({"configured", "created", "initialized"})
_ID = re.compile(r"(sha256:)?[0-9a-f]{64}")


def payload(wanted: Wanted) -> dict[str, Any]:
    """Body of `POST /libpod/containers/create`: a SpecGenerator."""
    options = wanted.options
    made: dict[str, Any] = {
        "name": wanted.name,
        "image": wanted.image,
        "command": list(wanted.argv),
        "entrypoint": list(wanted.entrypoint),
        "env": dict(wanted.env),
        "labels": dict(wanted.labels),
        "user": wanted.user,
        "work_dir": wanted.working_dir,
        "hostname": options.hostname,
        "netns": _mode(wanted),
        "Networks": {
            network: {"aliases": [wanted.alias, *wanted.options.aliases]} for network in wanted.networks
        },
        **_reaching(options, wanted.filter_file),
        "dns_server": list(options.dns),
        "dns_option": list(options.dns_options),
        "dns_search": list(options.dns_search),
        "privileged": options.privileged,
        "portmappings": [
            {"container_port": number, "protocol": protocol, "host_ip": LOOPBACK}
            for number, protocol in wanted.ports
        ],
        "expose": _exposed(wanted),
        "volumes": [
            {"Name": one.name, "Dest": one.target, "Options": ["ro" if one.read_only else "rw"]}
            for one in wanted.attached
        ],
        "mounts": [_bind(bind) for bind in wanted.binds],
        "cgroup_parent": wanted.cgroup_parent,
        # What watches a container must not be frozen, nor killed, with it.
        "cgroups_mode": "no-conmon",
        "restart_policy": "no",  # an engine that restarts apps would start them without a lease
        "no_new_privileges": True,
        "log_configuration": {"driver": "k8s-file", "size": _log_bytes(wanted)},
        "resource_limits": _limits(wanted),
        "r_limits": [{"type": u.name, "soft": u.soft, "hard": u.hard} for u in wanted.ulimits],
        "cap_add": [f"CAP_{name}" if name != "ALL" else name for name in options.cap_add],
        "cap_drop": [f"CAP_{name}" if name != "ALL" else name for name in options.cap_drop],
        "hostadd": [f"{name}:{address}" for name, address in options.extra_hosts],
        "init": options.init,
        "read_only_filesystem": options.read_only,
        "healthconfig": _healthcheck(wanted.health, disabled=options.no_health),
    }
    made["mounts"] += [_tmpfs(path, flags) for path, flags in options.tmpfs.items()]
    if options.oom_score_adj:
        made["oom_score_adj"] = options.oom_score_adj
    if options.shm_size:
        made["shm_size"] = options.shm_size
    if wanted.stop_signal:
        made["stop_signal"] = signal_number(wanted.stop_signal)
    if options.platform:
        made["image_os"], _, rest = options.platform.partition("/")
        made["image_arch"], _, made["image_variant"] = rest.partition("/")
    return {name: value for name, value in made.items() if value not in ("", [], {}, None, False)}


def _mode(wanted: Wanted) -> dict[str, str]:
    if wanted.joins:
        return {"nsmode": "container", "value": wanted.joins}
    if wanted.options.host_network:
        return {"nsmode": "host"}
    return {"nsmode": "none" if wanted.options.no_network else "bridge"}


def _reaching(options: Options, filter_file: Path | None) -> dict[str, Any]:
    off = options.unprotected
    return {
        "stdin": options.stdin_open,
        "sysctl": dict(options.sysctls),
        "devices": [{"path": path} for path in (*map(":".join, options.devices), *_gpus(options))],
        "groups": list(options.groups),
        "pidns": {"nsmode": "host"} if options.host_pid else {},
        "ipcns": {"nsmode": "host"} if options.host_ipc else {},
        "utsns": {"nsmode": "host"} if options.host_uts else {},
        "cgroupns": {"nsmode": "host"} if options.host_cgroup else {},
        "device_cgroup_rule": [_rule(*rule) for rule in options.device_rules],
        "seccomp_profile_path": "unconfined" if "seccomp=unconfined" in off else str(filter_file or ""),
        "apparmor_profile": "unconfined" if "apparmor=unconfined" in off else "",
        "selinux_opts": ["disable"] if "label=disable" in off else [],
    }


def _rule(kind: str, major: str, minor: str, how: str) -> dict[str, Any]:
    """As the OCI runtime specification has them: without a number, all of them."""
    numbers = {key: int(text) for key, text in (("major", major), ("minor", minor)) if text != "*"}
    return {"allow": True, "type": kind, "access": how, **numbers}


def volume_options(options: Mapping[str, str], page: int) -> dict[str, str]:
    """Options of a volume. Podman takes `size` for a quota of its own, on file systems that have them, also of memory: there it
    is said in pages, tmpfs(5)."""
    words = options.get("o", "").split(",")
    if options.get("type") != "tmpfs" or not words[0]:
        return dict(options)
    return {**options, "o": ",".join(_in_pages(word, page) for word in words)}


def _in_pages(word: str, page: int) -> str:
    match = _MEMORY.fullmatch(word)
    if match is None:
        return word
    return f"nr_blocks={-(-int(match[1]) * _TIMES[match[2].lower()] // page)}"


def _gpus(options: Options) -> Iterator[str]:
    """By the Container Device Interface, as `nvidia-ctk cdi generate` names them."""
    for count, ids in options.gpus:
        yield from (
            f"nvidia.com/gpu={name}" for name in (ids or (["all"] if count < 0 else map(str, range(count))))
        )


def _exposed(wanted: Wanted) -> dict[int, str]:
    found: dict[int, str] = {}
    for number, protocol in wanted.exposed:
        found[number] = f"{found[number]},{protocol}" if number in found else protocol
    return found


def _log_bytes(wanted: Wanted) -> int:
    """Podman's monitor keeps one file and begins it anew: as large as Docker's older ones together."""
    return wanted.log_bytes * max(1, wanted.log_files - 1)


def _bind(bind: Bind) -> dict[str, Any]:
    options = ["rbind", "ro" if bind.read_only else "rw", *(["rshared"] if bind.shared else [])]
    return {"type": "bind", "source": str(bind.source), "destination": bind.target, "options": options}


def _tmpfs(path: str, flags: str) -> dict[str, Any]:
    """Empty, and for no programs unless asked, as Docker makes it."""
    options = [*(flag for flag in flags.split(",") if flag), "notmpcopyup"]
    if not {"exec", "noexec"} & set(options):
        options.append("noexec")
    return {"type": "tmpfs", "source": "tmpfs", "destination": path, "options": options}


def _limits(wanted: Wanted) -> dict[str, Any]:
    limits, found = wanted.limits, dict[str, Any]()
    if limits.memory:
        found["memory"] = {"limit": limits.memory}
    if reserved := wanted.options.mem_reservation:
        found["memory"] = {**found.get("memory", {}), "reservation": reserved}
    if swap := wanted.options.mem_swap:
        found["memory"] = {**found.get("memory", {}), "swap": swap}
    if limits.cpus:
        found["cpu"] = {"quota": round(limits.cpus * PERIOD), "period": PERIOD}
    if shares := wanted.options.cpu_shares:
        found["cpu"] = {**found.get("cpu", {}), "shares": shares}
    if limits.processes:
        found["pids"] = {"limit": limits.processes}
    return found


def _healthcheck(health: HealthSpec | None, *, disabled: bool) -> dict[str, Any] | None:
    """Without an interval: then Podman makes no timer of systemd's. The runtime repeats it."""
    if health is None:
        return {"Test": ["NONE"]} if disabled else None  # the image's own, if it has one
    return {
        "Test": ["CMD", *health.test],
        "Interval": 0,
        "Timeout": max(round(health.timeout * NANO), NANO),
        "Retries": health.retries,
        "StartPeriod": round(max(0.0, health.start_period) * NANO),
    }


def signal_number(name: str) -> int:
    """Of `SIGTERM`, `SIGRTMIN+3` or `15`. Raises ValueError."""
    if name.isdecimal():
        return int(name)
    base, plus, offset = name.partition("+")
    try:
        return int(signal.Signals[base]) + (int(offset) if plus else 0)
    except KeyError as error:
        raise ValueError(f"{name[:40]!r} is no signal") from error


def container(raw: Mapping[str, Any]) -> Container:
    """Of `GET /libpod/containers/ID/json`."""
    state, config, network = raw["State"], raw["Config"], raw["NetworkSettings"]
    published = network.get("Ports") or {}
    networks = network.get("Networks") or {}
    ours = (raw.get("HostConfig") or {}).get("NetworkMode") == "host"
    status = str(state.get("Status"))
    address = next((str(n["IPAddress"]) for n in networks.values() if n.get("IPAddress")), "")
    # Podman says that it publishes ports of such networks too, and does not.
    direct = bool(address) and all(is_closed(name) for name in networks)
    return Container(
        id=str(raw["Id"]),
        labels=config.get("Labels") or {},
        running=status in RUNNING,
        begun=status not in NEVER_BEGUN,
        code=int(state.get("ExitCode", 0)),
        error=str(state.get("Error") or ""),
        started=str(state.get("StartedAt")),
        lived=lived(state.get("StartedAt"), state.get("FinishedAt")),
        stop_signal=str(config.get("StopSignal") or "SIGTERM"),
        test=_test(config.get("Healthcheck") or {}),
        published={
            port: (address, int(port.partition("/")[0]))
            if direct
            else (str(bindings[0]["HostIp"]), int(bindings[0]["HostPort"]))
            for port, bindings in published.items()
            if bindings
        },
        address=LOOPBACK if ours else address,
        host_network=ours,
    )


def _test(found: Mapping[str, Any]) -> HealthSpec | None:
    """A health command in Docker's form, with Docker's defaults."""
    kind, *words = found.get("Test") or ["NONE"]
    if kind not in ("CMD", "CMD-SHELL") or not words:
        return None
    return HealthSpec(
        test=tuple(words) if kind == "CMD" else ("/bin/sh", "-c", " ".join(words)),
        interval=int(found.get("Interval") or 30 * NANO) / NANO,
        timeout=int(found.get("Timeout") or 30 * NANO) / NANO,
        retries=int(found.get("Retries") or 3),
        start_period=int(found.get("StartPeriod") or 0) / NANO,
    )


def qualified(name: str) -> str:
    """An image's name with its registry, by Docker's rules: `docker.io/library/` unless the name says otherwise."""
    if _ID.fullmatch(name):
        return name
    first, slash, _ = name.partition("/")
    if slash and ("." in first or ":" in first or first == "localhost"):
        return name
    return f"docker.io/{name}" if slash else f"docker.io/library/{name}"
