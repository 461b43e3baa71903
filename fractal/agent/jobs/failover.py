"""Suspecting, challenging, answering, taking over: docs/explanation/failover.md, section by section."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from typing import TYPE_CHECKING

from fractal.agent.journal import Stale
from fractal.api.errors import BackendError, Conflict, FractalError
from fractal.core.entries import Answered, Challenged, Found, Took
from fractal.core.fold_lease import MAX_LEAP
from fractal.core.lease import (
    Seen,
    Take,
    check_timers,
    clean_succession,
    may_give_word,
    observe,
    read_up_to,
    seconds,
    takes,
    to_challenge,
    wait_until,
    watched,
)
from fractal.core.model import App, GroupState
from fractal.core.placement import manages, trusted

if TYPE_CHECKING:
    from fractal.agent.group import GroupAgent

LOOK = 0.5
"""Seconds before something that did not work is looked at again."""
SHORTEST = 0.02
LONGEST = 5.0
"""Seconds between two looks when nothing wakes the job."""
LONGEST_TRY = 5.0
"""Longest pause between two tries to take an app whose store does not let it."""
FOUND_AFTER = 3.0
"""Seconds that an unannounced epoch may stand in the store before somebody else announces it."""
GATHER = 2.0
"""Seconds for which an epoch that was created here waits for others, to be announced by one entry with them."""
FRESH = 1.0
"""Seconds since which a read of the log must have been sent for an epoch to be created on what it says."""


async def answer(group: GroupAgent) -> None:
    """Answer every challenge to this device at once. An answer waits for no disk and no store.

    And say that a policy was read that no longer keeps an app: until then nobody takes that one over.
    """
    pulse = 0

    def bound() -> dict[str, int]:
        return {app: job.bound for app, job in group.jobs.items()}

    def due(state: GroupState) -> bool:
        return group.me in state.challenges or may_give_word(state, group.me, bound())

    while True:
        if due(group.state):
            # A challenge is answered at once, and may be while the guard does not go by that policy yet.
            seen = read_up_to(group.state, group.me, bound())
            await group.journal.append(Answered(seen=seen), wanted=due)
        pulse = await group.pulse.wait(pulse, 5.0)


async def challenge(group: GroupAgent) -> None:
    """Challenge devices that are silent for longer than patience."""
    clock = group.agent.clock
    answers = group.state.answers
    pulse = 0
    while True:
        now = clock.boottime()
        if group.state.answers is not answers:
            for device, position in group.state.answers.items():
                if answers.get(device) != position:
                    group.suspicion = group.suspicion.answered(device, now, group.state.timers)
            answers = group.state.answers
        if not group.deaf and not group.blind and not check_timers(group.state.timers):
            for device in to_challenge(group.state, group.me, group.suspicion, now, clock.wall_ms()):
                group.logger.info(
                    "challenging %s: silent for %.0f s", device, group.suspicion.silence(device, now)
                )
                await _challenge_one(group, device)
        pulse = await group.pulse.wait(pulse, _until_suspicion(group))


def _until_suspicion(group: GroupAgent) -> float:
    """Seconds until the next device is suspected if nothing more is heard of it: a look at that very moment, not at the next one."""
    clock, timers = group.agent.clock, group.state.timers
    now = clock.boottime()
    due = [group.suspicion.suspected_at(d, timers) for d in watched(group.state, group.me, clock.wall_ms())]
    later = min((at - now for at in due if at > now), default=seconds(timers.beat))
    if group.deaf or any(at <= now for at in due):
        later = min(LOOK, later)  # a challenge that did not go out
    return max(SHORTEST, min(later, seconds(timers.beat)))


async def _challenge_one(group: GroupAgent, device: str) -> None:
    def wanted(state: GroupState) -> bool:
        still = group.suspicion.suspected(device, group.agent.clock.boottime(), state.timers)
        return still and device not in state.challenges

    try:
        # A challenge that is sent into an outage gets into the log when that ends, and there is heard before its device reads again.
        await group.journal.poll(0)
    except BackendError:
        return  # silence counts from zero now
    try:
        await group.journal.append(Challenged(device=device), wanted=wanted)
    except Stale:
        group.logger.info("no challenge: %s gave a sign of life", device)


async def take_over(group: GroupAgent) -> None:
    """Take the apps that are free for this device, as soon as its rank allows."""
    clock = group.agent.clock
    unannounced: dict[tuple[str, int], float] = {}
    tries: dict[str, tuple[float, float]] = {}
    observed: GroupState | None = None
    known: tuple[GroupState, Seen] | None = None
    free: tuple[Take, ...] = ()
    pulse = 0
    while True:
        now = clock.boottime()
        if group.state is not observed:
            observed = group.state
            group.seen = observe(observed, group.seen, now)
        await _announce_found(group, unannounced, now)
        if known is None or group.state is not known[0] or group.seen is not known[1]:
            known = group.state, group.seen
            free = takes(group.state, group.me, group.seen)  # they come of these alone
        found = () if group.blind or group.agent.stopping else free
        due = [t for t in found if t.at <= now and tries.get(t.app, (0.0, 0.0))[0] <= now]
        if due and not check_timers(group.state.timers):
            await _take(group, due, tries)
        waits = [
            *(max(t.at, tries.get(t.app, (0.0, 0.0))[0]) for t in found),
            *(since + FOUND_AFTER for since in unannounced.values()),
        ]
        later = min((at - now for at in waits if at > now), default=LONGEST)
        pulse = await group.pulse.wait(pulse, max(SHORTEST, min(LOOK if due else LONGEST, later)))


async def _announce_found(group: GroupAgent, unannounced: dict[tuple[str, int], float], now: float) -> None:
    """An epoch object is its own announcement: whoever sees one above the announced epoch says so."""
    for app in group.state.apps.values():
        store = group.stores.get(app.store)
        highest = store.highest(app.id) if store else 0
        if (
            app.removed
            or highest <= app.epoch
            or not (trusted(app, group.me) or manages(group.state, app, group.me))
        ):
            continue
        since = unannounced.setdefault((app.id, highest), now)
        if now - since >= FOUND_AFTER and store is not None:
            # In steps that the fold takes: a hostile device may have left thousands out.
            listed = store.listed[app.id]
            epoch = max((e for e in listed if app.epoch < e <= app.epoch + MAX_LEAP), default=0)
            if epoch:
                await _found(group, app, epoch, listed[epoch].owner)


async def _found(group: GroupAgent, app: App, epoch: int, owner: str) -> None:
    try:
        await group.journal.append(
            Found(app=app.id, epoch=epoch, owner=owner),
            wanted=lambda state: app.id in state.apps and state.apps[app.id].epoch < epoch,
        )
    except Stale:
        return


async def _take(group: GroupAgent, due: list[Take], tries: dict[str, tuple[float, float]]) -> None:
    """One round of taking: read the log, list the stores, create the epochs, announce those of the same moment at once.

    `tries` keeps, of each app that could not be taken, when it is tried next, and the pause before that.
    """
    await group.journal.poll(0)
    by_store: defaultdict[str, list[Take]] = defaultdict(list)
    for take in due:
        if _free(group, take.app) and _holds_key(group, take.app):
            by_store[group.app(take.app).store].append(take)
    taken: dict[str, tuple[int, float]] = {}
    working = {asyncio.create_task(_take_in(group, found, tries, taken)) for found in by_store.values()}
    any_taken = False
    try:
        while working:
            done, working = await asyncio.wait(working, timeout=LOOK, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
            first = min((acknowledged for _, acknowledged in taken.values()), default=None)
            if first is not None and (not working or group.agent.clock.boottime() - first >= GATHER):
                any_taken = True
                await _announce_taken(group, taken)
    finally:
        for task in working:
            task.cancel()
        if working:
            await asyncio.wait(working)
    if not any_taken:
        await group.agent.clock.sleep(LOOK)


async def _take_in(
    group: GroupAgent,
    found: list[Take],
    tries: dict[str, tuple[float, float]],
    taken: dict[str, tuple[int, float]],
) -> None:
    """Take one store's apps, one after the other; `taken` gets epoch and instant of those that were."""
    clock = group.agent.clock
    for take in found:
        try:
            epoch = await _create(group, group.app(take.app), take)
        except (FractalError, TimeoutError) as error:
            # One app's store being away, or set up wrongly, must not keep this device from taking the others.
            why = str(error) or "its store did not answer in time"
            pause = min(LONGEST_TRY, 2 * tries.get(take.app, (0.0, LOOK / 2))[1])
            if pause == LOOK:
                group.logger.warning("cannot take %s: %s", group.app(take.app).name, why)
            tries[take.app] = (clock.boottime() + pause, pause)
            continue
        tries.pop(take.app, None)
        if epoch:
            taken[take.app] = epoch, clock.boottime()


