"""Signals: telling the others that one lives, and hearing them."""

from __future__ import annotations

import asyncio
from operator import attrgetter
from typing import TYPE_CHECKING

from fractal.agent.beats import Beat, beat_bytes, read_beat
from fractal.api.errors import FractalError
from fractal.core.lease import seconds
from fractal.crypto.seal import open_group, seal_group

if TYPE_CHECKING:
    from fractal.agent.group import GroupAgent

AAD = b"fhs-signal"
MOST = 1000
"""Signals taken in at a time: a flood must not hold up everything else. Which ones come is the log server's choice anyway."""


async def exchange_signals(group: GroupAgent) -> None:
    """Send a beat every `beat` and take in those of the others. Lost ones cost nothing but patience."""
    agent = group.agent
    problem = ""
    while True:
        interval = seconds(group.state.timers.beat)
        if not group.state.generation:
            await agent.clock.sleep(0.2)
            continue
        try:
            async with asyncio.timeout(interval):
                await agent.coordinator.signal(group.journal.address, seal_beat(group))
                await hear(group)
            problem = ""
        except (FractalError, TimeoutError) as error:
            said = str(error) or "timed out"
            if said != problem:
                group.logger.info("signals: %s", said)
            problem = said
        await agent.clock.sleep(interval * agent.entropy.uniform(0.8, 1.0))


def seal_beat(group: GroupAgent) -> bytes:
    """What this device says of itself now, sealed."""
    generation, key = group.journal.group_key()
    beat = Beat(
        device=group.me,
        run=group.voice.run,
        number=group.voice.next(),
        apps={a: job.beat() for a, job in group.jobs.items() if job.owns},
        warm={a: point for a, job in group.jobs.items() if (point := job.fetched) is not None},
        nonce=group.remote.nonce,
        capacity=group.agent.capacity(),
        wall_ms=group.agent.clock.wall_ms(),
    )
    said = beat_bytes(beat, group.id, group.agent.keys)
    return seal_group(said, key, AAD + generation.to_bytes(4, "big"), group.agent.entropy)


async def hear(group: GroupAgent) -> None:
    """Take in what arrived; what cannot be read is no sign of life."""
    agent = group.agent
    generation, key = group.journal.group_key()
    aad = AAD + generation.to_bytes(4, "big")
    now = agent.clock.boottime()
    woken = False
    for signal in (await agent.coordinator.signals(group.journal.address))[:MOST]:
        if group.remote.receive(signal.payload):
            continue
        try:
            plain = open_group(signal.payload, key, aad)
            beat = read_beat(plain, group.id, group.sign_key_of)
        except FractalError:
            continue
        known = group.state.devices.get(beat.device)
        last = group.beats.get(beat.device)
        if known is None or known.removed or beat.device == group.me or not group.ear.news(beat):
            continue
        woken = woken or last is None or _news(last, beat)
        group.beats[beat.device], group.heard[beat.device] = beat, now
        group.suspicion = group.suspicion.heard(beat.device, now, group.state.timers)
    if woken:
        group.pulse.beat()


_TOLD = attrgetter("epoch", "health", "frozen", "committed", "spec", "detail")
"""What of an app's part of a beat is worth waking anybody: not that data got older."""


def _news(last: Beat, beat: Beat) -> bool:
    """Whether a beat says anything that the last one did not."""
    if last.warm != beat.warm or last.apps.keys() != beat.apps.keys():
        return True
    return any(_TOLD(last.apps[app]) != _TOLD(said) for app, said in beat.apps.items())
