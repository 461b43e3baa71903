"""docs/reference/plugin-api.md and log-entries.md: out of the sources' own words, read with `ast`, so that the text behind each field is found."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator, Mapping
from pathlib import Path

from reference import MADE, table, template

import fractal
from fractal.api import errors
from fractal.api.backend import API_VERSION
from fractal.api.errors import FractalError
from fractal.core.entries import KINDS

PACKAGE = Path(fractal.__file__).resolve().parent
MODULES = {
    "backend": "Records",
    "context": "Context",
    "app": "Apps",
    "runtime": "Runtimes",
    "snapshot": "Snapshotters",
    "store": "Stores",
    "coordination": "Coordinators",
    "transport": "Transports",
    "authority": "Authorities",
    "catalog": "Catalogs",
    "health": "Health checks",
    "events": "Events",
    "names": "Names",
    "certificates": "Certificates",
    "building": "Images that are built",
    "build_context": "Contexts of builds",
    "probing": "Looking whether a service answers",
    "store_files": "Stores of files",
    "canonical": "Canonical encoding",
    "plain": "Plain values",
}
"""Modules of `fractal.api` in the page's order, but for `errors`, which has a table of its own."""
OWN_WORDS = ("runtime", "snapshot", "store", "coordination", "transport", "catalog", "health", "events")
"""Modules whose section begins with a hand-written part, `contrib/reference-text/plugin-api-NAME.md`."""
WHO: Mapping[str, str] = {
    "group.created": "the founder's first device, as the log's first entry",
    "group.changed": "admins",
    "invitation.made": "admins; for an owner, or a device of an owner's, owners; any member for devices of its own",
    "invitation.ended": "the member who invited, admins",
    "device.approved": "as `invitation.made`",
    "device.updated": "the device itself; `name`, `roles`, `address` and `draining` also its member and admins",
    "device.removed": "its member, admins; of an owner's device, owners",
    "member.removed": "the member, admins; an owner only by owners, and never the last one",
    "member.role": "admins, for roles below owner; owners, for all",
    "store.added": "admins",
    "store.removed": "admins, when no app uses it",
    "app.installed": "any member",
    "app.changed": "the app's member, admins; the owning device for certificates (`tls.` secrets) alone",
    "app.key": "the app's member, admins, devices that hold its newest key; those begin a new generation only if a removed device holds the newest",
    "app.images": "the device that owns the app, without putting another image in the place of one; the app's member, admins",
    "app.moved": "the app's member, admins, the owning device",
    "app.restore": "the app's member, admins",
    "app.restored": "the owning device",
    "app.removed": "the app's member, admins",
    "app.pinned": "the app's member, admins",
    "lease.challenged": "any device, of another one",
    "lease.answered": "any device, of itself",
    "lease.took": "a device that may host the app",
    "lease.found": "any device",
    "lease.released": "the owning device",
    "lease.serving": "the owning device",
    "route.added": "the app's member, admins; the first claim of a name stands",
    "route.removed": "the app's member, admins",
    "log.checkpointed": "admins",
}
"""Who may write each kind. The rules are in `fractal/core/fold_*.py`; `tests/unit/core/test_roles.py` holds them to a table."""


def plugin_api_page() -> str:
    """Hooks, records, protocols, values and errors."""
    parts = [MADE, "# Plugin API\n", template("plugin-api.md").replace("API_VERSION", str(API_VERSION))]
    parts.append("## Hooks\n")
    parts.append(
        "Functions of these names in a plugin's module, marked with `fractal.hookspecs.hookimpl`. They take what is shown, are called once at load, "
        "and do no I/O.\n"
    )
    for function in _tree(PACKAGE / "hookspecs.py").body:
        if isinstance(function, ast.FunctionDef):
            parts.append(f"### `{function.name}`\n")
            parts.append(f"    {_signature(function)}\n")
            parts.append(_words(function) + "\n")
    for name, title in MODULES.items():
        parts.append(f"## {title}: `fractal.api.{name}`\n")
        tree = _tree(PACKAGE / "api" / f"{name}.py")
        parts.append(template(f"plugin-api-{name}.md") if name in OWN_WORDS else _words(tree) + "\n")
        parts += _module(tree)
    parts += _errors()
    return "\n".join(parts).rstrip() + "\n"


def log_entries_page() -> str:
    """Every kind of entry, its fields, and who may write it."""
    entries = _classes(_tree(PACKAGE / "core" / "entries.py"))
    model = _classes(_tree(PACKAGE / "core" / "model.py"))
    parts = [MADE, "# Log entries\n", template("log-entries.md")]
    used: list[str] = []
    for kind, entry in KINDS.items():
        node = entries[entry.__name__]
        parts.append(f"## `{kind}`\n")
        parts.append(f"{_words(node)} Who may: {WHO[kind]}.\n")
        parts.append(_fields(node))
        used += _named(node, {**entries, **model})
    parts.append("## Parts of entries\n")
    known = {**entries, **model}
    for name in _closed(used, known):
        parts.append(f"### `{name}`\n")
        parts.append(_words(known[name]) + "\n")
        parts += _values(known[name]) or [_fields(known[name])]
    return "\n".join(parts).rstrip() + "\n"


def _closed(names: list[str], known: Mapping[str, ast.ClassDef]) -> list[str]:
    """The names, and what their fields name in turn, each once."""
    found: list[str] = []
    for name in names:
        if name not in found:
            found.append(name)
            names += _named(known[name], known)
    return sorted(found)


