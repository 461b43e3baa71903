"""Typed reading of a manifest's tree. A reader never raises: it notes the problem and gives a harmless value."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from fractal.manifest.document import Items, Node, Problems, Scalar, Table

_DURATION = re.compile(r"(?:(\d{1,6})h)?(?:(\d{1,6})m)?(?:(\d{1,6})s)?(?:(\d{1,6})ms)?")
_SIZE = re.compile(r"(\d{1,15})\s*(b|k|kb|kib|m|mb|mib|g|gb|gib)?", re.IGNORECASE)
_UNITS = {"b": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30}
_VARIABLE = re.compile(
    r"\$(?:(\$)|([A-Za-z_][A-Za-z0-9_]*)|\{([A-Za-z_][A-Za-z0-9_]*)(?:(:?-)((?:[^{}$]|\{[^{}]*\})*))?\}|(.?))",
    re.DOTALL,
)
MAX_TEXT = 1 << 17


@dataclass(frozen=True, slots=True)
class Where:
    """A place in the manifest: the node and the path of keys that led to it."""

    key: str
    node: Node
    problems: Problems
    secrets: frozenset[str] = frozenset()
    """Names that `${NAME}` may stand for."""

    def wrong(self, message: str) -> None:
        """Note a problem here."""
        self.problems.add(self.node.line, self.key, message)

    def at(self, name: str, node: Node) -> Where:
        """A place below."""
        key = f"{self.key}{name}" if name.startswith("[") else f"{self.key}.{name}".lstrip(".")
        return Where(key, node, self.problems, self.secrets)

    def table(self, known: frozenset[str] | None = None, *, extensions: bool = False) -> dict[str, Where]:
        """The entries of a mapping; keys that are not `known` are refused by name.

        With `extensions`, keys in `x-` are somebody else's, as in Compose, and left out (but not misspelt ones of ours).
        """
        if isinstance(self.node, Scalar) and self.node.value is None:
            return {}
        if not isinstance(self.node, Table):
            self.wrong("expected a mapping")
            return {}
        found = {}
        for name, (line, value) in self.node.entries.items():
            if known is not None and name not in known:
                if extensions and name.startswith("x-") and not _meant(name, known):
                    continue
                path = f"{self.key}.{name}".lstrip(".")
                self.problems.add(line, path, f"not supported{_meant(name, known)}")
                continue
            found[name] = self.at(name, value)
        return found

    def items(self) -> list[Where]:
        """The items of a list."""
        if isinstance(self.node, Scalar) and self.node.value is None:
            return []
        if not isinstance(self.node, Items):
            self.wrong("expected a list")
            return []
        return [self.at(f"[{index}]", item) for index, item in enumerate(self.node.items)]

    def text(self) -> str:
        """A string; numbers as written. `${NAME}` and `$$` are resolved."""
        if not isinstance(self.node, Scalar) or self.node.value is None or isinstance(self.node.value, bool):
            self.wrong("expected text")
            return ""
        return self._resolve(self.node.text)

    def loose_text(self) -> str:
        """As `text`, but `true` and `false` are taken as written too."""
        if isinstance(self.node, Scalar) and isinstance(self.node.value, bool):
            return self.node.text
        return self.text()

    def literal(self) -> str:
        """A string in which `$` means nothing (files, Python)."""
        if not isinstance(self.node, Scalar) or not isinstance(self.node.value, str):
            self.wrong("expected text (quote it)")
            return ""
        if len(self.node.text) > MAX_TEXT or "\0" in self.node.text:
            self.wrong(f"longer than {MAX_TEXT} characters, or holds NUL")
            return ""
        return self.node.text

    def name(self, pattern: re.Pattern[str], what: str) -> str:
        """A string that matches."""
        text = self.text()
        if text and not pattern.fullmatch(text):
            self.wrong(f"{text[:80]!r} is not {what}")
        return text

    def integer(self, low: int, high: int) -> int:
        """A whole number."""
        try:
            value = int(self.text())
        except ValueError:
            value = low - 1
        if not low <= value <= high:
            self.wrong(f"expected a whole number from {low} to {high}")
            return low
        return value

    def number(self) -> float:
        """A number that is not negative."""
        text = self.text()
        if not re.fullmatch(r"\d{1,9}(\.\d{1,9})?", text):
            self.wrong("expected a number")
            return 0.0
        return float(text)

    def flag(self) -> bool:
        """`true` or `false`."""
        if not isinstance(self.node, Scalar) or not isinstance(self.node.value, bool):
            self.wrong("expected true or false")
            return False
        return self.node.value

    def seconds(self) -> float:
        """A duration: `90s`, `1m30s`, `500ms`."""
        text = self.text()
        match = _DURATION.fullmatch(text)
        if not text or match is None:
            self.wrong(f"{text[:40]!r} is not a duration such as 1m30s or 500ms")
            return 0.0
        hours, minutes, seconds, milliseconds = (int(part or 0) for part in match.groups())
        return hours * 3600 + minutes * 60 + seconds + milliseconds / 1000

    def size(self) -> int:
        """Bytes: `512m`, `1g`, `1048576`."""
        match = _SIZE.fullmatch(self.text())
        if match is None:
            self.wrong("expected a size such as 512m")
            return 0
        return int(match[1]) * _UNITS[(match[2] or "b")[0].lower()]

    def argv(self) -> tuple[str, ...]:
        """A list of words, or a line that is split as a shell would, without running one."""
        if isinstance(self.node, Items):
            return tuple(item.loose_text() for item in self.items())
        try:
            return tuple(shlex.split(self.text()))
        except ValueError as error:
            self.wrong(f"cannot be split into words: {error}")
            return ()

    def choice(self, options: Mapping[str, str] | frozenset[str]) -> str:
        """One of some words."""
        text = self.loose_text()
        if text not in options:
            self.wrong(f"{text[:40]!r} is not one of {', '.join(sorted(options))}")
            return ""
        return options[text] if isinstance(options, Mapping) else text

    def resolved(self, text: str) -> str:
        """A text that belongs here but stands elsewhere, with `${NAME}` and `$$` resolved."""
        return self._resolve(text)

    def _resolve(self, text: str) -> str:
        if len(text) > MAX_TEXT or "\0" in text:
            self.wrong(f"longer than {MAX_TEXT} characters, or holds NUL")
            return ""
        return _VARIABLE.sub(self._variable, text)

    def _variable(self, match: re.Match[str]) -> str:
        if match[1]:
            return "$"
        name = match[2] or match[3]
        if name in self.secrets:
            return f"{{secret.{name}}}"
        if match[4]:
            return match[5]
        if name:
            self.wrong(
                f"${{{name}}} has no value here: write ${{{name}:-DEFAULT}}, or list it in x-homeserver.secrets"
            )
        else:
            self.wrong("`$` begins no variable: write $$ for a dollar sign")
        return ""


def each(
    table: Mapping[str, Where], readers: Mapping[str, Callable[[Where], object]]
) -> Iterator[tuple[str, object]]:
    """(key, value) for every key of `table` that has a reader."""
    for name, where in table.items():
        if name in readers:
            yield name, readers[name](where)


def _meant(name: str, known: frozenset[str]) -> str:
    import difflib

    close = difflib.get_close_matches(name, known, n=1, cutoff=0.75)
    return f"; did you mean {close[0]!r}?" if close else ""
