"""`volumes`, `configs` and `secrets` at the top of a Compose file."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Mapping

from fractal.manifest import keys, shares
from fractal.manifest.document import Table
from fractal.manifest.env_files import brought, outside, sought
from fractal.manifest.mounts import rooted
from fractal.manifest.values import Where


def volumes(where: Where | None) -> tuple[tuple[str, ...], dict[str, str], dict[str, dict[str, str]]]:
    """Names of folders of the app; volumes that are folders of the device -> path; and what the engine mounts -> how."""
    found, devices, engine = [], dict[str, str](), dict[str, dict[str, str]]()
    for name, item in where.table().items() if where is not None else ():
        table = item.table(frozenset({"driver", "driver_opts", *keys.VOLUME_IDLE}), extensions=True)
        for key in keys.VOLUME_IDLE.keys() & table.keys():
            table[key].idle(keys.VOLUME_IDLE[key])
        options = table["driver_opts"].table() if "driver_opts" in table else {}
        driver = table["driver"].text() if "driver" in table else ""
        if driver == "local-persist" and "mountpoint" in options:
            _at(name, options["mountpoint"], devices, engine)  # the plugin only binds what is there
            continue
        if driver not in ("local", ""):
            table["driver"].wrong(
                f"not supported: mount it on the device, and write its path in `volumes` in place of {name[:40]!r}"
            )
            found.append(name)
            continue
        texts = {key: option.loose_text() for key, option in options.items()}
        if texts.get("type", "none") in ("none", "bind") and {"bind", "rbind"} & {
            *texts.get("o", "").split(",")
        }:
            if reason := shares.binding(texts):
                table["driver_opts"].wrong(reason)
            _at(name, options.get("device"), devices, engine)
            continue
        if any(option.incomplete() for option in options.values()):
            engine[name] = {}
            continue
        if texts:
            if "volume" in texts:
                options["volume"].wrong("not supported")
            if reason := shares.mounting(texts):
                table["driver_opts"].wrong(reason)
            engine[name] = {**texts, "volume": name}
            continue
        found.append(name)
    return tuple(found), devices, engine


def _at(name: str, where: Where | None, devices: dict[str, str], engine: dict[str, dict[str, str]]) -> None:
    """Note a volume that is a folder of the device; what waits for a value is none yet."""
    place = rooted(where) if where is not None else ""
    if where is not None and not place and where.incomplete():
        engine[name] = {}
    else:
        devices[name] = place


def texts(where: Where | None) -> dict[str, str]:
    """`configs` or `secrets`: name -> text, in which values stay sealed."""
    found = {}
    for name, item in where.table().items() if where is not None else ():
        known = frozenset({"file", "environment", "content", "external", "name", "labels", "template_driver"})
        table = item.table(known, extensions=True)
        for key in ("name", "labels", "template_driver"):
            if key in table:
                table[key].idle("it is for a cluster's store of such texts")
        found[name] = _text(item, table)
    return found


def _text(where: Where, table: Mapping[str, Where]) -> str:
    if "content" in table:
        return table["content"].sealable()
    if "environment" in table:
        name = table["environment"].text()
        if not where.has(name):
            table["environment"].need(f"--set {name}=VALUE", f"{name} has no value")
            return ""
        return f"{{secret.{name}}}"
    if "file" in table:
        return _file(table["file"])
    if "external" in table and (isinstance(table["external"].node, Table) or table["external"].flag()):
        return _external(table["external"])
    where.wrong("needs `file`, `environment` or `content`")
    return ""


def _external(where: Where) -> str:
    """What a cluster would have in a store of its own comes from whoever installs it, as a value of that name."""
    own = where.key.split(".")[1]
    name = re.sub(r"[^A-Za-z0-9_]", "_", own)
    name = f"_{name}" if name[:1].isdecimal() else name
    if not where.has(name):
        where.need(f"--set {name}=VALUE", f"{own[:80]} is in a cluster's store; a file goes by --set-file")
        return ""
    return f"{{secret.{name}}}"


def _file(where: Where) -> str:
    if where.incomplete():
        return ""
    path = brought(where.text())
    if outside(path):
        where.wrong(f"{path[:80]!r} leads out of the manifest's folder")
    elif (path := posixpath.normpath(path)) in where.given.files:
        return where.given.files[path]
    else:
        where.need(f"file {path}", sought(path))
    return ""
