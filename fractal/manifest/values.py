"""Typed reading of a manifest's tree. A reader never raises: it notes the problem and gives a harmless value."""

from __future__ import annotations

import contextlib
import re
import shlex
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace

from fractal.api.building import ImageBuild
from fractal.manifest import routed, secret_forms
from fractal.manifest.document import Finding, Items, Node, Problems, Scalar, Table
from fractal.manifest.interpolation import Malformed, Use, expand
from fractal.manifest.keys import REMEDIES

_DURATION = re.compile(r"(\d{1,6}(?:\.\d{1,6})?)(h|ms|m|s|us)")
_SECONDS = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "us": 1e-6}
_SIZE = re.compile(r"(\d{1,15}(?:\.\d{1,6})?)\s*(b|[kmgt]i?b?)?", re.IGNORECASE)
_UNITS = {"b": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}
_FLAGS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
_SECRET = re.compile(r"PASS|PWD|SECRET|TOKEN|KEY|CREDENTIAL|SALT|PRIVATE", re.IGNORECASE)
MAX_TEXT = 1 << 17
MAX_LINE = 2000
VISIBLE = "visible-secret:"
"""Begins what allows a secret in a command line."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """What whoever installs an app gives beside the manifest."""

    values: Mapping[str, str] = field(default_factory=dict, repr=False)
    """For variables."""
    hidden: frozenset[str] = frozenset()
    """Names of values that are secrets, whatever they are called."""
    sealed: frozenset[str] = frozenset()
    """Names of values that were given earlier, and are not to be seen here."""
    files: Mapping[str, str] = field(default_factory=dict, repr=False)
    """Texts of files beside the manifest, by their relative paths."""
    images: Mapping[str, str] = field(default_factory=dict)
    """Service -> image, for those that the manifest would build."""
    built: Mapping[str, str] = field(default_factory=dict)
    """Image as the specification calls it before it is built -> what was built for it."""
    brings: Callable[[ImageBuild], str] | None = None
    """Why a build's context, which is to be beside the manifest, cannot be taken, or ""; None: nothing is beside it."""
    allowed: frozenset[str] = frozenset()
    """What the app may have of the device: `host-path:/srv/media`."""
    host: str = ""
    """Public name of the app, if one is known: `${HOMESERVER_URL}` is made of it."""

    def secret(self, name: str) -> bool:
        """Whether a value must not be seen."""
        return name in self.hidden or name in self.sealed or bool(_SECRET.search(name))