async def _announce_taken(group: GroupAgent, taken: dict[str, tuple[int, float]]) -> None:
    """Announce what was taken so far, and begin its wait."""
    batch = dict(taken)
    taken.clear()
    await _announce(group, {app: epoch for app, (epoch, _) in batch.items()})
    for app, (epoch, acknowledged) in batch.items():
        await _begin_wait(group, app, epoch, acknowledged, group.agent.clock.boottime())
    group.pulse.beat()


def _free(group: GroupAgent, app: str) -> bool:
    """Whether this device may take the app now, as far as the log was read."""
    if group.blind or group.agent.stopping:
        return False
    now = group.agent.clock.boottime()
    return any(t.app == app and t.at <= now for t in takes(group.state, group.me, group.seen))


async def _free_still(group: GroupAgent, app: str) -> bool:
    """The same by a read of the log of a moment ago: a store may have taken seconds, and the owner have answered meanwhile."""
    sent = group.journal.proof_sent
    if sent is None or group.agent.clock.boottime() - sent > FRESH:
        await group.journal.poll(0)
    return _free(group, app)


def _holds_key(group: GroupAgent, app: str) -> bool:
    """Whether the app's newest key, which the log says was sealed to this device, is one. Without it the app is better off
    elsewhere."""
    job = group.jobs.get(app)
    return job is None or group.app(app).keys[-1].generation in job.data.keyring().secrets


