"""Keeping a job running: an error ends one round of it, never the agent."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from fractal.api.context import Clock
from fractal.api.errors import FractalError

FIRST_PAUSE = 0.5
LONGEST_PAUSE = 15.0


async def supervise(
    name: str, job: Callable[[], Awaitable[None]], clock: Clock, logger: logging.Logger
) -> None:
    """Run `job` again and again, with a growing pause after failures, until cancelled or until it returns."""
    pause = FIRST_PAUSE
    last = ""
    while True:
        began = clock.boottime()
        try:
            await job()
            return
        except asyncio.CancelledError:
            raise
        except FractalError as error:
            # Said once when it begins, not at every attempt: a store that is away for a day is one line.
            if str(error) != last:
                logger.warning("%s: %s", name, error)
            last = str(error)
        except Exception:  # outermost isolation: one job's bug must not take down the others
            logger.exception("%s: unexpected error, the job starts again", name)
        pause = FIRST_PAUSE if clock.boottime() - began > LONGEST_PAUSE else min(LONGEST_PAUSE, pause * 2)
        await clock.sleep(pause)
