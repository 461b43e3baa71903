"""Killing and hanging parts of the whole system, one at a time, under a stream of requests."""

from __future__ import annotations

import signal
import time

from tests.stack.bed import until
from tests.stack.real.device import Device
from tests.stack.real.machine import Part
from tests.stack.real.scene import APP, Scene
from tests.stack.real.services import Fault

HANG = 6.0
"""Seconds for which a part hangs: more than any single time-out of a request, less than what has an app frozen."""
RECOVERY = 120.0
"""Seconds within which people must be served again, on a machine that does all of this at once."""


def faults(scene: Scene) -> list[Fault]:
    """Of the device that owns the app now, and of the machines between it and the client."""
    owner = scene.owner()
    assert owner.engine is not None
    return [
        Fault(f"agent of {owner.name}", lambda: _agent(owner), owner.start_agent),
        Fault(f"engine of {owner.name}", lambda: owner.engine.part, owner.engine.start),  # type: ignore[union-attr]
        Fault("agent of the gateway", lambda: _agent(scene.gateway), scene.gateway.start_agent),
        *scene.servers(),
    ]


def _agent(device: Device) -> Part:
    assert device.agent is not None
    return device.agent


def each_recovers(scene: Scene) -> None:
    """SIGKILL and SIGSTOP of each part in turn; afterwards the site answers, and the same device runs the app."""
    for fault in faults(scene):
        for number in (signal.SIGKILL, signal.SIGSTOP):
            one(scene, fault, number)


def one(scene: Scene, fault: Fault, number: signal.Signals) -> None:
    """Hit one part, bring it back, and see that people are served."""
    world, owner = scene.world, scene.owner()
    until(
        lambda: scene.serves(owner) and owner.runs(APP), RECOVERY, f"all is well before {fault.name} is hit"
    )
    stream = scene.stream(threads=2, pause=0.2, timeout=5.0)
    part = fault.part()
    part.send(number)
    if number == signal.SIGKILL:
        part.process.wait(20)
        fault.again()
    else:
        time.sleep(HANG)
        part.send(signal.SIGCONT)
    mended = time.monotonic()
    until(lambda: _well(scene), RECOVERY, f"people are served after {number.name} of {fault.name}")
    took = time.monotonic() - mended
    stream.stop()
    lost = [one for one in stream.journal if not one.good]
    longest = max((one.done - one.sent for one in stream.journal), default=0.0)
    world.say(f"{number.name} of {fault.name}: served {took:.1f} s after it was back")
    world.figure(
        f"{number.name} of {fault.name}: back to well",
        f"{took:.1f} s",
        f"{len(lost)} of {len(stream.journal)} requests lost, longest {longest:.1f} s",
    )


def _well(scene: Scene) -> bool:
    """The owner runs it and says so, and the site answers. It may be another one: then the fault had it taken over."""
    now = scene.owner()
    return now.runs(APP) and scene.serves(now)
