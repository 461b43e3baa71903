"""Other Compose files beside the manifest: `include`, and `extends` with `file`. On the trees, before any service is read.

What such a file says of paths is of its own folder, so they are told anew from the manifest's; its lines are the one that names it.
https://github.com/compose-spec/compose-spec/blob/main/14-include.md
"""

from __future__ import annotations

import posixpath
from dataclasses import replace

from fractal.api.errors import InvalidInput
from fractal.manifest.document import Items, Node, Problems, Scalar, Table, read
from fractal.manifest.env_files import brought, outside, sought
from fractal.manifest.keys import TOP_IDLE
from fractal.manifest.values import Where

MAX_FILES = 32
MAX_BYTES = 1 << 18
"""Of all other files together, each counted once for each folder that its paths are told from."""
SECTIONS = ("services", "networks", "volumes", "configs", "secrets")
IDLE = {**TOP_IDLE, "name": "the app is called as the file that includes it says"}
"""Keys of an included file -> why they are without effect."""


def whole(root: Where) -> Node:
    """The tree of a manifest with what it includes."""
    node = root.node
    if not isinstance(node, Table) or "include" not in node.entries:
        return node
    line, given = node.entries["include"]
    root.problems.known.setdefault("include", line)
    tree = Table(node.line, {key: entry for key, entry in node.entries.items() if key != "include"})
    seen: list[str] = []
    waiting = root.at("include", given).items()
    while waiting:
        item = waiting.pop(0)
        other = _included(item, seen)
        if other is None:
            continue
        if "include" in other.entries:
            waiting += [replace(item, node=below) for below in _listed(other.entries["include"][1])]
        tree = _with(tree, other, item)
    return tree


def _listed(node: Node) -> tuple[Node, ...]:
    return node.items if isinstance(node, Items) else (node,)


def _included(item: Where, seen: list[str]) -> Table | None:
    table = (
        item.table(frozenset({"path", "project_directory"}))
        if isinstance(item.node, Table)
        else {"path": item}
    )
    path = table.get("path")
    if path is not None and isinstance(path.node, Items):
        paths = path.items()
        if len(paths) != 1:
            path.wrong("several files that are one are not supported: include one file each")
            return None
        path = paths[0]
    if path is None:
        item.wrong("needs `path`")
        return None
    if path.incomplete():
        return None
    written = posixpath.normpath(path.text())
    if written in seen or len(seen) >= MAX_FILES:
        item.wrong(f"{written[:80]!r} is included twice, or more than {MAX_FILES} files are")
        return None
    seen.append(written)
    folder = table["project_directory"].text() if "project_directory" in table else None
    return file(path, folder)


def _with(tree: Table, other: Table, item: Where) -> Table:
    entries = dict(tree.entries)
    for key, (_, said) in other.entries.items():
        where = item.at(key, said)
        if key in IDLE:
            where.idle(IDLE[key])
        elif key == "x-homeserver":
            where.wrong("not supported in a file that is included: write it in the manifest itself")
        elif key not in (*SECTIONS, "include") and not key.startswith("x-"):
            where.wrong("not supported")
        elif key in SECTIONS and not isinstance(said, Table) and not _is_null(said):
            where.wrong("expected a mapping")
    for section in SECTIONS:
        _, added = other.entries.get(section, (0, None))
        if not isinstance(added, Table):
            continue
        line, own = entries.get(section, (added.line, Table(added.line, {})))
        if not isinstance(own, Table) and not _is_null(own):
            continue  # told as such when its turn comes
        have = dict(own.entries) if isinstance(own, Table) else {}
        for name, entry in added.entries.items():
            if name in have and _bare(have[name][1]) != _bare(entry[1]):
                item.wrong(f"{section}.{name[:80]} is in this file too, and not alike")
            have.setdefault(name, entry)
        entries[section] = (line, Table(line, have))
    return Table(tree.line, entries)


