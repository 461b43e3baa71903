"""`env_file` of a Compose service: files beside the manifest, read by whoever gives it.

An app that is in the log has no files beside it any more, so their variables become the service's own. The form is that of
Docker Compose's env files: https://docs.docker.com/compose/how-tos/environment-variables/variable-interpolation/#env-file-syntax
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable, Iterator, Mapping

from fractal.api.errors import InvalidInput
from fractal.manifest.document import Items, Node, Problems, Scalar, Table, read
from fractal.manifest.values import Where

_LINE = re.compile(r"(?:export\s+)?([A-Za-z_][A-Za-z0-9_.-]*)\s*(?:[=:](.*))?", re.DOTALL)
_DOUBLE = re.compile(r'"((?:[^"\\]|\\.)*)"\s*(?:#.*)?')
_SINGLE = re.compile(r"'([^']*)'\s*(?:#.*)?")
_ESCAPE = re.compile(r"\\(.)")
_ESCAPED = {"n": "\n", "r": "\r", "t": "\t"}
_UP = re.compile(r"(?:\./+)*\.\.(?:/+|$)")
FILTER = re.compile(r"seccomp[:=](?!(?:unconfined|builtin)$)(.+)")
"""A filter of system calls of the app's own, as Docker has it in `security_opt`."""
ABOVE = "above"
"""Beside the manifest: what a manifest looks for above its own folder, once for each step up. No manifest names files elsewhere."""
ROOT, HOME = "root", "home"
"""Beside the manifest: what it would read at an absolute path of the device, and in its user's own folder."""
MAX_FILES = 256


_STANDS = {ABOVE: "the folder above it", ROOT: "/", HOME: "~"}


def named(text: str, folder: str = "") -> tuple[str, ...]:
    """Relative paths of the files that a manifest may bring, each once: of `include`, `extends`, `env_file`, `configs`, `secrets`
    and bound into services. None if it cannot be read: `parse` says what is wrong. `folder` is its own, as it was named."""
    try:
        root = read(text, Problems("manifest"))
    except InvalidInput:
        return ()
    _, services = root.entries.get("services", (0, None))
    found = [path for path, _ in _others(root)]
    for item in _each(root, "include"):
        found += _paths(item, "env_file", "path") if isinstance(item, Table) else ()
    for _, service in services.entries.values() if isinstance(services, Table) else ():
        if isinstance(service, Table):
            found += [*_paths(service, "env_file", "path"), *_binds(service), *_filters(service)]
    for key in ("configs", "secrets"):
        _, table = root.entries.get(key, (0, None))
        for _, item in table.entries.values() if isinstance(table, Table) else ():
            found += _paths(item, "file", "file") if isinstance(item, Table) else ()
    return tuple(dict.fromkeys(brought(_from(folder, path)) for path in found))[:MAX_FILES]


def others(text: str, folder: str = "") -> dict[str, str]:
    """Other Compose files of `include` and `extends`, which name files themselves: path as in `named` -> its folder."""
    try:
        root = read(text, Problems("manifest"))
    except InvalidInput:
        return {}
    return {brought(_from(folder, path)): _from(folder, own) for path, own in _others(root)}


def _from(folder: str, path: str) -> str:
    """A path told from the folder above `folder`."""
    plain = path.startswith(("/", "~")) or (path.startswith("../files/") and not folder)
    return path if plain else posixpath.normpath(f"{folder or '.'}/{path}")


def _others(root: Table) -> Iterator[tuple[str, str]]:
    """Other Compose files, each with the folder that its own paths are told from."""
    for item in _each(root, "include"):
        several = list(_paths(item, "path", "path")) if isinstance(item, Table) else [_path(item, "path")]
        _, own = item.entries.get("project_directory", (0, None)) if isinstance(item, Table) else (0, None)
        for path in filter(None, several):
            yield path, own.text if isinstance(own, Scalar) else posixpath.dirname(several[0])
    _, services = root.entries.get("services", (0, None))
    for _, service in services.entries.values() if isinstance(services, Table) else ():
        _, extends = service.entries.get("extends", (0, None)) if isinstance(service, Table) else (0, None)
        if isinstance(extends, Table):
            yield from ((path, posixpath.dirname(path)) for path in _paths(extends, "file", "file"))


def _paths(table: Table, key: str, inside: str) -> Iterator[str]:
    for item in _each(table, key):
        if path := _path(item, inside):
            yield path


def _each(table: Table, key: str) -> tuple[Node, ...]:
    if key not in table.entries:
        return ()
    node = table.entries[key][1]
    return node.items if isinstance(node, Items) else (node,)


def _path(item: Node, inside: str) -> str:
    if isinstance(item, Table):
        _, item = item.entries.get(inside, (0, item))
    if isinstance(item, Items) and item.items:
        item = item.items[0]
    return item.text if isinstance(item, Scalar) else ""


def _filters(service: Table) -> Iterator[str]:
    """Files with filters of system calls, in `security_opt`."""
    for item in _each(service, "security_opt"):
        match = FILTER.fullmatch(item.text) if isinstance(item, Scalar) else None
        if match is not None:
            yield match[1]


def _binds(service: Table) -> Iterator[str]:
    """Relative sources in `volumes`, some of which are files."""
    for source in _paths(service, "volumes", "source"):
        if source.startswith("."):
            yield source.partition(":")[0].replace("\\", "/")  # also as Windows has it


