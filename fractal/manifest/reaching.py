"""What of a service reaches out to the device, and so has to be allowed, each by its name."""

from __future__ import annotations

import json
import posixpath
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

from fractal.api import canonical
from fractal.api.app import REACHING_OUT, REACHING_OUT_THERE, ServiceSpec, in_device_network
from fractal.manifest.document import Items, Problems, Scalar
from fractal.manifest.env_files import FILTER, brought, outside, sought
from fractal.manifest.values import Where

_SHARED = {
    "pid": "it sees, and can reach, what others on the device run",
    "ipc": "it sees, and can reach, what others on the device run",
    "uts": "it has the device's name, and with a capability can change it",
    "cgroup": "it sees how the device's processes are counted",
}
"""Namespace -> what it means to have the device's own."""
_RULE = re.compile(r"[abc] (\d{1,7}|\*):(\d{1,7}|\*) [rwm]{1,3}")
_CDI = re.compile(r"nvidia\.com/gpu=([A-Za-z0-9:-]{1,64})")
"""A GPU by its name in the Container Device Interface."""
UNPROTECTED = frozenset({"seccomp=unconfined", "apparmor=unconfined", "label=disable"})
FILTERED = "seccomp=profile"
"""What stands for a filter of the app's own where it has to be allowed."""
ANYWAY = frozenset(
    {
        *("no-new-privileges", "no-new-privileges=true"),
        *("seccomp=builtin", "apparmor=docker-default", "apparmor=containers-default"),
    }
)
PRIVILEGES = "programs inside gain no privileges by files: run what needs them as root, by `user`"
LABELS = "SELinux labels are the engine's own; `label=disable` can be allowed"
MAX_FILTER = 1 << 17
"""Characters of a filter of system calls; Docker's own has some 15,000."""
LISTENING = frozenset({"listenerpath", "listenermetadata"})
"""Keys of a filter, in small letters, by which an engine hands system calls to whoever listens on a path of the device."""


def reach(table: Mapping[str, Where], found: dict[str, str]) -> None:
    """Look through a service's options; those that ask for nothing are taken out of `found`."""
    if found.get("privileged") == "true":
        table["privileged"].allowed("privileged", "it can do all that the device can")
    for key, why in _SHARED.items():
        if key in found and (mode := table[key].text()) == "host":
            table[key].allowed(f"host-{key}", why)
        elif key in found:
            del found[key]
            if mode not in ("", "private", "shareable"):
                table[key].wrong(f"{mode[:40]!r} is not supported: services do not look into each other")
    if "uts" in found and "hostname" in found:
        table["uts"].wrong("and `hostname`: the device's own name is not the app's to set")
    _devices(table, found)
    if "cap_add" in found:
        _capabilities(table["cap_add"], REACHING_OUT, "with it a program can reach the device itself")
    _protection(table, found)


def reach_there(services: Sequence[ServiceSpec], places: Mapping[str, Where]) -> None:
    """Look through the capabilities of services whose network is the device's own, which only all of them together tell."""
    there = in_device_network(services)
    for one in services:
        if one.name in there and "cap_add" in one.options:
            added = places[one.name].table()["cap_add"]
            _capabilities(
                added,
                REACHING_OUT_THERE,
                "in the device's own network a program can pass by what keeps apps apart with it",
            )


def _capabilities(where: Where, asking: frozenset[str], why: str) -> None:
    for item in where.items():
        name = item.text().upper().removeprefix("CAP_")
        if name in asking:
            item.allowed(f"capability:{name}", why)


def _device(where: Where) -> str:
    """SOURCE:TARGET:PERMISSIONS, as far as it says; "" if it waits for a value."""
    if isinstance(where.node, Scalar):
        return "" if where.incomplete() else where.text()
    table = where.table(frozenset({"source", "target", "permissions"}))
    if "source" not in table:
        where.wrong("expected a device's path such as /dev/dri")
        return ""
    parts = [table[key] for key in ("source", "target", "permissions") if key in table]
    waiting = [part for part in parts if part.incomplete()]
    return "" if waiting else ":".join(part.text() for part in parts)


def _with_mode(text: str) -> str:
    """A device whose permissions are in the order that engines have them; "" if they are none. `ro`, as volumes have it, is `r`."""
    text = text.rstrip(":")
    head, colon, last = text.rpartition(":")
    if not colon or last.startswith("/"):
        return text
    mode = "r" if last == "ro" else "".join(letter for letter in "rwm" if letter in last)
    return f"{head}:{mode}" if mode and sorted(mode) == sorted("r" if last == "ro" else last) else ""


