"""Compose keys beyond the common ones, as plain settings. Pure; a value that cannot be honoured is a ValueError."""

from __future__ import annotations

import ipaddress
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from fractal.api.app import REACHING_OUT
from fractal_containers import reaching
from fractal_containers.labels import PREFIX


@dataclass(frozen=True, slots=True)
class Ulimit:
    """A resource limit of processes, by Compose's name: `nofile`."""

    name: str
    soft: int
    hard: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What a service asks for beyond the common. The defaults ask for nothing."""

    aliases: tuple[str, ...] = ()
    """Names beside its own by which the others in the network find it."""
    cap_add: tuple[str, ...] = ()
    cap_drop: tuple[str, ...] = ()
    cpu_shares: int = 0
    device_rules: tuple[tuple[str, str, str, str], ...] = ()
    """(`a`, `b` or `c`, major and minor number or `*`, some of `rwm`)."""
    devices: tuple[tuple[str, str, str], ...] = ()
    """(path on the device, path inside, some of `rwm`)."""
    dns: tuple[str, ...] = ()
    """Addresses of resolvers for names that are not the app's own."""
    dns_options: tuple[str, ...] = ()
    """As resolv.conf(5) has them: `ndots:1`."""
    dns_search: tuple[str, ...] = ()
    """Domains in which names without a dot are looked for; a dot alone: in none."""
    expose: tuple[tuple[int, str], ...] = ()
    extra_hosts: tuple[tuple[str, str], ...] = ()
    """(name, address or `host-gateway`); a name may have several."""
    gpus: tuple[tuple[int, tuple[str, ...]], ...] = ()
    """(how many, -1 for all; or 0 and their names)."""
    groups: tuple[str, ...] = ()
    host_cgroup: bool = False
    host_ipc: bool = False
    host_network: bool = False
    host_pid: bool = False
    host_uts: bool = False
    hostname: str = ""
    init: bool = False
    labels: Mapping[str, str] = field(default_factory=dict)
    log_bytes: int = 0
    """Size at which the log is rotated; 0: the device's."""
    log_files: int = 0
    """Files that are kept of it; 0: the device's."""
    mem_reservation: int = 0
    """Bytes."""
    mem_swap: int = 0
    """Bytes of memory and swap together; -1: as much swap as there is; 0: the engine's default."""
    no_health: bool = False
    """Not even the image's own check."""
    networks: tuple[tuple[str, bool], ...] = ()
    """(name in the app's file, whether it has no way out); none: the one that all services share."""
    no_network: bool = False
    oom_score_adj: int = 0
    platform: str = ""
    privileged: bool = False
    read_only: bool = False
    shares_with: str = ""
    """The service whose network it has."""
    shm_size: int = 0
    """Bytes; 0: the engine's default."""
    stdin_open: bool = False
    sysctls: Mapping[str, str] = field(default_factory=dict)
    tmpfs: Mapping[str, str] = field(default_factory=dict)
    """Path -> mount options."""
    ulimits: tuple[Ulimit, ...] = ()
    unprotected: tuple[str, ...] = ()
    """Protections that are off: `seccomp=unconfined`."""
    filtered: str = ""
    """A filter of system calls of the app's own, as JSON in the form of Docker's; "": the engine's."""

    @property
    def ties(self) -> tuple[str, ...]:
        """What it has of the device, as a device allows it by `allow`."""
        found = [f"device:{path}" for path, _, _ in self.devices] + [
            f"security-opt:{o}" for o in self.unprotected
        ]
        found += [f"security-opt:{reaching.FILTERED}"] if self.filtered else []
        found += [f"device-rule:{':'.join(rule)}" for rule in self.device_rules]
        named = (
            ("host-cgroup", self.host_cgroup),
            ("host-ipc", self.host_ipc),
            ("host-network", self.host_network),
            ("host-pid", self.host_pid),
            ("host-uts", self.host_uts),
            ("gpu", self.gpus),
        )
        return (*found, *(name for name, has in named if has))

    @property
    def modal(self) -> bool:
        """Whether it is in none of the app's networks by itself."""
        return self.no_network or self.host_network or bool(self.shares_with)

    def without_health(self) -> Options:
        """The same, with no check by the engine."""
        return replace(self, no_health=True)


