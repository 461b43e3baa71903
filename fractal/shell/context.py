"""A real `Context` for one backend without an agent: real clock, threads and processes below a folder of one's own."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from fractal.api.context import Context
from fractal.shell.clock import SystemClock
from fractal.shell.entropy import SystemEntropy
from fractal.shell.process import ProcessRun
from fractal.shell.workers import ThreadWorkers


@asynccontextmanager
async def real_context(folder: Path, *, device: str = "0" * 20) -> AsyncIterator[Context]:
    """The outermost shell's own parts, with `state` and `run` folders (0700) made below `folder`."""
    state, runtime = folder / "state", folder / "run"
    for path in (state, runtime):
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    async with ThreadWorkers() as workers:
        yield Context(
            device=device,
            state_dir=state,
            runtime_dir=runtime,
            logger=logging.getLogger("fractal"),
            clock=SystemClock(),
            entropy=SystemEntropy(),
            workers=workers,
            run=ProcessRun(),
        )
