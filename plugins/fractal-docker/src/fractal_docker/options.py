"""Compose keys beyond the common ones, as settings of the engine. Pure; a value that cannot be honoured is a ValueError."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from fractal_docker.labels import PREFIX

Settings = dict[str, Any]
"""`host`: keywords of the engine's host configuration; `container`: keywords of the container itself."""

REACHING_OUT = frozenset(
    {"ALL", "SYS_ADMIN", "SYS_MODULE", "SYS_RAWIO", "SYS_BOOT", "SYS_TIME", "SYS_PTRACE", "DAC_READ_SEARCH"}
    | {
        "BPF",
        "PERFMON",
        "MAC_ADMIN",
        "MAC_OVERRIDE",
        "SYSLOG",
        "WAKE_ALARM",
        "BLOCK_SUSPEND",
        "AUDIT_CONTROL",
    }
)
"""With these a program inside can reach the device, other apps, or the guard."""
_CAPABILITY = re.compile(r"(?:CAP_)?([A-Z][A-Z0-9_]{1,30})")
_SIZE = re.compile(r"(\d{1,15})\s*(b|k|kb|kib|m|mb|mib|g|gb|gib)?", re.IGNORECASE)
_UNITS = {"b": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30}
_HOST = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_.-]{0,251}[A-Za-z0-9_])?")
_ADDRESS = re.compile(r"[0-9A-Fa-f:.]{2,45}|host-gateway")
_PLATFORM = re.compile(r"[a-z0-9]+(/[a-z0-9_]+(/[a-z0-9]+)?)?")
_TMPFS = re.compile(r"(rw|ro|noexec|exec|nosuid|nodev|size=\d+[kmgKMG%]?|mode=[0-7]{3,4}|uid=\d+|gid=\d+)")


def settings(options: Mapping[str, str], allowed: frozenset[str] = frozenset()) -> Settings:
    """The engine's settings for a service's options, with our defaults. Raises ValueError as `KEY: reason`."""
    found: Settings = {"host": {}, "container": {}}
    for key, text in sorted(options.items()):
        if key not in READERS:
            raise ValueError(f"{key}: not supported by this runtime")
        if "{secret." in text:
            raise ValueError(f"{key}: no place for a secret; pass it in `environment`")
        try:
            READERS[key](json.loads(text), found)
        except (ValueError, TypeError, AttributeError) as error:
            raise ValueError(f"{key}: {error}") from error
    _capabilities(found["host"], allowed)
    return found


def _capabilities(host: dict[str, Any], allowed: frozenset[str]) -> None:
    add = host.setdefault("cap_add", [])
    if refused := sorted((set(add) & REACHING_OUT) - {_capability(name) for name in allowed}):
        raise ValueError(
            f"cap_add: {refused[0]} lets the app reach the device itself; allow it by `capabilities` of [runtime.docker]"
        )
    drop = host.setdefault("cap_drop", [])
    if "NET_RAW" not in (*add, *drop) and "ALL" not in (*add, *drop):
        drop.append("NET_RAW")  # forging packets is nothing that an app needs unasked


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
    match = _CAPABILITY.fullmatch(value)
    if match is None:
        raise ValueError(f"{value[:40]!r} is not a capability")
    return match[1]


def _read_cap_add(value: Any, found: Settings) -> None:
    found["host"]["cap_add"] = [_capability(word) for word in _words(value)]


def _read_cap_drop(value: Any, found: Settings) -> None:
    found["host"]["cap_drop"] = [_capability(word) for word in _words(value)]


def _read_tmpfs(value: Any, found: Settings) -> None:
    mounts = {}
    for word in _words(value):
        path, _, flags = word.partition(":")
        if not path.startswith("/") or ".." in path.split("/"):
            raise ValueError(f"{path[:60]!r} is not an absolute path")
        if wrong := [flag for flag in flags.split(",") if flag and not _TMPFS.fullmatch(flag)]:
            raise ValueError(f"{wrong[0][:40]!r} is not supported")
        mounts[path] = flags
    found["host"]["tmpfs"] = mounts


