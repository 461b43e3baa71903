"""By which terms a taker waits and an owner counts, whatever it has read, listed or forgotten."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

from fractal.agent.local import Local
from fractal.agent.terms import Terms
from fractal.core.lease import PROFILES
from fractal.core.model import Timers

LAG = 10.0


class Owner:
    """The job of an app whose epoch 2 is this device's, in a group that is `fast`."""

    def __init__(self, noted: Local | None = None) -> None:
        self.listed: dict[int, Any] = {}
        self.store = SimpleNamespace(sent=None, store=SimpleNamespace(staleness=LAG))
        app = SimpleNamespace(id="x", store="s", epoch=2)
        self.group = SimpleNamespace(
            state=SimpleNamespace(timers=PROFILES["fast"]),
            stores={},
            jobs={"x": self},
            app=lambda _: app,
            stored=lambda _: self.listed,
            agent=SimpleNamespace(coordinator=SimpleNamespace(staleness=0.0)),
        )
        self.id, self.app, self.owns = "x", app, True
        self.facts = SimpleNamespace(now=noted or Local())
        self.terms = Terms(cast("Any", self))

    def list(self, *profiles: str) -> None:
        """The store shows epochs 1, 2, ... that were created under these timers."""
        self.group.stores["s"] = self.store
        self.store.sent = 50.0
        made = (PROFILES[name] for name in profiles)
        self.listed = {
            n: SimpleNamespace(proof_ms=t.proof, margin_ms=t.margin) for n, t in enumerate(made, start=1)
        }


def full(timers: Timers) -> float:
    return (timers.proof + timers.margin) / 1000 + LAG


def test_a_forgotten_wait_begins_anew_with_the_first_listing() -> None:
    owner = Owner()
    assert owner.terms.wait_over(100.0) is None
    owner.group.stores["s"] = owner.store  # opened, and not listed yet
    assert owner.terms.wait_over(105.0) is None
    owner.list("fast", "fast")
    assert owner.terms.wait_over(110.0) == 110.0 + full(PROFILES["fast"])
    assert owner.terms.wait_over(120.0) == 110.0 + full(PROFILES["fast"])


def test_a_wait_lasts_as_long_as_the_longest_proof_that_any_listing_shows() -> None:
    owner = Owner()
    owner.list()
    assert owner.terms.wait_over(110.0) == 110.0 + full(PROFILES["fast"])
    owner.list("patient", "fast")
    assert owner.terms.wait_over(115.0) == 110.0 + full(PROFILES["patient"])


def test_the_wait_of_ones_own_take_counts_from_the_later_of_put_and_announcement() -> None:
    owner = Owner()
    owner.list("standard", "fast")
    owner.terms.begin_wait(2, 90.0, 92.0)
    assert owner.terms.wait_over(95.0) == 92.0 + full(PROFILES["standard"])
    assert Owner(Local(waited=2)).terms.wait_over(95.0) is None


def test_an_owner_knows_its_own_terms_where_the_store_is_away() -> None:
    owner = Owner(Local(stated=2, proof=PROFILES["fast"].proof))
    owner.group.state.timers = PROFILES["patient"]
    assert owner.terms.timers.proof == PROFILES["fast"].proof
    # What was noted of an epoch before says nothing of this one; what is listed says all.
    assert Owner(Local(stated=1, proof=1_000)).terms.stated == 0
    owner.list("fast", "standard")
    assert owner.terms.timers.proof == PROFILES["standard"].proof
