"""YAML as a tree with line numbers. Bounded in size, depth and aliases; without tags, so that nothing is ever built."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from fractal.api.building import ImageBuild
from fractal.api.errors import InvalidInput

if TYPE_CHECKING:
    import yaml

MAX_BYTES = 1 << 20
MAX_DEPTH = 32
MAX_EVENTS = 50_000
MAX_ALIASES = 500
MAX_NODES = 50_000
"""After aliases are followed: a few lines of YAML can stand for billions of nodes."""
MAX_PROBLEMS = 50

_INTEGER = re.compile(r"[-+]?(0|[1-9][0-9]{0,17})")
_FLOAT = re.compile(r"[-+]?[0-9]{1,15}\.[0-9]{1,15}")
_WORDS: dict[str, bool | None] = {"": None, "~": None, "null": None, "Null": None, "NULL": None}
_WORDS |= dict.fromkeys(("true", "True", "TRUE"), True) | dict.fromkeys(("false", "False", "FALSE"), False)


@dataclass(frozen=True, slots=True)
class Finding:
    """Something to say of a key."""

    line: int
    key: str
    text: str


def _one_line(text: str) -> str:
    """Names come from the text: none begins a line of its own, or moves a terminal's cursor."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text[:2000])


@dataclass(slots=True)
class Problems:
    """What is wrong with one text, and what else was found in it."""

    source: str
    lines: list[str] = field(default_factory=list)
    refused: list[Finding] = field(default_factory=list)
    """The same as `lines`."""
    known: dict[str, int] = field(default_factory=dict)
    """Keys that are understood -> line."""
    idle: dict[str, Finding] = field(default_factory=dict)
    """Keys that are understood and without effect here, by key."""
    needs: dict[str, Finding] = field(default_factory=dict)
    """What whoever installs it must give or allow, by option: `--set X=VALUE`."""
    granted: dict[str, Finding] = field(default_factory=dict)
    """What of that was allowed, by name: `host-path:/srv/media`."""
    unset: dict[str, int] = field(default_factory=dict)
    """Variables without value, which are empty then -> line."""
    shown: dict[str, str] = field(default_factory=dict)
    """Given values that stand in the specification in clear."""
    made: dict[str, str] = field(default_factory=dict)
    """Variables for which a value is made by their name -> its form, see `secret_forms`."""
    aliases: dict[str, list[tuple[int, str, str]]] = field(default_factory=dict)
    """Service -> (line, key, name) of what it is called beside its own name."""
    builds: dict[str, tuple[ImageBuild, bool]] = field(default_factory=dict)
    """Image as the specification calls it -> how it is built, and whether it is first looked for by its name."""
    entrances: dict[str, str] = field(default_factory=dict)
    """Services that say by a variable's name that a route leads to them -> port, or ""."""

    trees: dict[tuple[str, str], Table | None] = field(default_factory=dict)
    """Other files that it names -> their trees, by path and by the folder that their paths are told from; None: not to be read."""

    def add(self, line: int, key: str, message: str) -> None:
        """Note a problem; `line` counts from 1, `key` is a dotted path or ""."""
        key, message = _one_line(key), _one_line(message)
        self.lines.append(f"{self.source}:{line}: {key + ': ' if key else ''}{message}")
        self.refused.append(Finding(line, key, message))

    def check(self) -> None:
        """Raise InvalidInput if there is any."""
        if self.lines:
            more = len(self.lines) - MAX_PROBLEMS
            rest = [f"{self.source}: and {more} more"] if more > 0 else []
            raise InvalidInput("\n".join(self.lines[:MAX_PROBLEMS] + rest))

    def refuse_needs(self) -> None:
        """Turn what is needed into problems: whoever installs did not give it."""
        for option, need in self.needs.items():
            self.add(need.line, need.key, f"{need.text}; needs {option}")


@dataclass(frozen=True, slots=True)
class Scalar:
    """A single value."""

    line: int
    value: str | int | float | bool | None
    text: str
    """As written."""


@dataclass(frozen=True, slots=True)
class Items:
    """A sequence."""

    line: int
    items: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Table:
    """A mapping; keys are strings."""

    line: int
    entries: dict[str, tuple[int, Node]]
    """Key -> (line of the key, value)."""


Node = Scalar | Items | Table


