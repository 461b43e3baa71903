"""`volumes` of a Compose service. Every path is a folder of the app's own, or needs to be allowed by name, or is refused."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from fractal.api.app import Mount
from fractal.manifest import rules
from fractal.manifest.document import Scalar
from fractal.manifest.env_files import ABOVE, beside, sought
from fractal.manifest.merging import DRIVE, target
from fractal.manifest.values import Where

_MOUNT_KEYS = frozenset({"type", "source", "target", "read_only", "bind", "volume", "tmpfs", "consistency"})
_ROOT = re.compile(r"\$(?:\{([A-Za-z_][A-Za-z0-9_]*)\}|([A-Za-z_][A-Za-z0-9_]*))")
_OWN = re.compile(r"(APP_?)?DATA(_?(DIR|PATH|ROOT|FOLDER))?", re.IGNORECASE)
"""Variables by which app stores name the app's own folder."""
_CASA = re.compile(r"/DATA/AppData(?=/|$)")
_UNFIT = re.compile(r"[^A-Za-z0-9_.-]")
_FILE = re.compile(
    r"\.(conf|cnf|cfg|ini|ya?ml|json|toml|sh|sql|xml|env|properties|py|js|txt|pem|crt|key|html|tmpl)$"
)
FLAGS = frozenset({"ro", "rw", "z", "Z", "U", "nocopy", "cached", "delegated", "consistent", "bind", "rbind"})
PROPAGATION = frozenset({"shared", "rshared", "slave", "rslave", "private", "rprivate"})
BACK = "\\"
COVERED = "another volume is at the same place, and the last one counts"
WINDOWS = "a folder of the app's own stands for a path of Windows"
CLOCK = frozenset({"/etc/localtime", "/etc/timezone"})
NO_CLOCK = "the device's time zone is not the app's, which may run on another one: set TZ in `environment`"


@dataclass(slots=True)
class Mounted:
    """What the volumes of a service come to."""

    mounts: list[Mount] = field(default_factory=list)
    files: dict[str, str] = field(default_factory=dict)
    """Path inside -> text of a file beside the manifest."""
    tmpfs: list[str] = field(default_factory=list)
    """As the key `tmpfs` has them."""
    engine: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """Volumes that the engine mounts."""


def mounted(
    where: Where, service: str, devices: Mapping[str, str], engine: Mapping[str, Mapping[str, str]]
) -> Mounted:
    """Every mount of a service. `devices` are top-level volumes that are folders of the device, `engine` those that it mounts."""
    found, items = Mounted(engine=engine), where.items()
    places = [target(item.node) or index for index, item in enumerate(items)]
    last = {place: index for index, place in enumerate(places)}
    for index, item in enumerate(items):
        if last[places[index]] != index:
            item.idle(COVERED)
        elif isinstance(item.node, Scalar):
            _short(item, service, devices, found)
        else:
            _long(item, service, devices, found)
    return found


def _short(where: Where, service: str, devices: Mapping[str, str], found: Mounted) -> None:
    if not isinstance(where.node, Scalar) or where.node.value is None:
        where.wrong("expected text")
        return
    parts = _unixlike(where, rooted(where)).split(":")
    if len(parts) == 1:
        _place(where, _anonymous(service, parts[0]), parts[0], False, devices, found)
        return
    if len(parts) > 3:
        where.wrong("expected SOURCE:/TARGET or SOURCE:/TARGET:ro")
        return
    flags = {flag for flag in parts[2].split(",") if flag} if len(parts) == 3 else set()
    if unknown := sorted(flags - FLAGS - PROPAGATION):
        where.wrong(f"option {unknown[0][:40]!r} is not supported")
    shared = bool(flags & {"shared", "rshared"})
    _place(where, parts[0], parts[1], "ro" in flags, devices, found, shared=shared)


def _unixlike(where: Where, text: str) -> str:
    """A source as Windows has it, `C:\\Users\\x` or `.\\x`, as the folder of the app's own that stands for it."""
    if match := DRIVE.match(text):
        where.idle(WINDOWS)
        source, colon, rest = text[2:].partition(":")
        return f"./{match[1].lower()}{source.replace(BACK, '/')}{colon}{rest}"
    if not text.startswith((f".{BACK}", f"..{BACK}")):
        return text
    source, colon, rest = text.partition(":")
    return f"{source.replace(BACK, '/')}{colon}{rest}"


def rooted(where: Where) -> str:
    """A source's text, resolved; a variable without value at its beginning stands for a folder of the app's own."""
    text = where.node.text if isinstance(where.node, Scalar) else ""
    casa = _CASA.match(text)
    rest = text[casa.end() :].lstrip("/") if casa is not None else text
    match = _ROOT.match(rest)
    if match is not None and (casa is not None or not where.known(match[1] or match[2])):
        name, rest = match[1] or match[2], rest[match.end() :].lstrip("/")
        own = casa is not None or _OWN.fullmatch(name)
        prefix = "" if own else f"{name.lower()}/"
        return where.resolved_clear(f"./{prefix}{rest}")
    return where.resolved_clear(f"./{rest}" if casa is not None else text)


def _anonymous(service: str, target: str) -> str:
    return f"./{service}/{target.strip('/')}"


