"""What the plugin offers."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager

from fractal.api.backend import Probe
from fractal.api.context import Context
from fractal.api.coordination import CoordinationBackend, CoordinationOffer, Coordinator
from fractal.hookspecs import hookimpl
from fractal_matrix.config import MatrixConfig


@asynccontextmanager
async def open_matrix(context: Context, config: MatrixConfig) -> AsyncIterator[Coordinator]:
    """Open lazily: a device need not reach a homeserver, or be known to one, for its agent to start."""
    from fractal_matrix.coordinator import open_coordinator

    async with open_coordinator(context, config) as coordinator:
        yield coordinator


async def probe_matrix(config: MatrixConfig) -> Probe:  # noqa: ARG001 - whom to ask is in the state folder
    """Whether the client library is there; a homeserver is known only after `homeserver login` or an invitation."""
    try:
        import nio  # noqa: F401
    except ImportError as error:
        return Probe(
            ready=False, detail=f"matrix-nio is missing ({error}): pip install fractal-homeserver[matrix]"
        )
    return Probe(
        ready=True, detail="matrix-nio is there; accounts come from `homeserver login` or an invitation"
    )


@hookimpl
def fractal_coordinators() -> Iterable[CoordinationOffer]:
    """The log in a Matrix room."""
    yield CoordinationBackend(
        name="matrix",
        summary="The group's log in a room of a Matrix homeserver.",
        config=MatrixConfig,
        open=open_matrix,
        probe=probe_matrix,
    )
