"""Agents of different minor versions in one group."""

from __future__ import annotations

import os
from pathlib import Path

from fractal import __version__
from tests.stack.bed import Bed, Device, until

ALTERED = Path(__file__).with_name("altered")


def test_agents_of_two_minor_versions_work_together(bed: Bed) -> None:
    path = os.pathsep.join([str(ALTERED / "newer"), os.environ.get("PYTHONPATH", "")])
    kitchen, attic = devices = [bed.device("Kitchen"), bed.device("Attic", env={"PYTHONPATH": path})]
    bed.found(kitchen)
    bed.join(kitchen, attic)
    versions = {"Kitchen": __version__, "Attic": "0.2.0"}

    def known(device: Device) -> bool:
        return {d["name"]: d["version"] for d in device.status()["devices"]} == versions

    until(lambda: all(map(known, devices)), 20, "both see who has which version")
    ledger = bed.install(kitchen)
    ledger.add(kitchen)
    ledger.save(kitchen)
    kitchen.run("app", "move", "ledger", "Attic", "--group", "Group 1")
    ledger.wait_for(attic)
    ledger.add(attic)
    ledger.save(attic)
    attic.kill_everything()
    ledger.wait_for(kitchen)
    assert ledger.lines(kitchen) == [0, 1]
    attic.start()
    until(lambda: attic.app()["health"] == "healthy" and attic.app()["device"] == "Kitchen", 20, "it is back")
    kinds = {e["kind"]: e for e in kitchen.entries()}
    assert "pantry.opened" in kinds, "the newer one wrote what the older does not know"
    assert kinds["pantry.opened"]["skipped"], "and the older one skipped it"
    assert any(e["kind"] == "lease.serving" and not e["skipped"] for e in kitchen.entries())
    assert not any(d.status()["group"]["alarms"] for d in devices)
    until(lambda: len({d.status()["group"]["position"] for d in devices}) == 1, 10, "both have read the same")
    ledger.never_twice()