def _long(where: Where, service: str, devices: Mapping[str, str], found: Mounted) -> None:
    table = where.table(_MOUNT_KEYS, extensions=True)
    kind = table["type"].choice(frozenset({"volume", "bind", "tmpfs"})) if "type" in table else "volume"
    if "target" not in table:
        where.wrong("needs `target`")
        return
    target = table["target"].text()
    read_only = table["read_only"].flag() if "read_only" in table else False
    if "consistency" in table:
        table["consistency"].idle("only Docker Desktop knows it")
    shared = _details(table)
    if kind == "tmpfs":
        found.tmpfs.append(target + _tmpfs(table.get("tmpfs")))
        return
    if "source" not in table and kind == "bind":
        where.wrong("needs `source`")
        return
    node = table["source"].node if "source" in table else None
    if node is not None and not (isinstance(node, Scalar) and node.value is not None):
        table["source"].wrong("expected text")
        return
    source = rooted(table["source"]) if node is not None else _anonymous(service, target)
    if not source and table["source"].incomplete():
        return
    source = _unixlike(where, f"{source}:/").removesuffix(":/")
    if kind == "bind" and source and not source.startswith(("/", ".", "~")):
        source = f"./{source}"
    _place(where, source, target, read_only, devices, found, shared=shared)


def _details(table: dict[str, Where]) -> bool:
    """What is without effect; whether what is mounted inside is to be seen on the device."""
    shared = False
    bind = (
        table["bind"].table(frozenset({"create_host_path", "propagation", "selinux", "recursive"}))
        if "bind" in table
        else {}
    )
    for key, item in bind.items():
        if key == "propagation" and item.text() in ("shared", "rshared"):
            shared = True
            continue
        item.idle("folders are made, and labelled, by the system")
    volume = table["volume"].table(frozenset({"nocopy", "labels"})) if "volume" in table else {}
    for item in volume.values():
        item.idle("volumes are folders of the app, filled from the image while they are empty")
    return shared


def _tmpfs(where: Where | None) -> str:
    table = where.table(frozenset({"size", "mode"})) if where is not None else {}
    flags = [f"size={table['size'].size()}"] if "size" in table else []
    if "mode" in table:
        flags.append(f"mode={table['mode'].integer(0, 0o7777):04o}")
    return f":{','.join(flags)}" if flags else ""


def _place(
    where: Where,
    source: str,
    target: str,
    read_only: bool,
    devices: Mapping[str, str],
    found: Mounted,
    *,
    shared: bool = False,
) -> None:
    if not (target and source) and where.incomplete():
        return
    if not target.startswith("/") or ".." in target.split("/"):
        where.wrong(f"{target[:80]!r} is not an absolute path inside the service")
        return
    if source in found.engine:
        if not found.engine[source]:
            return  # a variable in it is needed
        mount = Mount(volume="", engine=found.engine[source], target=target, read_only=read_only)
        if mount.needs:
            where.allowed(mount.needs, "what is there is not the app's, and is not snapshotted")
        found.mounts.append(mount)
        return
    source = devices.get(source, source)
    if source.startswith("/"):
        _host(where, source, target, read_only, found, shared=shared)
        return
    if shared:
        where.idle("only a folder of the device can be shared with it")
    source = beside(source)
    path = posixpath.normpath(source) if source else ""
    if path in where.given.files:
        found.files[target] = where.given.files[path]
        return
    name = folder(where, source)
    if name is None:
        return
    if (
        source.startswith((".", "files/", f"{ABOVE}/"))
        and _FILE.search(path)
        and posixpath.splitext(path)[1] == posixpath.splitext(target)[1]
    ):
        where.need(f"file {path}", sought(path))
        return
    found.mounts.append(Mount(volume=name, target=target, read_only=read_only))


def _host(where: Where, source: str, target: str, read_only: bool, found: Mounted, *, shared: bool) -> None:
    if ".." in source.split("/"):
        where.wrong(f"{source[:80]!r} leads out of where it begins; write the path that is meant")
        return
    path = posixpath.normpath(source).replace("//", "/")
    if path in CLOCK:
        where.idle(NO_CLOCK)
        return
    where.allowed(f"host-path:{path}", f"{path[:80]} is the device's, not the app's, and is not snapshotted")
    if shared:
        where.allowed("shared-mounts", "what it mounts there is seen on the device too")
    found.mounts.append(Mount(volume="", host=path, target=target, read_only=read_only, shared=shared))


def folder(where: Where, source: str) -> str | None:
    """The folder below the volume root for a volume's name, or for a path relative to the manifest."""
    if source == "~" or source.startswith("~/"):
        source = f"./home/{source[2:]}"
    parts = [part for part in beside(source).split("/") if part not in ("", ".")]
    if source.startswith(("/", "~", "\\")) or "\\" in source or ".." in parts or "\0" in source:
        where.wrong(
            f"{source[:80]!r} leads out of the app's folder; name a volume or a folder such as ./data"
        )
        return None
    name = _UNFIT.sub("_", "-".join(parts)) or ("files" if source else "")
    name = f"_{name[1:]}" if name[:1] in (".", "-") else name
    if not rules.VOLUME.fullmatch(name):
        where.wrong(f"{source[:80]!r} cannot be a folder of the app")
        return None
    return name
