"""On which line of a TOML document each key stands. `tomllib` does not tell; this reads only what it has accepted."""

from __future__ import annotations

import re

from fractal.config.problems import Key

_SPACE = re.compile(r"(?:[ \t\r\n]|#[^\n]*)*")
_BARE = re.compile(r"[A-Za-z0-9_-]+")
_STRING = re.compile(
    r"""
    \"{3} (?:[^\\]|\\.)*? \"{3,5} | '{3} .*? '{3,5}    # over several lines; up to two quotes may stand before the end
    | "(?:[^"\\\n]|\\.)*" | '[^'\n]*'
    """,
    re.DOTALL | re.VERBOSE,
)
_SCALAR = re.compile(r"[^,\]\}#\n]*")


def key_lines(text: str) -> dict[Key, int]:
    """Line (from 1) of every key and list item. `text` must be valid TOML, else what was found so far is returned."""
    scanner = _Scanner(text.replace("\r\n", "\n"))
    try:
        scanner.document()
    except (_Lost, RecursionError):
        return scanner.lines
    return scanner.lines


def line_of(key: Key, lines: dict[Key, int]) -> int:
    """Line of a key, or of the nearest table around it; 1 if there is none."""
    for length in range(len(key), 0, -1):
        if key[:length] in lines:
            return lines[key[:length]]
    return 1


class _Lost(Exception):
    """The text is not what was expected."""


class _Scanner:
    def __init__(self, text: str) -> None:
        self.lines: dict[Key, int] = {}
        self._text = text
        self._at = 0
        self._line = 1
        self._counted = 0
        self._items: dict[Key, int] = {}
        """Arrays of tables: how many tables each has so far."""

    def document(self) -> None:
        table: Key = ()
        while self._skip():
            if self._take("[["):
                table = self._header(new_item=True)
                self._expect("]]")
            elif self._take("["):
                table = self._header(new_item=False)
                self._expect("]")
            else:
                self._pair(table)

    def _header(self, *, new_item: bool) -> Key:
        line = self._here()
        key: Key = ()
        parts = self._dotted()
        for number, part in enumerate(parts, 1):
            key = (*key, part)
            self.lines.setdefault(key, line)
            if number == len(parts) and new_item:
                self._items[key] = self._items.get(key, 0) + 1
            if key in self._items:
                key = (*key, self._items[key] - 1)
                self.lines.setdefault(key, line)
        return key

    def _pair(self, table: Key) -> None:
        line = self._here()
        key = table
        for part in self._dotted():
            key = (*key, part)
            self.lines.setdefault(key, line)
        self._expect("=")
        self._value(key)

    def _value(self, key: Key) -> None:
        self._skip()
        if self._take("["):
            number = 0
            while self._skip() and not self._take("]"):
                self.lines.setdefault((*key, number), self._here())
                self._value((*key, number))
                number += 1
                self._skip()
                self._take(",")
        elif self._take("{"):
            while self._skip() and not self._take("}"):
                self._pair(key)
                self._skip()
                self._take(",")
        else:
            self._match(_STRING if self._text.startswith(('"', "'"), self._at) else _SCALAR)

    def _dotted(self) -> list[str]:
        parts = [self._key()]
        while self._skip() and self._take("."):
            parts.append(self._key())
        return parts

    def _key(self) -> str:
        self._skip()
        if not self._text.startswith(('"', "'"), self._at):
            return self._match(_BARE)
        import tomllib

        quoted = self._match(_STRING)
        return next(iter(tomllib.loads(f"{quoted} = 0")))

    def _skip(self) -> bool:
        """Past white space and comments; False at the end."""
        self._match(_SPACE)
        return self._at < len(self._text)

    def _take(self, text: str) -> bool:
        if not self._text.startswith(text, self._at):
            return False
        self._at += len(text)
        return True

    def _expect(self, text: str) -> None:
        self._skip()
        if not self._take(text):
            raise _Lost

    def _match(self, pattern: re.Pattern[str]) -> str:
        found = pattern.match(self._text, self._at)
        if found is None or (found.end() == self._at and pattern is not _SPACE):
            raise _Lost
        self._at = found.end()
        return found[0]

    def _here(self) -> int:
        self._line += self._text.count("\n", self._counted, self._at)
        self._counted = self._at
        return self._line