def _named(node: ast.ClassDef, known: Mapping[str, ast.ClassDef]) -> list[str]:
    """Classes that the annotations of a class's fields name."""
    return [
        part.id
        for field, _ in _field_nodes(node)
        for part in ast.walk(field.annotation)
        if isinstance(part, ast.Name) and part.id in known
    ]


def _module(tree: ast.Module) -> list[str]:
    parts = []
    constants = list(_constants(tree))
    if constants:
        parts.append(table(("Constant", "Meaning"), constants))
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            parts += _class(node)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not node.name.startswith("_"):
            parts += [f"### `{node.name}`\n", f"    {_signature(node)}\n", _words(node) + "\n"]
    return parts


def _constants(tree: ast.Module) -> Iterator[tuple[str, str]]:
    for node, after in zip(tree.body, [*tree.body[1:], None], strict=True):
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            text = _text(after)
            if text:
                yield f"`{node.targets[0].id} = {ast.unparse(node.value)}`", text


def _class(node: ast.ClassDef) -> list[str]:
    bases = ", ".join(ast.unparse(base) for base in node.bases)
    parts = [f"### `{node.name}`\n"]
    if bases:
        parts.append(f"    class {node.name}({bases})\n")
    parts.append(_words(node) + "\n")
    parts += _values(node)
    if list(_field_nodes(node)):
        parts.append(_fields(node))
    for item in node.body:
        if isinstance(item, ast.FunctionDef | ast.AsyncFunctionDef) and (
            item.name == "__call__" or item.name[0] != "_"
        ):
            parts += [f"#### `{node.name}.{item.name}`\n", f"    {_signature(item)}\n", _words(item) + "\n"]
    return parts


def _values(node: ast.ClassDef) -> list[str]:
    """The members of an enum."""
    rows = [
        (f"`{target.id}`", f"`{ast.literal_eval(item.value)}`", _text(after) or "-")
        for item, after in zip(node.body, [*node.body[1:], None], strict=True)
        if isinstance(item, ast.Assign)
        and isinstance(target := item.targets[0], ast.Name)
        and target.id != "__slots__"
    ]
    return [table(("Value", "Text", "Meaning"), rows)] if rows else []


def _field_nodes(node: ast.ClassDef) -> Iterator[tuple[ast.AnnAssign, str]]:
    for item, after in zip(node.body, [*node.body[1:], None], strict=True):
        if isinstance(item, ast.AnnAssign):
            yield item, _text(after)


def _fields(node: ast.ClassDef) -> str:
    rows = []
    for item, text in _field_nodes(node):
        assert isinstance(item.target, ast.Name)
        rows.append(
            (f"`{item.target.id}`", f"`{ast.unparse(item.annotation)}`", _default(item.value), text or "-")
        )
    return table(("Field", "Type", "Default", "Meaning"), rows) if rows else "No fields.\n"


def _default(value: ast.expr | None) -> str:
    if value is None:
        return "required"
    if isinstance(value, ast.Call) and ast.unparse(value.func) == "field":
        given = {k.arg: k.value for k in value.keywords}
        if "default" in given:
            return f"`{ast.unparse(given['default'])}`"
        if "default_factory" in given:
            made = ast.unparse(given["default_factory"])
            return {"dict": "empty", "list": "empty", "frozenset": "empty"}.get(made, f"`{made}()`")
        return "required"
    return f"`{ast.unparse(value)}`"


def _signature(node: ast.FunctionDef | ast.AsyncFunctionDef) -> str:
    """The head of a function on one line; properties as such."""
    decorators = [ast.unparse(d) for d in node.decorator_list]
    returns = f" -> {ast.unparse(node.returns)}" if node.returns is not None else ""
    if "property" in decorators:
        return f"{node.name}:{returns.removeprefix(' ->')}  (property)"
    arguments = ast.unparse(node.args)
    head = "async def" if isinstance(node, ast.AsyncFunctionDef) else "def"
    return f"{head} {node.name}({arguments}){returns}"


def _errors() -> list[str]:
    rows = []
    for node in _tree(PACKAGE / "api" / "errors.py").body:
        found = getattr(errors, node.name) if isinstance(node, ast.ClassDef) else None
        if isinstance(found, type) and issubclass(found, FractalError):
            code = f"{int(found.exit_code)} `{found.exit_code.name}`"
            rows.append(
                (
                    f"`{found.__name__}`",
                    f"`{found.__bases__[0].__name__}`",
                    f"`{found.code}`",
                    code,
                    _words(node),
                )
            )
    return [
        "## Errors: `fractal.api.errors`\n",
        template("plugin-api-errors.md"),
        table(("Error", "Is a", "Code", "Exit code", "Meaning"), rows),
    ]


def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def _classes(tree: ast.Module) -> dict[str, ast.ClassDef]:
    return {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}


def _text(node: ast.stmt | None) -> str:
    """A string that stands by itself: what is written behind a field."""
    if (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    ):
        return " ".join(inspect.cleandoc(node.value.value).split())
    return ""


def _words(node: ast.AST | None) -> str:
    """A docstring; its paragraphs filled, what is indented left as it is."""
    assert isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
    text = ast.get_docstring(node) or ""
    assert text, f"no docstring: {getattr(node, 'name', '')}"
    return "\n\n".join(p if p.startswith("    ") else " ".join(p.split()) for p in text.split("\n\n"))