def read(text: str, problems: Problems) -> Table:
    """The document's mapping. Raises InvalidInput at once if there is none to go on with."""
    import yaml

    try:
        if len(text.encode("utf-8")) > MAX_BYTES:
            problems.add(1, "", f"longer than {MAX_BYTES} bytes")
            problems.check()
        _bound(yaml.parse(text, Loader=yaml.SafeLoader), problems)
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except InvalidInput:
        raise  # a ValueError too
    except UnicodeEncodeError:
        problems.add(1, "", "not valid Unicode")
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        problems.add(mark.line + 1 if mark else 1, "", f"not YAML: {error.problem or error.context}")
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        problems.add(1, "", f"not YAML: {str(error).splitlines()[0] if str(error) else 'nested too deep'}")
    problems.check()
    tree = _Builder(problems).build(root, "", 0) if root is not None else None
    if isinstance(tree, Table):
        return tree
    raise InvalidInput(f"{problems.source}:1: expected a mapping with the key `services`")


def _bound(events: Iterator[yaml.Event], problems: Problems) -> None:
    """Look at the flat stream of events first: whatever comes after may recurse."""
    import yaml

    depth = aliases = 0
    for count, event in enumerate(events):
        line = _line(event)
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        aliases += isinstance(event, yaml.AliasEvent)
        for measure, limit, word in (
            (count, MAX_EVENTS, "items"),
            (depth, MAX_DEPTH, "levels"),
            (aliases, MAX_ALIASES, "aliases"),
        ):
            if measure > limit:
                problems.add(line, "", f"more than {limit} {word}")
                problems.check()
        if isinstance(event, yaml.NodeEvent) and getattr(event, "tag", None) is not None:
            problems.add(line, "", f"tag {getattr(event, 'tag', '')!r}: tags are not allowed")


class _Builder:
    def __init__(self, problems: Problems) -> None:
        self._problems = problems
        self._count = 0

    def build(self, node: yaml.Node, key: str, depth: int) -> Node:
        import yaml

        self._count += 1
        line = _line(node)
        if self._count > MAX_NODES or depth > 2 * MAX_DEPTH:
            self._problems.add(line, key, "too much, counting what its aliases stand for")
            self._problems.check()
        if isinstance(node, yaml.SequenceNode):
            return Items(
                line, tuple(self.build(n, f"{key}[{i}]", depth + 1) for i, n in enumerate(node.value))
            )
        if isinstance(node, yaml.MappingNode):
            return self._table(node, key, depth)
        return _scalar(line, node)

    def _table(self, node: yaml.MappingNode, key: str, depth: int) -> Table:
        line = _line(node)
        entries: dict[str, tuple[int, Node]] = {}
        merged: dict[str, tuple[int, Node]] = {}
        for name_node, value_node in node.value:
            name_line = _line(name_node)
            name = self.build(name_node, key, depth + 1)
            if not isinstance(name, Scalar):
                self._problems.add(name_line, key, "a key must be a word")
                continue
            path = f"{key}.{name.text}" if key else name.text
            value = self.build(value_node, path, depth + 1)
            if name.text == "<<" and name_node.style is None:
                self._merge(merged, value, path)
            elif name.text in entries:
                first = entries[name.text][0]
                self._problems.add(name_line, path, f"given twice (first in line {first})")
            else:
                entries[name.text] = (name_line, value)
        return Table(line, {**merged, **entries})

    def _merge(self, merged: dict[str, tuple[int, Node]], value: Node, path: str) -> None:
        parts = value.items if isinstance(value, Items) else (value,)
        for part in parts:
            if isinstance(part, Table):
                for name, entry in part.entries.items():
                    merged.setdefault(name, entry)
            else:
                self._problems.add(part.line, path, "only mappings can be merged in")


def _line(node: yaml.Node | yaml.Event) -> int:
    mark: Any = node.start_mark
    return int(mark.line) + 1


def _scalar(line: int, node: Any) -> Scalar:
    """Plain words by the rules of YAML 1.2, as Compose reads them: `on`, `22:22` and `2024-01-01` are text."""
    text = str(node.value)
    value: str | int | float | bool | None = text
    if node.style is None:
        if text in _WORDS:
            value = _WORDS[text]
        elif _INTEGER.fullmatch(text):
            value = int(text)
        elif _FLOAT.fullmatch(text):
            value = float(text)
    return Scalar(line, value, text)
