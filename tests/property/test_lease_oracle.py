"""The right to run against an oracle that knows nothing of the code: who holds what, as a person would count it on paper."""

from __future__ import annotations

from dataclasses import dataclass, replace

from hypothesis import given, settings
from hypothesis import strategies as st

from fractal.core.lease import PROFILES, Proofs, Standing, clean_succession, right_to_run, wait_until
from fractal.core.model import App, Policy, Release
from fractal.testing.group import World

WORLD = World.founded()
WORLD.install()
APP = next(iter(WORLD.state.apps.values()))
ME = WORLD.machines["attic"].id
instants = st.none() | st.floats(0.0, 1000.0)


@dataclass(frozen=True)
class Case:
    app: App
    proofs: Proofs
    standing: Standing
    stored: int
    blind: bool
    profile: str


@st.composite
def cases(draw: st.DrawFn) -> Case:
    epoch = draw(st.integers(0, 4))
    app = replace(
        APP,
        epoch=epoch,
        owner=draw(st.sampled_from([ME, ME, ME, "f" * 20, ""])),
        removed=draw(st.sampled_from([False, False, False, True])),
        release=draw(st.sampled_from([None, None, None, Release(epoch=epoch, clean=True)])),
        policy=draw(st.sampled_from([Policy(), Policy(), Policy(failover="manual", on_isolation="keep")])),
        unproven=draw(st.sampled_from([0, 7])),
    )
    return Case(
        app=app,
        proofs=Proofs(log=draw(instants), store=draw(instants)),
        standing=Standing(waited=draw(st.integers(0, 4)), released=draw(st.integers(0, 4))),
        stored=draw(st.integers(0, 5)),
        blind=draw(st.booleans()),
        profile=draw(st.sampled_from(sorted(PROFILES))),
    )


def oracle(case: Case) -> float | None:
    """Until when the app may run; None: not at all. Counted with nothing but comparisons of the page's own words."""
    app, n = case.app, case.app.epoch
    mine = app.owner == ME and n >= 1 and not app.removed
    given_up = app.release is not None or case.standing.released >= n
    if not mine or given_up or case.stored > n or case.standing.waited != n:
        return None
    if app.policy.on_isolation == "keep" and app.unproven:
        return float("inf")
    log = case.proofs.log if not case.blind else None
    both = [at for at in (log, case.proofs.store) if at is not None]
    return max(both) + PROFILES[case.profile].proof / 1000 if both else None


@settings(max_examples=400, deadline=None)
@given(cases())
def test_the_right_to_run_is_the_oracle_s(case: Case) -> None:
    right = right_to_run(
        case.app,
        ME,
        timers=PROFILES[case.profile],
        proofs=case.proofs,
        standing=case.standing,
        stored=case.stored,
        blind=case.blind,
    )
    assert right.deadline == oracle(case)


@settings(max_examples=300, deadline=None)
@given(
    st.floats(0, 1000),
    st.floats(0, 1000),
    st.sampled_from(sorted(PROFILES)),
    st.sampled_from(sorted(PROFILES)),
    st.floats(0, 30),
    st.floats(0.995, 1.005),
    st.floats(0.995, 1.005),
)
def test_no_proof_outlives_a_taker_s_wait(
    acknowledged: float, delay: float, owner: str, taker: str, lag: float, slow: float, quick: float
) -> None:
    """Two devices on paper: the old owner's newest proof was true at the instant of the put at the latest, or `lag` after it."""
    read_back = acknowledged + delay
    longest = max(PROFILES[owner].proof, PROFILES[taker].proof)
    margin = max(PROFILES[owner].margin, PROFILES[taker].margin)
    end = wait_until(
        acknowledged=acknowledged,
        read_back=read_back,
        longest_proof=longest,
        longest_margin=margin,
        staleness=lag,
        clean=False,
    )
    # True time, taken from the put: the taker's clock is quick, the owner's slow, and its last request left `lag` after the put.
    frozen = lag + PROFILES[owner].proof / 1000 / slow
    starts = (end - acknowledged) / quick
    assert starts > frozen + 0.5 * margin / 1000


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 5), st.integers(0, 6), st.integers(1, 7), st.sampled_from([None, True, False]))
def test_only_what_was_released_cleanly_is_taken_without_a_wait(
    announced: int, stored: int, epoch: int, released: bool | None
) -> None:
    release = None if released is None else Release(epoch=announced, clean=released)
    app = replace(APP, epoch=announced, owner=ME, release=release)
    first = announced == 0 and stored == 0 and epoch == 1
    handed = announced == stored == epoch - 1 and announced >= 1 and released is True
    assert clean_succession(app, epoch, stored) == (first or handed)
