"""What of a service reaches out to the device, and so has to be allowed, each by its name."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from fractal.api import canonical
from fractal.api.app import REACHING_OUT, REACHING_OUT_THERE, ServiceSpec, in_device_network
from fractal.manifest.document import Items, Scalar
from fractal.manifest.values import Where

_SHARED = {
    "pid": "it sees, and can reach, what others on the device run",
    "ipc": "it sees, and can reach, what others on the device run",
    "uts": "it has the device's name, and with a capability can change it",
    "cgroup": "it sees how the device's processes are counted",
}
"""Namespace -> what it means to have the device's own."""
_RULE = re.compile(r"[abc] (\d{1,7}|\*):(\d{1,7}|\*) [rwm]{1,3}")
UNPROTECTED = frozenset({"seccomp=unconfined", "apparmor=unconfined", "label=disable"})


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


def _devices(table: Mapping[str, Where], found: Mapping[str, str]) -> None:
    for item in table["devices"].items() if "devices" in found else ():
        if item.incomplete():
            continue
        path = item.text().partition(":")[0] if isinstance(item.node, Scalar) else ""
        if not path.startswith("/dev/") or ".." in path.split("/"):
            item.wrong("expected a device's path such as /dev/dri")
        else:
            item.allowed(f"device:{path}", "it is the device's, and another one may have none")
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
        return {"ids": [item.text() for item in table["device_ids"].items()]}
    if "count" not in table or table["count"].incomplete() or table["count"].text() in ("all", "-1"):
        return {"count": -1}
    return {"count": table["count"].integer(1, 64)}


def _protection(table: Mapping[str, Where], found: dict[str, str]) -> None:
    kept = []
    for item in table["security_opt"].items() if "security_opt" in found else ():
        name = item.text().replace(":", "=", 1)
        if name in ("no-new-privileges", "no-new-privileges=true"):
            continue  # so anyway
        if name not in UNPROTECTED:
            item.wrong(
                f"not supported; expected no-new-privileges or one of {', '.join(sorted(UNPROTECTED))}"
            )
            continue
        item.allowed(f"security-opt:{name}", "without this protection a hole in the kernel is easier to use")
        kept.append(name)
    found.pop("security_opt", None)
    if kept:
        found["security_opt"] = canonical.encode({"": kept})[4:-1].decode()