def beside(path: str) -> str:
    """Where a file is to be beside the manifest: one of the stores of apps keeps it in `../files`, here that is `files`; any other
    `../x` is `above/x`."""
    if path.startswith("../files/"):
        return path.removeprefix("../")
    steps = []
    while up := _UP.match(path):
        steps.append(ABOVE)
        path = path[up.end() :]
    return "/".join([*steps, path] if path else steps)


def brought(path: str) -> str:
    """As `beside`, for a file that is only read: `/a/x` is `root/a/x`, and `~/x` is `home/x`."""
    if path.startswith("/"):
        return f"{ROOT}/{path.lstrip('/')}"
    return f"{HOME}/{path[2:]}" if path.startswith("~/") else beside(path)


def sought(path: str) -> str:
    """What is to be said of a file that is not there, after its path."""
    place = next(
        (f", where `{top}` stands for {what}" for top, what in _STANDS.items() if path.startswith(f"{top}/")),
        "",
    )
    return f"is to be beside the manifest{place}"


def outside(path: str) -> bool:
    """Whether a path may lead out of the manifest's own folder: it is not for a manifest to name other files."""
    return path.startswith(("/", "~")) or "\\" in path or ".." in path.split("/")


def variables(where: Where | None, files: Mapping[str, str]) -> dict[str, str]:
    """The variables of all files that a service names, later files first in rank."""
    if where is None:
        return {}
    found: dict[str, str] = {}
    for item in where.items() if isinstance(where.node, Items) else [where]:
        table = (
            item.table(frozenset({"path", "required", "format"}))
            if isinstance(item.node, Table)
            else {"path": item}
        )
        if "path" not in table:
            item.wrong("needs `path`")
            continue
        raw = "format" in table and table["format"].choice(frozenset({"raw"})) == "raw"
        path = brought(table["path"].text())
        if outside(path):
            item.wrong(f"{path[:80]!r} leads out of the manifest's folder")
        elif (path := posixpath.normpath(path)) in files:
            found |= _read(item, path, files[path], raw=raw)
        elif "required" not in table or table["required"].flag():
            item.need(f"file {path}", f"{sought(path)}, or its variables in `environment`")
    return found


def given(text: str, source: str) -> dict[str, str]:
    """NAME=VALUE lines as values for variables: as in env files, but for `$`, which means nothing here. Raises InvalidInput."""
    found: dict[str, str] = {}
    problems = Problems(source)
    for number, line in enumerate(text.lstrip("\ufeff").splitlines(), 1):
        line = line.strip()
        match = _LINE.fullmatch(line)
        if not line or line.startswith("#"):
            continue
        if match is None or match[2] is None:
            problems.add(number, "", "expected NAME=VALUE")
        elif match[1] in found:
            problems.add(number, match[1], "given twice")
        else:
            found[match[1]] = _quoted(match[2].strip(), lambda value: value)
    problems.check()
    return found


def defaults(where: Where, files: Mapping[str, str]) -> dict[str, str]:
    """What the files that `include` names by `env_file` say of variables, as texts in which `$` means what it does in a Compose
    file; later files first in rank."""
    found: dict[str, str] = {}
    for item in where.items() if isinstance(where.node, Items) else [where]:
        if item.incomplete():
            continue
        path = brought(item.text())
        if outside(path):
            item.wrong(f"{path[:80]!r} leads out of the manifest's folder")
        elif (path := posixpath.normpath(path)) not in files:
            item.need(f"file {path}", sought(path))
        else:
            for number, line in _lines(files[path]):
                match = _LINE.fullmatch(line)
                if match is None or "\0" in line:
                    item.wrong(f"{path[:80]}:{number}: expected NAME=VALUE")
                elif match[2] is not None:
                    value = match[2].strip()
                    single = _SINGLE.fullmatch(value)
                    found[match[1]] = single[1].replace("$", "$$") if single else _quoted(value, str)
    return found


def _lines(text: str) -> Iterator[tuple[int, str]]:
    for number, line in enumerate(text.lstrip("\ufeff").splitlines(), 1):
        if (stripped := line.strip()) and not stripped.startswith("#"):
            yield number, stripped


def _read(where: Where, path: str, text: str, *, raw: bool) -> dict[str, str]:
    """`raw` values mean what they say, quotes and dollar signs too: `format: raw`."""
    found: dict[str, str] = {}
    if "\0" in text:
        where.wrong(f"{path[:80]}:{text.count(chr(10), 0, text.index(chr(0))) + 1}: holds NUL")
        return found
    for number, line in enumerate(text.lstrip("\ufeff").splitlines(), 1):
        line = line.lstrip() if raw else line.strip()
        if not line.strip() or line.startswith("#"):
            continue
        match = _LINE.fullmatch(line)
        if match is None:
            where.wrong(f"{path[:80]}:{number}: expected NAME=VALUE")
        elif match[2] is None:
            # As in `environment`: left out unless a value is given, as nothing of the device's own environment is seen.
            if (value := where.value_of(match[1])) is not None:
                found[match[1]] = value
        else:
            found[match[1]] = match[2] if raw else _quoted(match[2].strip(), where.resolved)
    return found


def _quoted(text: str, resolved: Callable[[str], str]) -> str:
    if match := _SINGLE.fullmatch(text):
        return match[1]
    if match := _DOUBLE.fullmatch(text):
        return resolved(_ESCAPE.sub(lambda m: _ESCAPED.get(m[1], m[1]), match[1]))
    return resolved(re.split(r"(?:^|\s)#", text, maxsplit=1)[0].rstrip())
