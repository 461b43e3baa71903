"""What the plugin offers. This module is imported whenever the plugin is looked at: keep it light."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractAsyncContextManager

from fractal.api.context import Context
from fractal.api.events import Event
from fractal.api.store import Store, StoreBackend, StoreOffer
from fractal.hookspecs import hookimpl
from fractal_example.config import ExampleConfig


@hookimpl
def fractal_stores() -> Iterable[StoreOffer]:
    """One store."""
    yield StoreBackend(
        name="example",
        summary="Objects as files of one folder, named by their hash.",
        config=ExampleConfig,
        open=_open,
    )


@hookimpl
def fractal_event(event: Event) -> None:
    """Called for everything worth telling a person. Return quickly; what is raised here is logged and dropped."""
    from fractal_example.journal import note

    note(event)


def _open(context: Context, config: ExampleConfig) -> AbstractAsyncContextManager[Store]:
    from fractal_example.store import open_example

    return open_example(context, config)