@dataclass(frozen=True, slots=True)
class Where:
    """A place in the manifest: the node and the path of keys that led to it."""

    key: str
    node: Node
    problems: Problems
    secrets: frozenset[str] = frozenset()
    """Names of generated secrets, which `${NAME}` may stand for."""
    given: Given = field(default_factory=Given)
    defaults: Mapping[str, str] = field(default_factory=dict)
    """Variable -> what it is where nobody gives a value."""

    def wrong(self, message: str) -> None:
        """Note a problem here."""
        self.problems.add(self.node.line, self.key, message)

    def idle(self, reason: str) -> None:
        """Note that what stands here has no effect."""
        self.problems.idle.setdefault(self.key, Finding(self.node.line, self.key, reason))

    def need(self, option: str, reason: str) -> None:
        """Note what must be given."""
        self.problems.needs.setdefault(option, Finding(self.node.line, self.key, reason))

    def allowed(self, what: str, reason: str) -> None:
        """Note what must be allowed, and whether it was."""
        if what in self.given.allowed:
            self.problems.granted.setdefault(what, Finding(self.node.line, self.key, reason))
        else:
            self.need(f"--allow {what}", reason)

    def at(self, name: str, node: Node) -> Where:
        """A place below."""
        key = f"{self.key}{name}" if name.startswith("[") else f"{self.key}.{name}".lstrip(".")
        return replace(self, key=key, node=node)

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
                self.problems.add(line, path, f"not supported{_meant(name, known) or _remedy(name)}")
                continue
            found[name] = below = self.at(name, value)
            if known is not None:
                self.problems.known.setdefault(below.key, line)
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
        """A string; numbers as written. Variables are resolved, and stand in the specification in clear."""
        return self._resolve(self._written(), self._clear)

    def sealable(self) -> str:
        """As `text`, where values can stay sealed until an app starts: each becomes `{secret.NAME}`. Also `true` and `false`."""
        return self._resolve(self._written(loose=True), self._sealed)

    def word(self) -> str:
        """As `sealable`, where everybody on the device can see it later: only what looks like a secret is sealed."""
        return self._resolve(self._written(loose=True), self._seen)

    def _written(self, *, loose: bool = False) -> str:
        if not isinstance(self.node, Scalar) or self.node.value is None:
            self.wrong("expected text")
            return ""
        if isinstance(self.node.value, bool) and not loose:
            self.wrong("expected text")
            return ""
        return self.node.text

    def loose_text(self) -> str:
        """As `text`, but `true` and `false` are taken as written too."""
        return self._resolve(self._written(loose=True), self._clear)

    def plain(self) -> str:
        """A scalar as written, in which `$` means nothing; "" for null."""
        if not isinstance(self.node, Scalar):
            self.wrong("expected text")
            return ""
        if len(self.node.text) > MAX_LINE or not all(c.isprintable() or c == "\n" for c in self.node.text):
            self.wrong(f"longer than {MAX_LINE} characters, or not printable")
            return ""
        return "" if self.node.value is None else self.node.text.strip()

    def literal(self) -> str:
        """A string in which `$` means nothing (files, Python)."""
        if not isinstance(self.node, Scalar) or not isinstance(self.node.value, str):
            self.wrong("expected text (quote it)")
            return ""
        if len(self.node.text) > MAX_TEXT or "\0" in self.node.text:
            self.wrong(f"longer than {MAX_TEXT} characters, or holds NUL")
            return ""
        return self.node.text

    def incomplete(self) -> bool:
        """Whether it cannot be judged because a variable in it has no value: then that is noted as a need."""
        missing: list[str] = []
        text = self.node.text if isinstance(self.node, Scalar) else ""

        def shown(name: str) -> str:
            if name in self.given.sealed and name not in self.given.values:
                missing.append(name)
            return self.given.values.get(name, "")

        def value(use: Use) -> str:
            found = self._value(use, shown)
            if found is None or (use.operator.endswith("?") and not self.known(use.name)):
                missing.append(use.name)
            return found or ""

        if "$" in text:
            with contextlib.suppress(Malformed):
                expand(text, value)
        for name in missing:
            self.need(f"--set {name}=VALUE", f"${{{name}}} has no value")
        return bool(missing)

    def name(self, pattern: re.Pattern[str], what: str) -> str:
        """A string that matches."""
        if self.incomplete():
            return ""
        text = self.text()
        if text and not pattern.fullmatch(text):
            self.wrong(f"{text[:80]!r} is not {what}")
        return text

    def integer(self, low: int, high: int) -> int:
        """A whole number."""
        if self.incomplete():
            return low
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
        if self.incomplete():
            return 0.0
        text = self.text()
        if not re.fullmatch(r"\d{1,9}(\.\d{1,9})?|\.\d{1,9}", text):
            self.wrong("expected a number")
            return 0.0
        return float(text)

    def flag(self) -> bool:
        """`true` or `false`, also as text or by a variable, as in Compose."""
        if isinstance(self.node, Scalar) and not self.incomplete():
            word = self.loose_text().lower() if self.node.value is not None else ""
            if word in _FLAGS:
                return _FLAGS[word]
            self.wrong("expected true or false")
        elif not isinstance(self.node, Scalar):
            self.wrong("expected true or false")
        return False

    def seconds(self) -> float:
        """A duration: `90s`, `1m30s`, `1.5s`, `500ms`."""
        if self.incomplete():
            return 0.0
        text = self.text()
        parts = _DURATION.findall(text)
        if not text or "".join(f"{number}{unit}" for number, unit in parts) != text:
            if text != "0":
                self.wrong(f"{text[:40]!r} is not a duration such as 1m30s or 500ms")
            return 0.0
        return sum(float(number) * _SECONDS[unit] for number, unit in parts)

    def size(self) -> int:
        """Bytes: `512m`, `1.5g`, `1048576`."""
        if self.incomplete():
            return 0
        match = _SIZE.fullmatch(self.text())
        if match is None:
            self.wrong("expected a size such as 512m")
            return 0
        return int(float(match[1]) * _UNITS[(match[2] or "b")[0].lower()])

    def argv(self) -> tuple[str, ...]:
        """A list of words, or a line that is split as a shell would, without running one."""
        if isinstance(self.node, Items):
            return tuple(item.word() for item in self.items())
        try:
            return tuple(shlex.split(self.word()))
        except ValueError as error:
            self.wrong(f"cannot be split into words: {error}")
            return ()

    def choice(self, options: Mapping[str, str] | frozenset[str]) -> str:
        """One of some words."""
        if self.incomplete():
            return ""
        text = self.loose_text()
        if text not in options:
            self.wrong(f"{text[:40]!r} is not one of {', '.join(sorted(options))}")
            return ""
        return options[text] if isinstance(options, Mapping) else text

    def resolved(self, text: str) -> str:
        """A text that belongs here but stands elsewhere, with variables resolved as in `sealable`."""
        return self._resolve(text, self._sealed)

    def resolved_clear(self, text: str) -> str:
        """The same, with variables resolved as in `text`."""
        return self._resolve(text, self._clear)

    # -- variables

    def has(self, name: str) -> bool:
        """Whether a variable has a value that is given, or made."""
        given = name in self.secrets or name in self.given.values or name in self.given.sealed
        return self._made(name) or given

    def is_given(self, name: str) -> bool:
        """Whether somebody gave a value, now or earlier."""
        return name in self.given.values

    def standing(self, name: str) -> str | None:
        """What a variable is where nobody gives a value: a field's default, or what follows from the app's public name."""
        return self.defaults[name] if name in self.defaults else routed.value(name, self.given.host)

    def known(self, name: str) -> bool:
        """Whether a variable stands for something."""
        return self.has(name) or self.standing(name) is not None

    def value_of(self, name: str) -> str | None:
        """As `sealable` of `${NAME}`; None if it stands for nothing."""
        return self._sealed(name) if self.has(name) else self.standing(name)

    def _made(self, name: str) -> bool:
        if form := secret_forms.by_name(name):
            self.problems.made[name] = form
        return bool(form)

    def _resolve(self, text: str, shown: Callable[[str], str]) -> str:
        def value(use: Use) -> str:
            found = self._value(use, shown)
            if found is None:
                self.problems.unset.setdefault(use.name, self.node.line)
            return found or ""

        try:
            found = expand(text, value) if len(text) <= MAX_TEXT else text
        except Malformed as error:
            self.wrong(str(error))
            return ""
        if len(found) > MAX_TEXT or "\0" in found:
            self.wrong(f"longer than {MAX_TEXT} characters, or holds NUL")
            return ""
        return found

    def _value(self, use: Use, shown: Callable[[str], str]) -> str | None:
        """What a use stands for; None if it is empty because nobody gave a value."""
        given = self.has(use.name)
        standing = None if given else self.standing(use.name)
        full = standing != "" and self.given.values.get(use.name) != ""
        taken = (given or standing is not None) and (full or not use.operator.startswith(":"))
        match use.operator[-1:]:
            case "+":
                return self._resolve(use.rest, shown) if taken else ""
            case "-" if not taken:
                return self._resolve(use.rest, shown)
            case "?" if not taken:
                reason = self._resolve(use.rest, lambda name: f"${{{name}}}")[:200]
                self.need(f"--set {use.name}=VALUE", reason or f"{use.name} is required")
                return ""
        return shown(use.name) if given else standing

    def _sealed(self, name: str) -> str:
        return f"{{secret.{name}}}"

    def _clear(self, name: str) -> str:
        if name in self.secrets or (name in self.problems.made and name not in self.given.values):
            return self._sealed(name)
        if name not in self.given.values:
            self.need(f"--set {name}=VALUE", f"{name} is sealed and needed in clear here: give it again")
            return ""
        if self.given.secret(name):
            # What is allowed here is still not listed among the values that `app show` prints.
            self.allowed(
                f"{VISIBLE}{name}", f"{name} would stand here in clear, for every device of the group to see"
            )
            return self.given.values[name] if f"{VISIBLE}{name}" in self.given.allowed else ""
        self.problems.shown[name] = self.given.values[name]
        return self.given.values[name]

    def _seen(self, name: str) -> str:
        if name not in self.secrets and not self.given.secret(name):
            return self._clear(name)
        if name in self.problems.made and secret_forms.is_name(name):
            return self._sealed(name)
        self.allowed(f"{VISIBLE}{name}", f"everybody on the device can see {name} in its list of processes")
        return self._sealed(name)


def each(
    table: Mapping[str, Where], readers: Mapping[str, Callable[[Where], object]]
) -> Iterator[tuple[str, object]]:
    """(key, value) for every key of `table` that has a reader."""
    for name, where in table.items():
        if name in readers:
            yield name, readers[name](where)


def _remedy(name: str) -> str:
    return f": {REMEDIES[name]}" if name in REMEDIES else ""


def _meant(name: str, known: frozenset[str]) -> str:
    import difflib

    close = difflib.get_close_matches(name, known, n=1, cutoff=0.75)
    return f"; did you mean {close[0]!r}?" if close else ""
