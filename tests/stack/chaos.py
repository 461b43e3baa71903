"""SIGKILL to processes chosen at random, and what must hold afterwards."""

from __future__ import annotations

import random
import signal
import time
from functools import partial

from tests.stack.bed import Bed, Device, Ledger, comm_of, kill, nothing, until


class Chaos:
    """Kills processes of the devices in `bed` that share a ledger; agents are started again, as a supervisor would."""

    def __init__(self, bed: Bed, ledger: Ledger, seed: int) -> None:
        self.bed = bed
        self.ledger = ledger
        self.dice = random.Random(seed)
        self.committed: dict[str, int] = {}
        """Moment that was reported as committed -> lines that were acknowledged before it was asked for."""

    def round(self) -> None:
        """A few kills at random moments, with snapshots taken between them; then wait for nothing."""
        for _ in range(self.dice.randint(1, 3)):
            time.sleep(self.dice.uniform(0, 1.5))
            self.save()
            time.sleep(self.dice.uniform(0, 0.5))
            self.strike()
            self.supervise()

    def strike(self) -> None:
        """SIGKILL to one process of one device, or now and then to all of them."""
        device = self.dice.choice(self.bed.devices)
        pids = device.processes()
        if not pids:
            return
        if self.dice.random() < 0.2:
            print(f"kill all of {device.name}")
            device.kill_everything()
            return
        pid = self.dice.choice(pids)
        print(f"kill {comm_of(pid)} {pid} of {device.name}")
        kill(pid, signal.SIGKILL)

    def supervise(self) -> None:
        """Start agents that died."""
        for device in self.bed.devices:
            if device.agent is None or device.agent.poll() is not None:
                if device.agent is not None:
                    device.reap()
                device.start()

    def owner(self) -> Device | None:
        """Where the group believes it to run."""
        for device in self.bed.devices:
            try:
                name = device.app(self.ledger.name, self.ledger.group)["device"]
                return next(d for d in self.bed.devices if d.name == name)
            except Exception:
                continue
        return None

    def save(self) -> None:
        """Ask for a snapshot; if it is reported as committed, it must be restorable from now on."""
        try:
            owner = self.owner()
            if owner is None or not self.ledger.answers(owner):
                return
            lines = self.ledger.add(owner) + 1
            done = owner.call("snapshot.create", app=self.ledger.name, group=self.ledger.group, wait_s=4)
            if done["done"] and done["moment"]:
                self.committed[str(done["moment"])] = lines
        except Exception as error:
            print(f"no snapshot: {error!r}"[:200])

    def settle(self) -> Device:
        """Everything calms down: exactly one copy runs, and everybody says where."""

        def calm() -> bool:
            self.supervise()  # here, as a process takes a moment to die
            owners = {d.app(self.ledger.name, self.ledger.group)["device"] for d in self.bed.devices}
            owner = self.owner()
            return owner is not None and owners == {owner.name} and self.ledger.runs_on(owner)

        until(calm, 120, "one copy runs and all agree on where")
        owner = self.owner()
        assert owner is not None
        others = [d for d in self.bed.devices if d is not owner]
        until(lambda: not any(d.app_pids(self.ledger.id) for d in others), 30, "no other copy exists")
        return owner

    def check(self, owner: Device, *, restore: int = 2) -> None:
        """Invariants after the storm: one runner, whole data, nothing that was committed is lost, nothing left over."""
        self.ledger.never_twice()
        self.ledger.lines(owner)
        listed = set(self.ledger.moments(owner)) | set(self.ledger.moments(owner, branches=True))
        missing = set(self.committed) - listed
        assert not missing, f"reported as committed, and gone: {missing}"
        self.ledger.save(owner)
        self.ledger.verify(owner)
        newest = list(self.committed)[-1:]
        others = self.dice.sample(list(self.committed), min(restore - 1, len(self.committed)))
        for moment in {*newest, *others}:
            assert self.ledger.at(owner, moment) >= self.committed[moment], moment
        for device in self.bed.devices:
            nothing(partial(unfinished, device, self.ledger), 30, f"nothing is left over on {device.name}")


def unfinished(device: Device, ledger: Ledger) -> list[str]:
    """Files of work that was begun and neither ended nor dropped, and those of apps that are gone."""
    found = []
    for path in device.state.rglob("*"):
        name = str(path.relative_to(device.state))
        inside = path.is_file() and "spool" in path.parts
        if (inside and (path.name != "done" or ledger.id not in name)) or path.name.endswith(
            (".new", ".part", ".partial", ".tmp")
        ):
            found.append(name)
    return found
