"""Other Compose files beside the manifest: `include`, and `extends` with `file`. On the trees, before any service is read.

What such a file says of paths is of its own folder, so they are told anew from the manifest's; its lines are the one that names it.
https://github.com/compose-spec/compose-spec/blob/main/14-include.md
"""

from __future__ import annotations

import posixpath
from collections.abc import Mapping
from dataclasses import dataclass, replace

from fractal.api.errors import InvalidInput
from fractal.manifest.document import Items, Node, Problems, Scalar, Table, read
from fractal.manifest.env_files import brought, defaults, outside, sought
from fractal.manifest.interpolation import Malformed, filled_in
from fractal.manifest.keys import TOP_IDLE
from fractal.manifest.merging import merged
from fractal.manifest.values import Where

MAX_FILES = 128
MAX_BYTES = 1 << 18
"""Of all other files together, each counted once for each folder that its paths are told from."""
KEYS = frozenset({"path", "project_directory", "env_file"})
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
    own = Table(node.line, {key: entry for key, entry in node.entries.items() if key != "include"})
    included, taken = Table(node.line, {}), _Taken({}, {})
    for item in root.at("include", given).items():
        included, _ = _add(included, item, taken, (), {})
    return _under(own, included)


Inclusion = tuple[tuple[str, ...], str, tuple[tuple[str, str], ...]]
"""Paths of files that are one, the folder that theirs are told from, and values of variables."""


@dataclass(frozen=True, slots=True)
class _Taken:
    """What is included so far."""

    reach: dict[Inclusion, frozenset[Inclusion]]
    """Each one -> itself and those that it includes, by others too."""
    origin: dict[tuple[str, str], frozenset[Inclusion]]
    """A section and a name in it -> those that say something of it."""


def _add(
    tree: Table, item: Where, taken: _Taken, chain: tuple[str, ...], outer: Mapping[str, str]
) -> tuple[Table, frozenset[Inclusion]]:
    """`tree` with what `item` includes and what that includes itself, and which ones these are. `chain` are the files that lead
    here, `outer` the values that they were included with, which go before its own."""
    none: frozenset[Inclusion] = frozenset()
    table = item.table(KEYS) if isinstance(item.node, Table) else {"path": item}
    if "path" not in table:
        item.wrong("needs `path`")
        return tree, none
    several = table["path"].items() if isinstance(table["path"].node, Items) else [table["path"]]
    values = {**(defaults(table["env_file"], item.given.files) if "env_file" in table else {}), **outer}
    if not several or [path for path in several if path.incomplete()]:
        return tree, none
    names = tuple(posixpath.normpath(path.text()) for path in several)
    folder = (
        table["project_directory"].text() if "project_directory" in table else posixpath.dirname(names[0])
    )
    if again := set(names) & set(chain):
        item.wrong(f"{min(again)[:80]!r} includes itself")
        return tree, none
    inclusion = (names, folder, tuple(sorted(values.items())))
    if inclusion in taken.reach:
        return tree, taken.reach[inclusion]  # by another way: once is enough
    if sum(len(one) for one, _, _ in {*taken.reach, inclusion}) > MAX_FILES:
        item.wrong(f"more than {MAX_FILES} files are included")
        return tree, none
    taken.reach[inclusion] = reach = frozenset({inclusion})
    found = [other for path in several if (other := file(path, folder)) is not None]
    if len(found) < len(several):
        return tree, reach
    other = found[0]
    for over in found[1:]:
        other = _over(other, over)
    other = _valued(other, values, item)
    _, more = other.entries.get("include", (0, Items(0, ())))
    for below in more.items if isinstance(more, Items) else (more,):
        tree, further = _add(tree, replace(item, node=below), taken, (*chain, *names), values)
        reach |= further
    taken.reach[inclusion] = reach
    return _with(tree, other, item, inclusion, taken), reach


