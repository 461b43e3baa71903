"""What people are told to do about an app whose device is silent."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fractal.agent.control.leaving import _taken_over
from fractal.agent.status import _without
from fractal.core.model import App, GroupState, Policy

APP = App(id="x", name="x", manifest="", spec={}, store="s", owner_member="m", epoch=2, owner="attic")
KEEP, FREEZE = Policy(failover="manual", on_isolation="keep"), Policy(failover="manual")


@pytest.mark.parametrize(
    ("policy", "unproven", "told"),
    [
        (Policy(), 0, "another device takes it over"),
        (FREEZE, 0, "`homeserver app move 'x' DEVICE`"),
        # An epoch from before the policy runs by proof only.
        (KEEP, 0, "`homeserver app move 'x' DEVICE`"),
        (KEEP, 9, "`homeserver device remove 'attic'` frees it"),
        (FREEZE, 9, "until it has read the new policy"),
        (Policy(), 9, "until it has read the new policy"),
    ],
)
def test_nobody_is_told_to_wait_for_what_does_not_come(policy: Policy, unproven: int, told: str) -> None:
    assert told in _without(replace(APP, policy=policy, unproven=unproven), "attic")


@pytest.mark.parametrize("unproven", [0, 9])
def test_whoever_removes_a_device_is_told_what_may_run_on_there(unproven: int) -> None:
    state = GroupState(apps={"x": replace(APP, unproven=unproven)})
    (action,) = _taken_over(state, frozenset({"attic"}))
    assert ("still runs on attic" in action.what) is bool(unproven)