async def _create(group: GroupAgent, app: App, take: Take) -> int:
    """Create the app's next epoch in its store: the lock. 0 if another device was first, or the app is not free any more."""
    opened = await group.list_epochs(app.store)
    highest = opened.highest(app.id)
    if highest > app.epoch:
        # Somebody took it and did not announce it yet: follow, do not jump over.
        return 0
    epoch = max(highest, app.epoch) + 1
    clean = clean_succession(app, epoch, highest)
    if not clean and not opened.store.fencing:
        # Only an orderly handover is safe where two devices could both create one epoch.
        store = group.state.stores[app.store].name
        raise BackendError(
            f"store {store!r} cannot fence, so nothing is taken over from a silent owner there: bring its device back, "
            f"or run a copy by `homeserver app fork {app.name} NAME`; what is to fail over must be installed in a store that fences"
        )
    if not await _free_still(group, app.id):
        return 0
    async with asyncio.timeout(seconds(group.state.timers.read_timeout) * 3):
        try:
            timers = group.state.timers
            await opened.epochs.create(app.id, epoch, timers)
        except Conflict:
            group.logger.info("%s: another device took epoch %d first", app.name, epoch)
            return 0
    group.logger.info("took %s at epoch %d: %s", app.name, epoch, take.why.value)
    job = group.jobs.get(app.id)
    if job is not None:
        clean_epoch = epoch if clean else job.facts.now.clean
        job.facts.change(clean=clean_epoch, stated=epoch, proof=timers.proof)
    group.agent.tell(
        "app.taken", group=group, app=app.id, text=f"{app.name}: {take.why.value}, taken at epoch {epoch}"
    )
    return epoch


async def _announce(group: GroupAgent, taken: dict[str, int]) -> None:
    def wanted(state: GroupState) -> bool:
        return any(app in state.apps and state.apps[app].epoch < epoch for app, epoch in taken.items())

    try:
        await group.journal.append(Took(epochs=taken), wanted=wanted)
    except Stale:
        return


async def _begin_wait(group: GroupAgent, app: str, epoch: int, acknowledged: float, read_back: float) -> None:
    job = group.jobs.get(app)
    if job is not None:
        job.terms.begin_wait(epoch, acknowledged, read_back)


def wait_end(group: GroupAgent, app: str, epoch: int, acknowledged: float, read_back: float) -> float:
    """End of the wait of an epoch, by the largest timers found in the app's listed epochs."""
    listed = group.stored(group.app(app)).values()
    timers = group.state.timers
    job = group.jobs.get(app)
    store = group.stores.get(group.app(app).store)
    return wait_until(
        acknowledged=acknowledged,
        read_back=read_back,
        longest_proof=max([timers.proof, *(r.proof_ms for r in listed)]),
        longest_margin=max([timers.margin, *(r.margin_ms for r in listed)]),
        staleness=max(group.agent.coordinator.staleness, store.store.staleness if store else 0.0),
        clean=job is not None and job.facts.now.clean == epoch,
    )
