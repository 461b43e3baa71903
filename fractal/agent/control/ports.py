"""What the control API needs of the agent, so that neither module has to import the other."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol

from fractal.agent.pulse import Pulse
from fractal.agent.walk import Break
from fractal.api.context import Clock, Context, Entropy, Workers
from fractal.api.coordination import Coordinator
from fractal.api.runtime import Runtime
from fractal.api.snapshot import Snapshotter
from fractal.api.store import Store
from fractal.api.transport import Transport
from fractal.core.entries import Entry
from fractal.core.model import GroupState, StoreEntry
from fractal.crypto.keys import DeviceKeys


class ControlJournal(Protocol):
    """The group's log on this device (`fractal.agent.journal.Journal`)."""

    @property
    def state(self) -> GroupState:
        """As far as it was folded."""

    async def append(
        self, entry: Entry, *, wanted: Callable[[GroupState], bool] | None = None, timeout: float = 30.0
    ) -> int:
        """Append and wait until it is folded; its position. Raises when it was not applied."""


class ControlGroup(Protocol):
    """One group on this device (`fractal.agent.group.GroupAgent`)."""

    @property
    def journal(self) -> Any:
        """Its log: a `ControlJournal`, and whatever else `fractal.agent.membership` needs of it."""

    @property
    def agent(self) -> Any:
        """The agent that it is part of."""

    @property
    def pulse(self) -> Pulse:
        """Beats when something changed."""

    def status(self) -> Mapping[str, Any]:
        """One item of `groups` of `status.show`."""

    def unstored(self) -> list[str]:
        """Names of apps of which this device holds something that no store has yet."""

    async def erase(self) -> None:
        """Delete everything of the group's apps from this device, after the group was closed."""

    async def walk(self, route: str, *, whole: bool = True) -> list[Break]:
        """What is broken between a route's name and its app's data, each with what to do; or with the name alone."""

    def certificate(self, route: str) -> str:
        """PEM chain of a route's certificate; "" where this device does not hold the app's key."""


class ControlAgent(Protocol):
    """The agent (`fractal.agent.agent.Agent`)."""

    @property
    def groups(self) -> Mapping[str, ControlGroup]:
        """By id."""

    @property
    def awaiting(self) -> set[str]:
        """Groups whose welcome a command awaits at present."""

    @property
    def keys(self) -> DeviceKeys: ...

    @property
    def notes(self) -> Any:
        """This device's `Notes`."""

    @property
    def clock(self) -> Clock: ...

    @property
    def entropy(self) -> Entropy: ...

    @property
    def workers(self) -> Workers: ...

    @property
    def config(self) -> Any:
        """Its `DeviceConfig`."""

    @property
    def plugins(self) -> Any:
        """Its `Plugins`."""

    @property
    def coordinator(self) -> Coordinator: ...

    @property
    def transport(self) -> Transport: ...

    @property
    def runtime(self) -> Runtime: ...

    @property
    def snapshotter(self) -> Snapshotter: ...

    def open_store(self, entry: StoreEntry) -> AbstractAsyncContextManager[Store]:
        """Open a store of a group, or one that is to become one. Entering raises BackendError, InvalidInput."""

    def context(self, kind: str, name: str) -> Context:
        """A `Context` for a backend opened by a command; its folders are those of `kind`/`name`."""

    async def open_group(self, gid: str) -> Any:
        """Start taking part in a group that is in the notes."""

    async def close_group(self, gid: str) -> None:
        """Stop taking part."""

    def status(self) -> Mapping[str, Any]:
        """The answer of `agent.status`."""