def _devices(table: Mapping[str, Where], found: dict[str, str]) -> None:
    devices = []
    for item in table["devices"].items() if "devices" in found else ():
        text = _device(item)
        path = text.partition(":")[0]
        if not text or _CDI.fullmatch(text):
            continue  # waits for a value, or is a GPU
        if not path.startswith("/dev/") or ".." in path.split("/"):
            item.wrong("expected a device's path such as /dev/dri")
        elif not (text := _with_mode(text)):
            item.wrong("expected PATH, PATH:INSIDE or PATH:INSIDE:MODE, where MODE is some of `rwm`")
        else:
            item.allowed(f"device:{path}", "it is the device's, and another one may have none")
            devices.append(text)
    found.pop("devices", None)
    if devices:
        found["devices"] = canonical.encode({"": devices})[4:-1].decode()
    for item in table["device_cgroup_rules"].items() if "device_cgroup_rules" in found else ():
        if item.incomplete():
            continue
        if _RULE.fullmatch(item.text()):
            name = item.text().replace(" ", ":")
            item.allowed(
                f"device-rule:{name}", "such devices are the device's, and another one may have none"
            )
        else:
            item.wrong("expected a kind of devices such as `c 189:* rmw`")


def gpus(table: Mapping[str, Where], reserved: Where | None) -> str:
    """`gpus`, `deploy.resources.reservations.devices` and `runtime: nvidia` as one option; "" without any."""
    wanted: list[dict[str, object]] = []
    where = table.get("gpus") or reserved
    if where is not None and isinstance(where.node, Items):
        wanted += [_gpu(item) for item in where.items()]
    elif where is not None:
        where.choice(frozenset({"all"}))
        wanted.append({"count": -1})
    elif "runtime" in table and table["runtime"].text() == "nvidia":
        where = table["runtime"]
        wanted.append({"count": -1})
    for item in table["devices"].items() if "devices" in table else ():
        if match := _CDI.fullmatch(_device(replace(item, problems=Problems("")))):
            where = item
            wanted.append(_called([match[1]]))
    if where is None or not wanted:
        return ""
    where.allowed("gpu", "it is the device's, and another one may have none")
    return canonical.encode({"": wanted})[4:-1].decode()


def _gpu(where: Where) -> dict[str, object]:
    known = frozenset({"driver", "count", "device_ids", "capabilities", "options"})
    table = where.table(known)
    if "driver" in table:
        table["driver"].choice(frozenset({"nvidia", "cdi", ""}))
    if "options" in table:
        table["options"].wrong("not supported")
    words = [item.text() for item in table["capabilities"].items()] if "capabilities" in table else ["gpu"]
    if not set(words) & {"gpu", "nvidia", "compute", "video", "graphics", "utility", "display"}:
        where.wrong("only GPUs can be reserved: `capabilities: [gpu]`")
    if "device_ids" in table:
        return _called([item.text() for item in table["device_ids"].items()])
    if "count" not in table or table["count"].incomplete() or table["count"].text() in ("all", "-1"):
        return {"count": -1}
    return {"count": table["count"].integer(1, 64)}


def _called(names: list[str]) -> dict[str, object]:
    """GPUs by their names, with or without what the Container Device Interface has before them."""
    plain = [match[1] if (match := _CDI.fullmatch(name)) else name for name in names]
    return {"count": -1} if "all" in plain else {"ids": plain}


def _filter(where: Where, path: str) -> str:
    """A filter of system calls that is beside the manifest, as the engines take it; "" if there is none to take yet."""
    path = brought(path)
    if outside(path):
        where.wrong(f"{path[:80]!r} leads out of the manifest's folder")
        return ""
    path = posixpath.normpath(path)
    if path not in where.given.files:
        where.need(f"file {path}", sought(path))
        return ""
    text = where.given.files[path]
    try:
        profile = json.loads(text) if len(text) <= MAX_FILTER else None
    except (ValueError, RecursionError):
        profile = None
    if not isinstance(profile, dict) or not isinstance(profile.get("defaultAction"), str):
        where.wrong(f"{path[:80]!r} is no filter of system calls in JSON, of at most {MAX_FILTER} characters")
        return ""
    if LISTENING & {key.lower() for key in profile}:
        where.wrong(f"{path[:80]!r} has a program of the device decide (`listenerPath`): not supported")
        return ""
    where.allowed(
        f"security-opt:{FILTERED}", "a filter of its own may let through what the engine's would not"
    )
    return f"seccomp={json.dumps(profile, separators=(',', ':'), ensure_ascii=True)}"


def _protection(table: Mapping[str, Where], found: dict[str, str]) -> None:
    kept: list[str] = []
    for item in table["security_opt"].items() if "security_opt" in found else ():
        if item.incomplete():
            continue
        name = item.text().replace(":", "=", 1)
        if name in ANYWAY:
            continue
        if name == "no-new-privileges=false":
            item.idle(PRIVILEGES)
            continue
        if name.startswith("label=") and name not in UNPROTECTED:
            item.idle(LABELS)
            continue
        if match := FILTER.fullmatch(name):
            if any(one.startswith("seccomp=") for one in kept):
                item.wrong("and another `seccomp`: only one of them can be taken")
            elif text := _filter(item, match[1]):
                kept.append(text)
            continue
        if name not in UNPROTECTED:
            item.wrong(
                f"not supported; expected no-new-privileges, seccomp=FILE, or one of {', '.join(sorted(UNPROTECTED))}"
            )
            continue
        item.allowed(f"security-opt:{name}", "without this protection a hole in the kernel is easier to use")
        kept.append(name)
    found.pop("security_opt", None)
    if kept:
        found["security_opt"] = canonical.encode({"": kept})[4:-1].decode()