def _over(under: Table, over: Table) -> Table:
    """One file over another, as Compose merges them."""
    entries = dict(under.entries)
    for key, (line, said) in over.entries.items():
        _, there = entries.get(key, (line, said))
        if key in SECTIONS and isinstance(there, Table) and isinstance(said, Table):
            both = dict(there.entries)
            for name, (at, one) in said.entries.items():
                both[name] = (at, _one(key, both[name][1], one) if name in both else one)
            said = Table(there.line, both)
        elif key == "include" and isinstance(there, Items) and isinstance(said, Items) and there is not said:
            said = Items(there.line, (*there.items, *said.items))
        entries[key] = (line, said)
    return Table(under.line, entries)


def _one(section: str, under: Node, over: Node) -> Node:
    """What two files say of one name, `over` before `under`."""
    if _is_null(over) or _bare(under) == _bare(over):
        return under
    # Below a service keys have forms of their own, see `merging`; elsewhere none do.
    return merged(under, over, () if section == "services" else ("",))


def _under(own: Table, included: Table) -> Table:
    """What a file says itself goes over what it includes: https://github.com/compose-spec/compose-go/pull/835"""
    entries = dict(own.entries)
    for section, (at, added) in included.entries.items():
        line, said = entries.get(section, (at, Table(at, {})))
        if not isinstance(added, Table) or not (isinstance(said, Table) or _is_null(said)):
            continue  # told as such when its turn comes
        both = dict(said.entries) if isinstance(said, Table) else {}
        for name, (there, under) in added.entries.items():
            above, over = both.get(name, (there, under))
            both[name] = (above, over if over is under else _one(section, under, over))
        entries[section] = (line, Table(line, both))
    return Table(own.line, entries)


def _valued(tree: Table, values: Mapping[str, str], item: Where) -> Table:
    """The tree with variables written out of which its inclusion says a value, and nobody who installs it does."""
    left = MAX_BYTES

    def value(name: str) -> str | None:
        return None if item.known(name) else values.get(name)

    def filled(node: Node) -> Node:
        nonlocal left
        if isinstance(node, Table):
            return Table(node.line, {key: (at, filled(below)) for key, (at, below) in node.entries.items()})
        if isinstance(node, Items):
            return Items(node.line, tuple(map(filled, node.items)))
        if "$" not in node.text or left < 0:
            return node
        try:
            text = filled_in(node.text, value)
        except Malformed:
            return node  # told when its turn comes
        left -= len(text)
        return Scalar(node.line, text, text) if text != node.text else node

    if not values:
        return tree
    found = filled(tree)
    if left < 0:
        item.wrong(f"with the values of its `env_file` it is longer than {MAX_BYTES} characters")
    assert isinstance(found, Table)
    return found


def _with(tree: Table, other: Table, item: Where, inclusion: Inclusion, taken: _Taken) -> Table:
    """`tree` with `other`, which goes over the files that it includes; others have to say the same."""
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
        line, there = entries.get(section, (added.line, Table(added.line, {})))
        assert isinstance(there, Table)
        have = dict(there.entries)
        for name, (at, said) in added.entries.items():
            by = taken.origin.get((section, name), frozenset())
            if by <= taken.reach[inclusion]:
                have[name] = (at, _one(section, have[name][1], said) if name in have else said)
            elif _bare(have[name][1]) != _bare(said):
                item.wrong(f"{section}.{name[:80]} is in another file too, and not alike")
            taken.origin[section, name] = by | {inclusion}
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
        named = (("path",), ("path", "[]"), ("env_file",), ("env_file", "[]"), ("project_directory",))
        return key[1:] in ((), ("[]",)) or (key[1:2] == ("[]",) and key[2:] in named)
    if key[:1] == ("volumes",):
        return key[2:] == ("driver_opts", "device") and text.startswith(".")
    return key[:1] in (("configs",), ("secrets",)) and key[2:] == ("file",)