Found = dict[str, Any]
"""Fields of `Options`."""

MAX_LOG_BYTES, MAX_LOG_FILES = 64 << 20, 10
"""What an app's logs may take of a device at most, per service."""
_CAPABILITY = re.compile(r"(?:CAP_)?((?!CAP_)[A-Z][A-Z0-9_]{1,30})")
"""Of its name nothing is left that an engine would take for the prefix: `CAP_CAP_SYS_ADMIN` is none."""
_SIZE = re.compile(r"(\d{1,15}(?:\.\d{1,9})?)\s*(b|[kmgt]i?b?)?", re.IGNORECASE)
_UNITS = {"b": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}
_HOST = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_.-]{0,251}[A-Za-z0-9_])?")
_ADDRESS = re.compile(r"[0-9A-Fa-f:.]{2,45}|host-gateway")
_SERVICE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}")
_NETWORK = re.compile(r"[^\0-\x1f]{1,200}")
MAX_NETWORKS = 16
MAX_EXPOSED = 1000
_EXPOSED = re.compile(r"(\d{1,5})(?:-(\d{1,5}))?(?:/(tcp|udp|sctp))?")
_RESOLVING = re.compile(r"[a-z][a-z0-9-]{1,40}(:\d{1,6})?")
_PLATFORM = re.compile(r"[a-z0-9]+(/[a-z0-9_]+(/[a-z0-9]+)?)?")
_TMPFS = re.compile(r"(rw|ro|noexec|exec|nosuid|nodev|size=\d+[kmgKMG%]?|mode=[0-7]{3,5}|uid=\d+|gid=\d+)")


def settings(options: Mapping[str, str], allowed: frozenset[str] = frozenset()) -> Options:
    """What a service's options ask for, with our defaults. Raises ValueError as `KEY: reason`."""
    found: Found = {}
    for key, text in sorted(options.items()):
        if key not in READERS:
            raise ValueError(f"{key}: not supported by this runtime")
        if "{secret." in text:
            raise ValueError(f"{key}: no place for a secret; pass it in `environment`")
        try:
            READERS[key](json.loads(text), found)
        except (ValueError, TypeError, AttributeError) as error:
            raise ValueError(f"{key}: {error}") from error
    return _restricted(Options(**found), allowed)


def _restricted(options: Options, allowed: frozenset[str]) -> Options:
    if options.privileged:
        if "ALL" not in allowed:
            raise ValueError(
                'privileged: lets the app reach the device itself; allow it by `capabilities = ["ALL"]` of the runtime'
            )
        return options
    add, drop = options.cap_add, options.cap_drop
    if refused := sorted((set(add) & REACHING_OUT) - {_capability(name) for name in allowed}):
        raise ValueError(
            f"cap_add: {refused[0]} lets the app reach the device itself; allow it by `capabilities` of the runtime"
        )
    if "NET_RAW" in (*add, *drop) or "ALL" in (*add, *drop):
        return options
    # Forging packets is nothing that an app needs unasked.
    return replace(options, cap_drop=(*drop, "NET_RAW"))


