"""The pluggy hooks. All are called once, at load, on the main thread; none does I/O and none is called per operation.

A plugin is a module named by an entry point of group `fractal.plugins`:

    # my_plugin.py
    from fractal.hookspecs import hookimpl

    @hookimpl
    def fractal_stores() -> Iterable[StoreOffer]:
        yield StoreBackend(name="tape", summary="Objects on tape.", config=TapeConfig, open=open_tape)
"""

from __future__ import annotations

from collections.abc import Iterable

import pluggy

from fractal.api.authority import AuthorityOffer
from fractal.api.catalog import CatalogOffer
from fractal.api.coordination import CoordinationOffer
from fractal.api.events import Event
from fractal.api.health import HealthCheck
from fractal.api.runtime import RuntimeOffer
from fractal.api.snapshot import SnapshotOffer
from fractal.api.store import StoreOffer
from fractal.api.transport import TransportOffer

PROJECT = "fractal"
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@hookspec
def fractal_runtimes() -> Iterable[RuntimeOffer]:
    """Offer runtimes: `yield RuntimeBackend(name="lxc", summary="...", config=Config, open=open_lxc)`."""
    return ()


@hookspec
def fractal_snapshotters() -> Iterable[SnapshotOffer]:
    """Offer snapshotters: `yield SnapshotBackend(name="xfs", summary="...", config=Config, open=open_xfs)`."""
    return ()


@hookspec
def fractal_stores() -> Iterable[StoreOffer]:
    """Offer stores: `yield StoreBackend(name="tape", summary="...", config=Config, open=open_tape)`."""
    return ()


@hookspec
def fractal_transports() -> Iterable[TransportOffer]:
    """Offer transports: `yield TransportBackend(name="tor", summary="...", config=Config, open=open_tor)`."""
    return ()


@hookspec
def fractal_authorities() -> Iterable[AuthorityOffer]:
    """Offer authorities: `yield AuthorityBackend(name="step", summary="...", config=Config, open=open_step)`."""
    return ()


@hookspec
def fractal_coordinators() -> Iterable[CoordinationOffer]:
    """Offer coordinators: `yield CoordinationBackend(name="nats", summary="...", config=Config, open=open_nats)`."""
    return ()


@hookspec
def fractal_catalogs() -> Iterable[CatalogOffer]:
    """Offer catalogs: `yield CatalogBackend(name="git", summary="...", config=Config, open=open_git)`."""
    return ()


@hookspec
def fractal_health_checks() -> Iterable[HealthCheck]:
    """Offer checks for `homeserver doctor`: `yield HealthCheck(name="raid", summary="...", check=check_raid)`."""
    return ()


@hookspec
def fractal_event(event: Event) -> None:
    """Be told of an event. Return quickly; an exception is logged and goes no further."""
