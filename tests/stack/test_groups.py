"""Several apps, several groups, and commands about devices that are elsewhere."""

from __future__ import annotations

from typing import Any

import pytest

from fractal.api.errors import ExitCode, FractalError
from tests.stack.bed import Bed, DemoFailed, Device, Ledger, until

SECOND = "Group 2 (friends)"


def facts(status: dict[str, Any]) -> dict[str, Any]:
    """What every device must agree on."""
    return {
        "position": status["group"]["position"],
        "devices": [(d["name"], d["roles"], d["online"]) for d in status["devices"]],
        "apps": [(a["name"], a["device"], a["epoch"], a["health"], a["desired"]) for a in status["apps"]],
        "warm": [[s["device"] for s in a["standby"]] for a in status["apps"]],
    }


def handle(ledger: Ledger, host: Device, devices: tuple[Device, Device, Device]) -> None:
    """All that people do with an app, asked of devices that it does not run on."""
    door = devices[-1]
    ledger.add(host)
    for asking in devices:
        assert "ledger begins at 0" in asking.run("app", "logs", ledger.name)
        assert asking.run("app", "exec", ledger.name, "--", "echo", "hello there").strip() == "hello there"
        with pytest.raises(DemoFailed, match="exit 3"):
            asking.run("app", "exec", ledger.name, "--", "sh", "-c", "exit 3")
        ledger.add(host)
        assert ledger.save(asking) in ledger.moments(asking)
    door.run("app", "stop", ledger.name)
    assert not host.app_pids(ledger.id)
    until(
        lambda: all(d.app(ledger.name)["health"] == "stopped" for d in devices), 10, "all see that it stopped"
    )
    door.run("app", "start", ledger.name)
    until(lambda: ledger.runs_on(host, door), 20, "it runs again")
    assert ledger.lines(host) == [0, 1, 2, 3]
    door.run("app", "restore", ledger.name, "--at", ledger.moments(door)[0], "--yes")
    until(lambda: ledger.answers(host) and len(ledger.lines(host)) < 4, 20, "it is back at an earlier moment")


def test_everything_is_seen_and_done_from_any_device(bed: Bed) -> None:
    kitchen, attic = bed.group("Kitchen", "Attic")
    door = bed.device("Front door", ("gateway",))
    bed.join(kitchen, door)
    bread = bed.install(kitchen, name="bread")
    jam = bed.install(attic, name="jam")
    where = {"bread": kitchen, "jam": attic}

    def agree() -> bool:
        seen = [facts(d.status()) for d in (kitchen, attic, door)]
        return seen[0] == seen[1] == seen[2] and all(a[3] == "healthy" for a in seen[0]["apps"])

    until(agree, 20, "status is the same on every device")
    text = door.run("status")
    for word in ("bread", "jam", "Kitchen", "Attic", "Front door (this)", "healthy"):
        assert word in text, text
    for ledger in (bread, jam):
        handle(ledger, where[ledger.name], (kitchen, attic, door))
    # One device dies: its app joins the other's, which is not disturbed.
    pids = attic.app_pids(jam.id)
    kitchen.kill_everything()
    bread.wait_for(attic)
    assert attic.app_pids(jam.id) == pids
    assert {a["device"] for a in door.status()["apps"]} == {"Attic"}
    with pytest.raises(FractalError) as caught:
        door.call("app.logs", app="nothing like it")
    assert caught.value.exit_code == ExitCode.NOT_FOUND
    for ledger in (bread, jam):
        ledger.never_twice()


def test_a_device_in_two_groups_keeps_them_apart(bed: Bed) -> None:
    kitchen, attic = bed.group("Kitchen", "Attic")
    cellar = bed.device("Cellar")
    bed.found(cellar, SECOND, bed.shared / "store 2")
    bed.join(cellar, kitchen, SECOND, member="Guest")
    ours = bed.install(kitchen)
    theirs = bed.install(kitchen, group=SECOND)
    assert {g["group"]["name"] for g in kitchen.call("status.show")["groups"]} == {"Group 1", SECOND}
    for host, other in ((attic, SECOND), (cellar, "Group 1")):
        assert len(host.call("status.show")["groups"]) == 1
        with pytest.raises(FractalError) as caught:
            host.status(other)
        assert caught.value.exit_code == ExitCode.NOT_FOUND
    with pytest.raises(FractalError):
        kitchen.call("app.show", app="ledger")  # which one?
    for _ in range(2):
        ours.add(kitchen)
    theirs.add(kitchen)
    ours.save(kitchen)
    theirs.save(kitchen)
    kitchen.kill_everything()
    ours.wait_for(attic)
    until(lambda: theirs.runs_on(cellar), 30, "the other group's app runs on the other group's device")
    assert (ours.lines(attic), theirs.lines(cellar)) == ([0, 1], [0])
    assert not attic.app_pids(theirs.id)
    assert not cellar.app_pids(ours.id)
    kitchen.start()
    until(lambda: len(kitchen.call("status.show")["groups"]) == 2, 10, "it is in both again")
    # Its last changes are a branch by now; while that is not stored, leaving is refused.
    until(lambda: kitchen.run("group", "leave", SECOND, "--yes") is not None, 40, "it may leave")
    until(lambda: len(kitchen.call("status.show")["groups"]) == 1, 10, "it left one")
    assert kitchen.app()["device"] == "Attic"
    assert not uses(kitchen, theirs.id), "what it held of the other group's app is gone"
    for ledger in (ours, theirs):
        ledger.never_twice()


def uses(device: Device, app: str) -> list[str]:
    """Files of an app on a device."""
    return [str(p) for p in device.state.rglob("*") if app in str(p) and p.is_file()]
