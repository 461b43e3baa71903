"""Following the log and the stores: where every proof comes from."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from fractal.api.errors import BackendError, FractalError
from fractal.core.lease import seconds

if TYPE_CHECKING:
    from fractal.agent.group import GroupAgent

LOG_LATE = 2.0
"""A listing is started when a log read is this many seconds late, not only after its time-out."""
WATCH_INTERVAL = 10.0
"""Seconds between listings while somebody is challenged, or where listing costs next to nothing."""
IDLE_INTERVAL = 60.0
READ_AGAIN = 0.5
"""Seconds at least between two reads of a log that fails; one that hung has waited long enough."""
OPEN_AGAIN = 5.0
"""Seconds before a store that could not be opened is tried again."""
LIST_AGAIN = 0.5
"""The same of one that could not be listed."""
SHORTEST, LONGEST = 0.02, 5.0
"""Seconds between two looks."""


async def follow_log(group: GroupAgent) -> None:
    """Read the log for ever, each read a short long poll: a long one would hide its age."""
    clock = group.agent.clock
    while True:
        timers = group.pace
        began = clock.boottime()
        try:
            async with asyncio.timeout(seconds(timers.poll + timers.read_timeout)):
                await group.journal.poll(seconds(timers.poll))
        except (BackendError, TimeoutError) as error:
            group.heard_log(False)
            problem = str(error) or "reading the log timed out"
            if problem != group.log_problem:
                group.logger.warning("log: %s", problem)
            group.log_problem = problem
            await clock.sleep(began + READ_AGAIN - clock.boottime())
            continue
        if group.log_problem and not group.deaf:  # not one that made room for another read
            group.logger.info("log: readable again")
            group.log_problem = ""


async def follow_stores(group: GroupAgent) -> None:
    """List the epochs in every store that an app uses: seldom while the log proves enough, at once when it is late."""
    clock = group.agent.clock
    reported: dict[str, str] = {}
    not_before: dict[str, float] = {}
    pulse = 0
    while True:
        stores = sorted({a.store for a in group.state.apps.values() if not a.removed}) if group.hosts else []
        for store in stores:
            now = clock.boottime()
            if now < not_before.get(store, 0.0) or now < _due(group, store):
                continue
            try:
                await group.list_epochs(store)
                reported.pop(store, None)
            except FractalError as error:
                if reported.get(store) != str(error):
                    group.logger.warning("store: %s", error)
                reported[store] = str(error)
                # One that cannot even be opened is nothing that passes within a moment.
                not_before[store] = clock.boottime() + (LIST_AGAIN if store in group.stores else OPEN_AGAIN)
        now = clock.boottime()
        waits = [max(_due(group, store), not_before.get(store, 0.0)) - now for store in stores]
        pulse = await group.pulse.wait(pulse, max(SHORTEST, min([LONGEST, *waits])))


def _due(group: GroupAgent, store: str) -> float:
    """When the store is to be listed next if no read of the log comes to its end until then."""
    opened = group.stores.get(store)
    if opened is None or opened.sent is None:
        return 0.0
    log = group.journal.proof_sent
    timers = group.pace
    # While all is well the proof is as old as two polls: that of the read before, while the next one is held by the server.
    late = 2 * seconds(timers.poll) + min(LOG_LATE, seconds(timers.proof) / 8)
    usual = opened.sent + (WATCH_INTERVAL if group.state.challenges else IDLE_INTERVAL)
    without_log = max(opened.sent + LOG_LATE, 0.0 if log is None else log + late)
    return min(usual, without_log)
