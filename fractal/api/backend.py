"""The record by which a plugin offers a backend, common to all kinds."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from fractal.api.context import Context

B_co = TypeVar("B_co", covariant=True)
C = TypeVar("C")

API_VERSION = 1
"""Of everything in `fractal.api` and `fractal.hookspecs`; a record made for another one is refused."""


@dataclass(frozen=True, slots=True)
class Probe:
    """What `probe` found without changing anything."""

    ready: bool
    """Whether the backend could be opened."""
    detail: str
    """One line: a version and where, or what is missing and which package brings it."""


class Offer:
    """What a hook yields: base of every record, whatever its config type.

    Hooks are annotated with the kind's `...Offer` (`Iterable[StoreOffer]`): against a `StoreBackend[Any]` a type checker
    would take the config for Any and let a mismatch through.
    """

    __slots__ = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Backend(Offer, Generic[B_co, C]):
    """One way to do one kind of thing. Frozen; building it does no I/O and imports nothing heavy.

    `config` is a plain frozen dataclass whose fields carry `metadata={"help": "... ."}`; `open` acquires what the backend
    needs and gives it back on exit, also when cancelled. `capabilities` names the optional `Supports*` protocols that the
    opened object satisfies, each by the protocol's class name, and must agree with them.

    The config type ties the fields together: `mypy --strict` flags, at the line that makes a record, an `open` that
    gives the wrong kind of backend and an `open` or `probe` that takes another config than `config`.
    """

    name: str
    """By which a configuration chooses it: 1-40 characters of [a-z0-9_-]."""
    summary: str
    """One sentence for `plugin list`."""
    config: type[C]
    """A frozen dataclass: what can be configured."""
    open: Callable[[Context, C], AbstractAsyncContextManager[B_co]]
    """Called once per start of the agent, with an instance of `config`."""
    probe: Callable[[C], Awaitable[Probe]] | None = None
    """Looks whether the tool behind the backend is there, without opening it."""
    capabilities: frozenset[str] = field(default_factory=frozenset)
    """Names of the `Supports*` protocols that the opened object satisfies."""
    contract: Callable[[C], type[Any]] | None = None
    """Makes the finished class of the kind's contract suite for these settings: what `homeserver plugin check` runs where the kind
    alone does not say how, as for runtimes and transports. It leaves nothing behind and touches nothing that a device uses."""
    api: int = API_VERSION
    """Version of the plugin API that the backend was written for."""
