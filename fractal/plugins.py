"""Finding plugins and loading, one by one, those that are asked for by name.

Names come from the entry points of group `fractal.plugins`, which are listed without importing anything. A backend is
called as its entry point is, or `plugin:backend` where a plugin offers several. The builtins come first and cannot be
replaced. A plugin that cannot be loaded is broken: it is reported, and everything else goes on.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import partial
from importlib.metadata import EntryPoint, entry_points
from typing import Any, TypeVar

import pluggy

from fractal import hookspecs
from fractal.api.authority import AuthorityBackend
from fractal.api.backend import Backend
from fractal.api.catalog import CatalogBackend
from fractal.api.coordination import CoordinationBackend
from fractal.api.errors import BackendError, ExitCode, NotInstalled
from fractal.api.events import Event
from fractal.api.health import HealthCheck
from fractal.api.runtime import RuntimeBackend
from fractal.api.snapshot import SnapshotBackend
from fractal.api.store import StoreBackend
from fractal.api.transport import TransportBackend
from fractal.plugin_records import KINDS, BadRecord, checked, checked_check

GROUP = "fractal.plugins"
BUILTIN = "builtin"
_BUILTIN_MODULE = "fractal.builtin.plugin"
_log = logging.getLogger(__name__)
R = TypeVar("R", bound=Backend[Any, Any])


class BrokenPlugin(BackendError):
    """The plugin that was asked for is installed but cannot be used; the message says why."""

    exit_code = ExitCode.MISSING
    code = "broken_plugin"


@dataclass(frozen=True, slots=True)
class Broken:
    """A plugin that was skipped."""

    plugin: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Plugin:
    """A plugin that was loaded."""

    name: str
    distribution: str
    """Name and version of the distribution that brings it; "" for one that was handed over as an object."""
    module: str
    backends: Mapping[str, Mapping[str, Backend[Any, Any]]]
    """Kind -> backend name -> record."""
    checks: tuple[HealthCheck, ...] = ()
    observer: Callable[[Event], object] | None = field(default=None, repr=False)


class Plugins:
    """The plugins of one agent or one command. Owns its pluggy manager; nothing is global."""

    def __init__(self, entries: Iterable[EntryPoint], extra: Mapping[str, object] | None = None) -> None:
        self._manager = pluggy.PluginManager(hookspecs.PROJECT)
        self._manager.add_hookspecs(hookspecs)
        self._entries: dict[str, EntryPoint] = {}
        self._loaded: dict[str, Plugin] = {}
        self._broken: dict[str, str] = {}
        from fractal.builtin import plugin as builtin

        self._register(BUILTIN, builtin, "")
        for entry in entries:
            self._announce(entry)
        for name, module in (extra or {}).items():
            self._isolated(name, partial(self._register, name, module, ""))

    @classmethod
    def discover(
        cls,
        disabled: Iterable[str] = (),
        extra: Mapping[str, object] | None = None,
        enabled: Iterable[str] = (),
    ) -> Plugins:
        """The installed plugins but `disabled` ones; nothing is imported except those in `enabled`.

        `enabled` names plugins that no backend brings in: observers and health checks. `extra` are plugin objects or
        modules by name, for tests and for embedding.
        """
        unwanted = frozenset(disabled)
        found = cls((e for e in entry_points(group=GROUP) if e.name not in unwanted), extra)
        for name in enabled:
            found.enable(name)
        return found

    def enable(self, name: str) -> None:
        """Load the plugin for what it observes or checks; a broken or absent one is reported in `broken`."""
        if self._load(name) is None and name not in self._broken:
            self._skip(name, f"not installed; installed plugins: {self._known_plugins()}")

    # --- typed getters -------------------------------------------------------------------------------------------

    def runtime(self, name: str) -> RuntimeBackend[Any]:
        """The runtime of that name. Raises NotInstalled, BrokenPlugin; so do the others."""
        return self._get("runtime", name, RuntimeBackend)

    def snapshotter(self, name: str) -> SnapshotBackend[Any]:
        """The snapshotter of that name."""
        return self._get("snapshot", name, SnapshotBackend)

    def store(self, name: str) -> StoreBackend[Any]:
        """The store of that name."""
        return self._get("store", name, StoreBackend)

    def transport(self, name: str) -> TransportBackend[Any]:
        """The transport of that name."""
        return self._get("transport", name, TransportBackend)

    def authority(self, name: str) -> AuthorityBackend[Any]:
        """The authority of that name."""
        return self._get("authority", name, AuthorityBackend)

    def coordinator(self, name: str) -> CoordinationBackend[Any]:
        """The coordination backend of that name."""
        return self._get("coordination", name, CoordinationBackend)

    def catalog(self, name: str) -> CatalogBackend[Any]:
        """The catalog of that name."""
        return self._get("catalog", name, CatalogBackend)

    def backend(self, kind: str, name: str) -> Backend[Any, Any]:
        """The backend of that kind (`runtime`, `snapshot`, ...) and name. Raises NotInstalled, BrokenPlugin."""
        return self._get(kind, name, KINDS[kind].record)

    # --- everything ----------------------------------------------------------------------------------------------

    def all(self) -> Sequence[Plugin]:
        """Load every installed plugin, each by itself; what fails is in `broken`."""
        for name in sorted(self._entries):
            self._load(name)
        return tuple(self._loaded.values())

    @property
    def broken(self) -> Sequence[Broken]:
        """Plugins that were asked for and skipped, with the reason."""
        return tuple(Broken(name, reason) for name, reason in sorted(self._broken.items()))

    def names(self, kind: str) -> Sequence[str]:
        """Names by which the loaded plugins' backends of a kind are configured, sorted."""
        return sorted(
            full_name(plugin.name, record)
            for plugin in self._loaded.values()
            for record in plugin.backends[kind].values()
        )

    def health_checks(self) -> Sequence[HealthCheck]:
        """The checks of the plugins loaded so far."""
        return tuple(check for plugin in self._loaded.values() for check in plugin.checks)

    def event(self, event: Event) -> None:
        """Tell the loaded plugins' observers. What they raise is logged and goes no further."""
        for plugin in self._loaded.values():
            if plugin.observer is None:
                continue
            try:
                plugin.observer(event)
            except Exception:  # noqa: BLE001 - isolation point: somebody else's code, on which nothing depends
                _log.warning("plugin %s failed to observe %s", plugin.name, event.kind, exc_info=True)

    # --- loading -------------------------------------------------------------------------------------------------

    def _get(self, kind: str, name: str, record: type[R]) -> R:
        found = self._loaded[BUILTIN].backends[kind].get(name)
        if found is None:
            plugin_name, _, backend_name = name.partition(":")
            plugin = self._load(plugin_name)
            if plugin_name in self._broken:
                raise BrokenPlugin(
                    f"{kind} {name!r}: plugin {plugin_name} is broken: {self._broken[plugin_name]}"
                )
            if plugin is None:
                raise NotInstalled(self._not_installed(kind, name))
            found = plugin.backends[kind].get(backend_name or plugin_name)
            if found is None:
                offered = ", ".join(full_name(plugin_name, r) for r in plugin.backends[kind].values())
                raise NotInstalled(
                    f"plugin {plugin_name} offers no {kind} {name!r}; it offers {offered or 'none'}"
                )
        assert isinstance(found, record)
        return found

    def _load(self, name: str) -> Plugin | None:
        """The plugin, imported if need be; None if there is none of that name or it is broken."""
        entry = self._entries.get(name)
        if name not in self._loaded and name not in self._broken and entry is not None:
            self._isolated(name, lambda: self._register(name, entry.load(), _distribution(entry)))
        return self._loaded.get(name)

    def _announce(self, entry: EntryPoint) -> None:
        if entry.value == _BUILTIN_MODULE:
            return
        known = self._entries.setdefault(entry.name, entry)
        if entry.name == BUILTIN:
            self._skip(entry.name, f"{_distribution(entry)} uses a name that is taken by the builtins")
            del self._entries[entry.name]
        elif known.value != entry.value:
            self._skip(
                entry.name, f"both {_distribution(known)} and {_distribution(entry)} bring it; uninstall one"
            )

    def _isolated(self, name: str, load: Callable[[], None]) -> None:
        try:
            load()
        except (Exception, SystemExit) as error:  # noqa: BLE001 - isolation point: importing somebody else's code
            text = " ".join(str(error).split())
            self._skip(name, text if isinstance(error, BadRecord) else f"{type(error).__name__}: {text}")

    def _skip(self, name: str, reason: str) -> None:
        _log.warning("plugin %s is skipped: %s", name, reason)
        self._broken[name] = reason
        if name != BUILTIN:  # a stranger of that name takes nothing from the builtins
            self._loaded.pop(name, None)

    def _register(self, name: str, module: object, distribution: str) -> None:
        self._manager.register(module, name)
        try:
            results, observer = self._call_hooks(module)
            plugin = Plugin(
                name=name,
                distribution=distribution,
                module=str(getattr(module, "__name__", type(module).__name__)),
                backends={kind: checked(kind, results.get(spec.hook, ())) for kind, spec in KINDS.items()},
                checks=checked_check(results.get("fractal_health_checks", ())),
                observer=observer,
            )
            self._refuse_taken(plugin)
        except BaseException:
            self._manager.unregister(module)
            raise
        self._loaded[name] = plugin

    def _call_hooks(
        self, module: object
    ) -> tuple[dict[str, tuple[object, ...]], Callable[[Event], object] | None]:
        """What this one plugin's hooks yield, by hook, and its observer."""
        results: dict[str, tuple[object, ...]] = {}
        observer: Callable[[Event], object] | None = None
        for caller in self._manager.get_hookcallers(module) or ():
            if not hasattr(hookspecs, caller.name):
                close = get_close_matches(caller.name, dir(hookspecs), n=1)
                raise BadRecord(
                    f"implements the unknown hook {caller.name}" + (f"; meant {close[0]}?" if close else "")
                )
            (implementation,) = (i for i in caller.get_hookimpls() if i.plugin is module)
            if caller.name == "fractal_event":
                observer = _observer(implementation)
                continue
            found = implementation.function()
            if not isinstance(found, Iterable):
                raise BadRecord(f"{caller.name} gives {type(found).__name__}, not records: write `yield`")
            results[caller.name] = tuple(found)
        return results, observer

    def _refuse_taken(self, plugin: Plugin) -> None:
        """A backend that nobody could reach, as a builtin has its name."""
        for kind, records in plugin.backends.items() if plugin.name != BUILTIN else ():
            own = self._loaded[BUILTIN].backends[kind]
            for record in records.values():
                if full_name(plugin.name, record) in own:
                    raise BadRecord(
                        f"{kind} {record.name!r} is the name of a builtin, which cannot be replaced"
                    )

    def _not_installed(self, kind: str, name: str) -> str:
        installed = [*self._loaded[BUILTIN].backends[kind], *sorted(self._entries)]
        close = get_close_matches(name, installed, n=1)
        meant = f" Did you mean {close[0]!r}?" if close else ""
        plugin = name.partition(":")[0]
        return (
            f"no {kind} {name!r} is installed.{meant} Builtin: {', '.join(self._loaded[BUILTIN].backends[kind])}; "
            f"installed plugins: {self._known_plugins()}. A distribution fractal-{plugin} may bring it."
        )

    def _known_plugins(self) -> str:
        return ", ".join(sorted(self._entries)) or "none"


def full_name(plugin: str, record: Backend[Any, Any]) -> str:
    """The name by which a configuration calls a plugin's backend."""
    return record.name if plugin in (BUILTIN, record.name) else f"{plugin}:{record.name}"


def _observer(implementation: pluggy.HookImpl) -> Callable[[Event], object]:
    if implementation.argnames:
        return lambda event: implementation.function(event=event)
    return lambda _: implementation.function()


def _distribution(entry: EntryPoint) -> str:
    return f"{entry.dist.name} {entry.dist.version}" if entry.dist is not None else entry.value