def _is_null(node: Node) -> bool:
    return isinstance(node, Scalar) and node.value is None


def _bare(node: Node) -> object:
    if isinstance(node, Table):
        return {name: _bare(value) for name, (_, value) in node.entries.items()}
    return [_bare(item) for item in node.items] if isinstance(node, Items) else node.value


def file(where: Where, folder: str | None = None) -> Table | None:
    """The tree of the file that `where` names; None if it is needed, or cannot be had. Its paths are of `folder`, or of its own."""
    if where.incomplete():
        return None
    written = where.text()
    path = posixpath.normpath(brought(written))
    if not written or path == ".":
        where.wrong("expected a file's path")
    elif outside(path):
        where.wrong(f"{path[:80]!r} leads out of the manifest's folder")
    elif path not in where.given.files:
        where.need(f"file {path}", sought(path))
    else:
        folder = posixpath.dirname(written) if folder is None else folder
        return _once(where, path, posixpath.normpath(folder))
    return None


def _once(where: Where, path: str, folder: str) -> Table | None:
    """Each file is read once, however often it is named, and however often it cannot be read: what is short would else stand for
    hours of reading."""
    trees, files = where.problems.trees, where.given.files
    if (path, folder) not in trees:
        trees[path, folder] = None
        if sum(len(files[name]) for name, _ in trees) > MAX_BYTES:
            where.wrong(f"with it, other files are longer than {MAX_BYTES} bytes together")
        else:
            trees[path, folder] = _read(where, path, folder)
    return trees[path, folder]


def _read(where: Where, path: str, folder: str) -> Table | None:
    try:
        tree = read(where.given.files[path], Problems(path))
    except InvalidInput as error:
        where.wrong(f"is no Compose file: {error}")
        return None
    found = _moved(tree, folder, where.node.line)
    assert isinstance(found, Table)
    return found


def _moved(node: Node, folder: str, line: int, key: tuple[str, ...] = ()) -> Node:
    """The same with `line` for its lines, and with paths told from where `folder` is told from; `.` is that place itself."""
    if isinstance(node, Table):
        entries = {
            name: (line, _moved(value, folder, line, (*key, name)))
            for name, (_, value) in node.entries.items()
        }
        return Table(line, entries)
    if isinstance(node, Items):
        return Items(line, tuple(_moved(item, folder, line, (*key, "[]")) for item in node.items))
    if isinstance(node.value, str) and folder != "." and _is_path(key, node.text):
        source, colon, rest = (
            node.text.partition(":") if key[2:] == ("volumes", "[]") else (node.text, "", "")
        )
        text = f"{_joined(folder, source)}{colon}{rest}"
        return Scalar(line, text, text)
    return replace(node, line=line)


def _joined(folder: str, path: str) -> str:
    found = posixpath.normpath(f"{folder}/{path}")
    return found if found.startswith(("..", "/", "~")) else f"./{found}"


PATHS = frozenset(
    {
        *(("env_file",), ("env_file", "[]"), ("env_file", "path"), ("env_file", "[]", "path")),
        *(("build",), ("build", "context"), ("extends", "file"), ("volumes", "[]", "source")),
    }
)
"""Keys of a service that name a file or a folder."""


def _is_path(key: tuple[str, ...], text: str) -> bool:
    if text.startswith(("/", "~", "$", "git@")) or "://" in text:
        return False
    if key[:1] == ("services",):
        if key[2:] in (("volumes", "[]"), ("volumes", "[]", "source")):
            return text.startswith(".")
        return key[2:] in PATHS
    if key[:1] == ("include",):
        return key[1:] in ((), ("[]",), ("[]", "path"), ("[]", "path", "[]"), ("[]", "project_directory"))
    if key[:1] == ("volumes",):
        return key[2:] == ("driver_opts", "device") and text.startswith(".")
    return key[:1] in (("configs",), ("secrets",)) and key[2:] == ("file",)
