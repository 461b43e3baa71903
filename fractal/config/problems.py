"""What is wrong with a configuration: all of it at once, each with its place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from fractal.api.errors import ExitCode, FractalError

Key = tuple[str | int, ...]
"""Path of a value in the document: table names and keys, and numbers for items of lists."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong."""

    key: Key
    message: str


@dataclass(frozen=True, slots=True)
class Located:
    """A problem with its line in the file."""

    line: int
    key: str
    message: str


class ConfigError(FractalError):
    """The configuration cannot be used. The text has one line per problem: `FILE:LINE: key: message`."""

    exit_code = ExitCode.CONFIG
    code = "config"

    def __init__(self, path: Path, problems: Sequence[Located]) -> None:
        self.path = path
        self.problems = tuple(sorted(problems, key=lambda p: (p.line, p.key)))
        super().__init__("\n".join(f"{path}:{p.line}: {_labelled(p)}" for p in self.problems))


def dotted(key: Key) -> str:
    """A key path as people write it: `catalog[1].path`; parts that TOML would quote are quoted."""
    text = ""
    for part in key:
        if isinstance(part, int):
            text += f"[{part}]"
            continue
        bare = part.isascii() and part.replace("-", "").replace("_", "").isalnum()
        shown = (
            part
            if bare
            else '"' + "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in part) + '"'
        )
        text += f".{shown}" if text else shown
    return text[:200]


def unknown(key: Key, known: Sequence[str]) -> Problem:
    """The problem of a key that nobody reads."""
    close = get_close_matches(str(key[-1]), known, n=1)
    hint = f"did you mean {close[0]!r}?" if close else f"known here: {', '.join(sorted(known)) or 'none'}"
    return Problem(key, f"unknown key; {hint}")


def _labelled(problem: Located) -> str:
    return f"{problem.key}: {problem.message}" if problem.key else problem.message