def _read_size(value: Any, found: Settings) -> None:
    match = _SIZE.fullmatch(str(value)) if isinstance(value, str | int) else None
    if match is None:
        raise ValueError(f"{str(value)[:40]!r} is not a size such as 64m")
    found["host"]["shm_size"] = int(match[1]) * _UNITS[(match[2] or "b")[0].lower()]


def _read_ulimits(value: Any, found: Settings) -> None:
    limits = []
    for name, item in value.items():
        _matching(re.compile(r"[a-z]{2,12}"), name, "a limit")
        both = {"soft": item, "hard": item} if isinstance(item, int) else item
        if set(both) != {"soft", "hard"} or not all(
            isinstance(n, int) and not isinstance(n, bool) and n >= -1 for n in both.values()
        ):
            raise ValueError(f"{name}: expected a number, or `soft` and `hard`")
        limits.append({"Name": name, "Soft": both["soft"], "Hard": both["hard"]})
    found["host"]["ulimits"] = limits


def _read_hosts(value: Any, found: Settings) -> None:
    pairs = value.items() if isinstance(value, dict) else [_split(word) for word in _words(value)]
    found["host"]["extra_hosts"] = {
        _matching(_HOST, name, "a host's name"): _matching(_ADDRESS, address, "an address")
        for name, address in pairs
    }


def _split(word: str) -> tuple[str, str]:
    cut = min((i for i in (word.find("="), word.find(":")) if i > 0), default=len(word))
    return word[:cut], word[cut + 1 :].strip("[]")


def _read_labels(value: Any, found: Settings) -> None:
    pairs = value.items() if isinstance(value, dict) else (word.partition("=")[::2] for word in _words(value))
    labels = {}
    for name, text in pairs:
        if name.startswith((PREFIX, "com.docker.", "io.docker.", "org.dockerproject.")):
            raise ValueError(f"{name[:80]!r} is not the app's to set")
        if not isinstance(text, str | int | bool):
            raise TypeError(f"{name[:80]!r}: expected text")
        labels[name] = str(text).lower() if isinstance(text, bool) else str(text)
    found["container"]["labels"] = labels


def _read_expose(value: Any, found: Settings) -> None:
    ports = []
    for item in value if isinstance(value, list) else [value]:
        number, _, protocol = str(item).partition("/")
        if not number.isdecimal() or not 1 <= int(number) <= 65535 or protocol not in ("", "tcp", "udp"):
            raise ValueError(f"{str(item)[:40]!r} is not a port")
        ports.append((int(number), protocol or "tcp"))
    found["container"]["expose"] = ports


def _read_init(value: Any, found: Settings) -> None:
    found["host"]["init"] = _flag(value)


def _read_only(value: Any, found: Settings) -> None:
    found["host"]["read_only"] = _flag(value)


def _read_hostname(value: Any, found: Settings) -> None:
    found["container"]["hostname"] = _matching(_HOST, value, "a host's name")


def _read_platform(value: Any, found: Settings) -> None:
    found["container"]["platform"] = _matching(_PLATFORM, value, "a platform such as linux/arm64")


def _read_disabled(value: Any, found: Settings) -> None:
    found["container"]["no_health"] = _flag(value)


READERS: Mapping[str, Callable[[Any, Settings], None]] = {
    "cap_add": _read_cap_add,
    "cap_drop": _read_cap_drop,
    "expose": _read_expose,
    "extra_hosts": _read_hosts,
    "healthcheck.disable": _read_disabled,
    "hostname": _read_hostname,
    "init": _read_init,
    "labels": _read_labels,
    "platform": _read_platform,
    "read_only": _read_only,
    "shm_size": _read_size,
    "tmpfs": _read_tmpfs,
    "ulimits": _read_ulimits,
}
"""Every option that is honoured."""