def _words(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise ValueError("expected text or a list of texts")
    return list(value)


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError("expected true or false")
    return value


def _matching(pattern: re.Pattern[str], value: Any, what: str) -> str:
    if not isinstance(value, str) or not pattern.fullmatch(value):
        raise ValueError(f"{str(value)[:60]!r} is not {what}")
    return value


def _capability(value: str) -> str:
    match = _CAPABILITY.fullmatch(value.upper())
    if match is None:
        raise ValueError(f"{value[:40]!r} is not a capability")
    return match[1]


def _read_aliases(value: Any, found: Found) -> None:
    found["aliases"] = tuple(_matching(_HOST, name, "a name in a network") for name in _words(value))


def _read_cap_add(value: Any, found: Found) -> None:
    found["cap_add"] = tuple(_capability(word) for word in _words(value))


def _read_cap_drop(value: Any, found: Found) -> None:
    found["cap_drop"] = tuple(_capability(word) for word in _words(value))


def _read_tmpfs(value: Any, found: Found) -> None:
    mounts = {}
    for word in _words(value):
        path, _, flags = word.partition(":")
        if not path.startswith("/") or ".." in path.split("/"):
            raise ValueError(f"{path[:60]!r} is not an absolute path")
        if wrong := [flag for flag in flags.split(",") if flag and not _TMPFS.fullmatch(flag)]:
            raise ValueError(f"{wrong[0][:40]!r} is not supported")
        mounts[path] = flags
    found["tmpfs"] = mounts


def _size(value: Any) -> int:
    match = _SIZE.fullmatch(str(value)) if isinstance(value, str | int) else None
    if match is None:
        raise ValueError(f"{str(value)[:40]!r} is not a size such as 64m")
    return int(float(match[1]) * _UNITS[(match[2] or "b")[0].lower()])


def _read_shm_size(value: Any, found: Found) -> None:
    found["shm_size"] = _size(value)


def _read_mem_reservation(value: Any, found: Found) -> None:
    found["mem_reservation"] = _size(value)


def _read_logging(value: Any, found: Found) -> None:
    if unknown := sorted(set(value) - {"driver", "options"}):
        raise ValueError(f"{unknown[0][:40]!r} is not supported")
    if value.get("driver", "json-file") not in ("json-file", "local"):
        raise ValueError(
            f"driver {str(value['driver'])[:40]!r} is not supported: logs are kept on the device"
        )
    given = value.get("options") or {}
    if unknown := sorted(set(given) - {"max-size", "max-file"}):
        raise ValueError(f"option {unknown[0][:40]!r} is not supported")
    files = str(given.get("max-file", 0))
    size = _size(given.get("max-size", 0))
    if not files.isdecimal() or int(files) > MAX_LOG_FILES or size > MAX_LOG_BYTES:
        raise ValueError(f"at most {MAX_LOG_FILES} files of {MAX_LOG_BYTES >> 20} MiB")
    found["log_bytes"], found["log_files"] = size, int(files)


def _read_dns(value: Any, found: Found) -> None:
    found["dns"] = tuple(str(ipaddress.ip_address(word)) for word in _words(value))


def _read_dns_search(value: Any, found: Found) -> None:
    found["dns_search"] = tuple(
        word if word == "." else _matching(_HOST, word, "a domain") for word in _words(value)
    )


def _read_dns_options(value: Any, found: Found) -> None:
    found["dns_options"] = tuple(_matching(_RESOLVING, word, "a resolver's option") for word in _words(value))


def _read_swap(value: Any, found: Found) -> None:
    found["mem_swap"] = -1 if str(value) == "-1" else _size(value)


def _read_privileged(value: Any, found: Found) -> None:
    found["privileged"] = _flag(value)


def _read_network_mode(value: Any, found: Found) -> None:
    if isinstance(value, str) and value.startswith("service:"):
        found["shares_with"] = _matching(_SERVICE, value.removeprefix("service:"), "a service")
        return
    if value not in ("none", "host"):
        raise ValueError(f"{str(value)[:40]!r} is not supported")
    found["no_network" if value == "none" else "host_network"] = True


def _read_networks(value: Any, found: Found) -> None:
    if not 1 <= len(value) <= MAX_NETWORKS:
        raise ValueError(f"expected 1 to {MAX_NETWORKS}")
    found["networks"] = tuple(
        (_matching(_NETWORK, name, "a network's name"), _flag(closed))
        for name, closed in sorted(value.items())
    )


def _read_ulimits(value: Any, found: Found) -> None:
    limits = []
    for name, item in value.items():
        _matching(re.compile(r"[a-z]{2,12}"), name, "a limit")
        both = {"soft": item, "hard": item} if isinstance(item, int) else item
        if set(both) != {"soft", "hard"} or not all(
            isinstance(n, int) and not isinstance(n, bool) and n >= -1 for n in both.values()
        ):
            raise ValueError(f"{name}: expected a number, or `soft` and `hard`")
        limits.append(Ulimit(name, both["soft"], both["hard"]))
    found["ulimits"] = tuple(limits)


def _read_hosts(value: Any, found: Found) -> None:
    pairs = value.items() if isinstance(value, dict) else [_split(word) for word in _words(value)]
    found["extra_hosts"] = tuple(
        (_matching(_HOST, name, "a host's name"), _matching(_ADDRESS, address, "an address"))
        for name, address in pairs
    )


def _split(word: str) -> tuple[str, str]:
    cut = min((i for i in (word.find("="), word.find(":")) if i > 0), default=len(word))
    return word[:cut], word[cut + 1 :].strip("[]")


def _read_labels(value: Any, found: Found) -> None:
    pairs = value.items() if isinstance(value, dict) else (word.partition("=")[::2] for word in _words(value))
    labels = {}
    for name, text in pairs:
        if name.startswith((PREFIX, "com.docker.", "io.docker.", "org.dockerproject.", "io.podman.")):
            raise ValueError(f"{name[:80]!r} is not the app's to set")
        if not isinstance(text, str | int | bool):
            raise TypeError(f"{name[:80]!r}: expected text")
        labels[name] = str(text).lower() if isinstance(text, bool) else str(text)
    found["labels"] = labels


def _read_expose(value: Any, found: Found) -> None:
    ports = []
    for item in value if isinstance(value, list) else [value]:
        match = _EXPOSED.fullmatch(str(item))
        first, last = (int(match[1]), int(match[2] or match[1])) if match is not None else (0, 0)
        if match is None or not 1 <= first <= last <= 65535 or last - first >= MAX_EXPOSED:
            raise ValueError(f"{str(item)[:40]!r} is not a port, or a range of at most {MAX_EXPOSED}")
        ports += [(number, match[3] or "tcp") for number in range(first, last + 1)]
    found["expose"] = tuple(ports)


def _read_init(value: Any, found: Found) -> None:
    found["init"] = _flag(value)


def _read_only(value: Any, found: Found) -> None:
    found["read_only"] = _flag(value)


def _read_hostname(value: Any, found: Found) -> None:
    found["hostname"] = _matching(_HOST, value, "a host's name")


def _read_platform(value: Any, found: Found) -> None:
    found["platform"] = _matching(_PLATFORM, value, "a platform such as linux/arm64")


def _read_disabled(value: Any, found: Found) -> None:
    found["no_health"] = _flag(value)


def _read_stdin(value: Any, found: Found) -> None:
    found["stdin_open"] = _flag(value)


READERS: Mapping[str, Callable[[Any, Found], None]] = {
    "aliases": _read_aliases,
    "cap_add": _read_cap_add,
    "cap_drop": _read_cap_drop,
    "cgroup": reaching.read_cgroup,
    "cpu_shares": reaching.read_shares,
    "device_cgroup_rules": reaching.read_rules,
    "devices": reaching.read_devices,
    "dns": _read_dns,
    "dns_opt": _read_dns_options,
    "dns_search": _read_dns_search,
    "expose": _read_expose,
    "extra_hosts": _read_hosts,
    "gpus": reaching.read_gpus,
    "group_add": reaching.read_groups,
    "healthcheck.disable": _read_disabled,
    "hostname": _read_hostname,
    "init": _read_init,
    "ipc": reaching.read_ipc,
    "labels": _read_labels,
    "logging": _read_logging,
    "mem_reservation": _read_mem_reservation,
    "memswap_limit": _read_swap,
    "network_mode": _read_network_mode,
    "networks": _read_networks,
    "oom_score_adj": reaching.read_oom,
    "pid": reaching.read_pid,
    "platform": _read_platform,
    "privileged": _read_privileged,
    "read_only": _read_only,
    "security_opt": reaching.read_unprotected,
    "shm_size": _read_shm_size,
    "stdin_open": _read_stdin,
    "sysctls": reaching.read_sysctls,
    "tmpfs": _read_tmpfs,
    "ulimits": _read_ulimits,
    "uts": reaching.read_uts,
}
"""Every option that is honoured."""
