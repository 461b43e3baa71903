"""Reading a device's TOML file: every problem at once, with file, line and key."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fractal.api.errors import BackendError
from fractal.config.convert import convert
from fractal.config.lines import key_lines, line_of
from fractal.config.model import (
    Chosen,
    Device,
    DeviceConfig,
    DeviceSection,
    LogSection,
    PluginsSection,
)
from fractal.config.problems import ConfigError, Key, Located, Problem, dotted, unknown
from fractal.plugins import Plugins

SCHEMA = 1
LIMIT = 1 << 20
"""Bytes of a configuration file at most."""
DEFAULTS: Mapping[str, str] = {
    "runtime": "process",
    "snapshot": "copy",
    "transport": "direct",
    "authority": "self-signed",
    "coordination": "sqlite",
}
DEFAULT_CATALOG = "folder"
TABLES = ("schema", "device", *DEFAULTS, "catalog", "store", "log", "plugins")
_AT_LINE = re.compile(r" \(at line (\d+), column \d+\)$")


def load(path: Path, plugins: Plugins | None = None) -> DeviceConfig:
    """The configuration in the file, with the settings of exactly the backends that it names.

    Imports those backends' plugins and no others; `plugins` is for tests. Raises ConfigError with every problem.
    """
    path = path.absolute()
    return parse(_read(path), path, plugins)


def parse(data: bytes, path: Path, plugins: Plugins | None = None) -> DeviceConfig:
    """The configuration in `data`, which came from `path`. Raises ConfigError."""
    text, document = _document(data, path)
    reading = _Reading(document, path.parent, plugins)
    config = reading.config(path)
    if reading.problems or config is None:
        lines = key_lines(text)
        raise ConfigError(
            path, [Located(line_of(p.key, lines), dotted(p.key), p.message) for p in reading.problems]
        )
    return config


def _read(path: Path) -> bytes:
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            os.close(handle)
            raise ConfigError(path, [Located(1, "", "is not a file")])
        with os.fdopen(handle, "rb") as file:
            return file.read(LIMIT + 1)
    except OSError as error:
        message = f"cannot be read: {error.strerror}; `homeserver config init` makes one"
        raise ConfigError(path, [Located(1, "", message)]) from error


def _document(data: bytes, path: Path) -> tuple[str, dict[str, Any]]:
    import tomllib

    if len(data) > LIMIT:
        raise ConfigError(path, [Located(1, "", f"larger than {LIMIT} bytes")])
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigError(path, [Located(line, "", "not UTF-8")]) from error
    try:
        return text, tomllib.loads(text)
    except RecursionError as error:
        raise ConfigError(path, [Located(1, "", "nested too deeply")]) from error
    except ValueError as error:  # TOMLDecodeError, and what int() and datetime say of absurd numbers
        at = _AT_LINE.search(str(error))
        line = int(at[1]) if at else text.count("\n") + 1
        message = f"not TOML: {_AT_LINE.sub('', str(error))}"
        raise ConfigError(path, [Located(line, "", message)]) from error


class _Reading:
    """One document on its way to a `DeviceConfig`."""

    def __init__(self, document: Mapping[str, Any], base: Path, plugins: Plugins | None) -> None:
        self.problems: list[Problem] = []
        self._document = document
        self._base = base
        self._plugins = plugins

    def config(self, path: Path) -> DeviceConfig | None:
        for key in self._document.keys() - set(TABLES):
            self.problems.append(unknown((key,), TABLES))
        schema = self._document.get("schema", SCHEMA)
        if schema != SCHEMA or isinstance(schema, bool):
            self._problem(("schema",), f"must be {SCHEMA}, the only one that this version knows")
        section: DeviceSection | None = self._section("device", DeviceSection)
        log = self._section("log", LogSection)
        wanted = self._section("plugins", PluginsSection)
        if self._plugins is None:
            self._plugins = Plugins.discover(disabled=wanted.disabled if wanted is not None else ())
        chosen = {kind: self._chosen(kind, default) for kind, default in DEFAULTS.items()}
        catalogs = self._catalogs()
        stores = self._stores()
        if section is None or log is None or wanted is None or self.problems:
            return None
        device = self._device(section)
        return DeviceConfig(
            path=path, device=device, catalogs=catalogs, stores=stores, log=log, plugins=wanted, **chosen
        )

    def _device(self, section: DeviceSection) -> Device:
        return Device(
            name=section.name,
            state_dir=section.state_dir,
            runtime_dir=section.runtime_dir or section.state_dir / "run",
            roles=section.roles,
        )

    def _section(self, name: str, kind: type) -> Any:
        table = self._table((name,), self._document.get(name, {}))
        converted = convert(kind, table, where=(name,), base=self._base)
        self.problems += converted.problems
        if name == "device" and converted.value is not None and not converted.value.name.strip():
            self._problem(("device", "name"), "must not be empty")
        return converted.value

    def _chosen(self, kind: str, default: str) -> Any:
        table = self._table((kind,), self._document.get(kind, {}))
        backend = table.get("backend", default)
        if not isinstance(backend, str):
            return self._problem((kind, "backend"), "must be the name of a backend in quotes")
        for key in table.keys() - {"backend", backend}:
            if isinstance(table[key], Mapping):
                self._problem((kind, key), f"not used: the {kind} backend is {backend!r}; remove this table")
            else:
                self.problems.append(unknown((kind, key), ["backend", backend]))
        settings = self._table((kind, backend), table.get(backend, {}))
        return self._settings(kind, backend, settings, (kind, backend), (kind, "backend"))

    def _settings(
        self, kind: str, backend: str, values: Mapping[str, Any], where: Key, named: Key, name: str = ""
    ) -> Any:
        assert self._plugins is not None
        try:
            record = self._plugins.backend(kind, backend)
        except BackendError as error:
            return self._problem(named, str(error))
        converted = convert(record.config, values, where=where, base=self._base)
        self.problems += converted.problems
        return Chosen(backend=backend, settings=converted.value, name=name)

    def _catalogs(self) -> tuple[Chosen, ...]:
        """`[[catalog]]`: backend, name, and the backend's settings beside them."""
        tables = self._document.get("catalog", [{}])
        if not isinstance(tables, list):
            self._problem(("catalog",), "must be written [[catalog]], as there may be several")
            return ()
        found: list[Chosen | None] = []
        for number, value in enumerate(tables):
            where: Key = ("catalog", number)
            table = dict(self._table(where, value))
            backend, name = table.pop("backend", DEFAULT_CATALOG), table.pop("name", "")
            if not isinstance(backend, str) or not isinstance(name, str):
                self._problem(where, "`backend` and `name` must be strings")
                continue
            label = name or backend
            if label in (chosen.name or chosen.backend for chosen in found if chosen is not None):
                self._problem(where, f"another catalog is called {label!r} too; give it a `name`")
            found.append(self._settings("catalog", backend, table, where, (*where, "backend"), name))
        return tuple(chosen for chosen in found if chosen is not None)

    def _stores(self) -> Mapping[str, Mapping[str, object]]:
        tables = self._table(("store",), self._document.get("store", {}))
        return {name: self._table(("store", name), table) for name, table in tables.items()}

    def _table(self, where: Key, value: object) -> Mapping[str, Any]:
        if isinstance(value, Mapping):
            return value
        self._problem(where, "must be a table")
        return {}

    def _problem(self, key: Key, message: str) -> None:
        self.problems.append(Problem(key, message))
