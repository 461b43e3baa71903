"""Compose keys about the kernel and the device, as plain settings. Pure; what cannot be honoured is a ValueError."""

from __future__ import annotations

import json
import re
from typing import Any

_DEVICE = re.compile(r"/dev(/[A-Za-z0-9_.+-]+){1,4}")
_RULE = re.compile(r"([abc]) (\d{1,7}|\*):(\d{1,7}|\*) ([rwm]{1,3})")
_GPU = re.compile(r"[A-Za-z0-9][A-Za-z0-9:-]{0,63}")
_GROUP = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,31}")
_SYSCTL = re.compile(
    r"net\.[A-Za-z0-9_./-]{1,100}|kernel\.(msg|sem|shm)[a-z_]{0,30}|fs\.mqueue\.[a-z_]{1,30}"
)
"""What the kernel keeps apart for each container, namespaces(7)."""
_SYSCTL_VALUE = re.compile(r"[0-9A-Za-z \t.,-]{1,100}")
UNPROTECTED = frozenset({"seccomp=unconfined", "apparmor=unconfined", "label=disable"})
FILTERED = "seccomp=profile"
"""What stands for a filter of the app's own where it has to be allowed."""
MAX_FILTER = 1 << 17
"""Characters of one; Docker's own has some 15,000."""
LISTENING = frozenset({"listenerpath", "listenermetadata"})
"""Keys of one, in small letters, by which an engine hands system calls to whoever listens on a path of the device."""
Found = dict[str, Any]
"""Fields of `options.Options`."""


def read_sysctls(value: Any, found: Found) -> None:
    """`sysctls`."""
    pairs = value.items() if isinstance(value, dict) else (str(word).partition("=")[::2] for word in value)
    settings = {str(name): str(text) for name, text in pairs}
    for name, text in settings.items():
        if not _SYSCTL.fullmatch(name):
            raise ValueError(f"{name[:60]!r} is a setting of the whole device, not of a container")
        if not _SYSCTL_VALUE.fullmatch(text):
            raise ValueError(f"{text[:60]!r} is no value")
    found["sysctls"] = settings


def read_devices(value: Any, found: Found) -> None:
    """`devices`."""
    found["devices"] = tuple(_device(str(word)) for word in value)


def _device(word: str) -> tuple[str, str, str]:
    path, _, rest = word.partition(":")
    inside, _, mode = rest.partition(":")
    if inside and not inside.startswith("/"):
        inside, mode = "", inside
    inside, mode = inside or path, mode or "rwm"
    if not _DEVICE.fullmatch(path) or not _DEVICE.fullmatch(inside) or ".." in f"{path}/{inside}".split("/"):
        raise ValueError(f"{word[:60]!r} is not a device such as /dev/dri")
    if not re.fullmatch(r"r?w?m?", mode):
        raise ValueError(f"{mode[:10]!r} is not some of rwm")
    return path, inside, mode


def read_rules(value: Any, found: Found) -> None:
    """`device_cgroup_rules`."""
    matches = [_RULE.fullmatch(str(word)) for word in value]
    if not all(matches):
        raise ValueError("expected kinds of devices such as c 189:* rmw")
    found["device_rules"] = tuple((m[1], m[2], m[3], m[4]) for m in matches if m is not None)


def read_gpus(value: Any, found: Found) -> None:
    """`gpus`: each a number of GPUs, -1 for all, or their names."""
    wanted = []
    for item in value:
        count, ids = item.get("count", 0), tuple(map(str, item.get("ids", ())))
        if not isinstance(count, int) or not -1 <= count <= 64 or bool(count) == bool(ids):
            raise ValueError("expected a number of GPUs or their names")
        if wrong := [name for name in ids if not _GPU.fullmatch(name)]:
            raise ValueError(f"{wrong[0][:40]!r} is not a GPU")
        wanted.append((count, ids))
    found["gpus"] = tuple(wanted)


def read_groups(value: Any, found: Found) -> None:
    """`group_add`."""
    groups = tuple(str(word) for word in (value if isinstance(value, list) else [value]))
    if wrong := [name for name in groups if not _GROUP.fullmatch(name)]:
        raise ValueError(f"{wrong[0][:40]!r} is not a group")
    found["groups"] = groups


def read_shares(value: Any, found: Found) -> None:
    """`cpu_shares`."""
    if not re.fullmatch(r"[0-9]{1,6}", str(value)) or int(value) > 262144:
        raise ValueError("expected a number from 0, which asks for nothing, to 262144")
    found["cpu_shares"] = max(2, int(value)) if int(value) else 0  # the kernel knows none below 2


def read_oom(value: Any, found: Found) -> None:
    """`oom_score_adj`."""
    if not re.fullmatch(r"[0-9]{1,4}", str(value)) or int(value) > 1000:
        raise ValueError("expected a number from 0 to 1000; below 0 others would be ended for it")
    found["oom_score_adj"] = int(value)


def read_unprotected(value: Any, found: Found) -> None:
    """`security_opt`, without what is so anyway."""
    words = [str(word) for word in value] if isinstance(value, list) else [""]
    filters = [word.removeprefix("seccomp=") for word in words if word.startswith("seccomp={")]
    others = [word for word in words if not word.startswith("seccomp={")]
    if not UNPROTECTED.issuperset(others) or len(filters) > 1 or (filters and "seccomp=unconfined" in others):
        raise ValueError(f"expected some of {', '.join(sorted(UNPROTECTED))}, or one filter of system calls")
    found["unprotected"] = tuple(others)
    found["filtered"] = _filter(filters[0]) if filters else ""


def _filter(text: str) -> str:
    try:
        profile = json.loads(text) if len(text) <= MAX_FILTER else None
    except RecursionError:
        profile = None
    if not isinstance(profile, dict) or not isinstance(profile.get("defaultAction"), str):
        raise TypeError(f"the filter of system calls is none, or longer than {MAX_FILTER} characters")
    if LISTENING & {key.lower() for key in profile}:
        raise ValueError("a program of the device that decides on system calls is not supported")
    return text


def read_pid(value: Any, found: Found) -> None:
    """`pid`."""
    found["host_pid"] = _host(value)


def read_ipc(value: Any, found: Found) -> None:
    """`ipc`."""
    found["host_ipc"] = _host(value)


def read_uts(value: Any, found: Found) -> None:
    """`uts`."""
    found["host_uts"] = _host(value)


def read_cgroup(value: Any, found: Found) -> None:
    """`cgroup`."""
    found["host_cgroup"] = _host(value)


def _host(value: Any) -> bool:
    if value != "host":
        raise ValueError(f"{str(value)[:40]!r} is not supported")
    return True
