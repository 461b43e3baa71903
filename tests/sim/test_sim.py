"""Seeds on the agent as it is, and on broken ones: a simulator that cannot fail proves nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter

import pytest

from fractal.sim.faults import Fault
from fractal.sim.scene import Scene
from fractal.sim.world import Result, simulate
from tests.sim.broken import VARIANTS, attack
from tests.sim.terms import TERMS

SEEDS = range(20)
BROKEN = {**VARIANTS, **TERMS}
pytestmark = pytest.mark.timeout(1200)


def say(result: Result) -> str:
    only = ",".join(str(f.number) for f in result.faults)
    again = f"python -m fractal.sim --seeds 1 --first-seed {result.seed} --only {only} --timeline"
    return "\n".join([*result.timeline[-60:], *result.violations, again])


@pytest.mark.parametrize("seed", SEEDS)
def test_every_invariant_holds(seed: int) -> None:
    result = simulate(seed)
    assert not result.violations, say(result)


@pytest.mark.parametrize("seed", range(4))
def test_attacked_owners_keep_every_invariant(seed: int) -> None:
    """The agent as it is, under what finds the broken ones."""
    result = simulate(seed, script=attack(seed))
    assert not result.violations, say(result)


def test_the_seeds_are_worth_their_time() -> None:
    """Takes, and every kind of fault, are among them; else the test above says little."""
    results = [simulate(seed) for seed in range(3)]
    assert sum(r.counts["epochs"] for r in results) > 6
    assert all(len(r.faults) > 8 for r in results)


@pytest.mark.parametrize("name", BROKEN)
def test_broken_agent_is_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    variant = BROKEN[name]
    variant.patch(monkeypatch)
    for seed in range(variant.seeds):
        result = simulate(seed, script=variant.faults(seed), scene=variant.scene)
        if any(v.startswith(f"{variant.invariant}:") for v in result.violations):
            return
    pytest.fail(f"{name}: {variant.invariant} is not seen to break within {variant.seeds} seeds")


def test_every_invariant_has_two_broken_agents() -> None:
    found = Counter(variant.invariant for variant in VARIANTS.values())
    assert all(found[f"I{n}"] >= 2 for n in range(1, 9)), found


@pytest.mark.parametrize("name", BROKEN)
def test_what_finds_a_broken_agent_leaves_the_real_one_alone(name: str) -> None:
    """Also where the faults are so few that each of these seeds finds it, or most."""
    variant = BROKEN[name]
    for seed in range(variant.seeds if name in TERMS else 1):
        result = simulate(seed, script=variant.faults(seed), scene=variant.scene)
        assert not result.violations, say(result)


def test_one_seed_is_one_history() -> None:
    """Also in another process, where sets of strings have another order."""
    program = "from fractal.sim.world import simulate; print('\\n'.join(simulate(3).timeline))"
    environment = {**os.environ, "PYTHONHASHSEED": "7"}
    told = subprocess.run(
        [sys.executable, "-c", program],
        env=environment,
        capture_output=True,
        text=True,
        timeout=100,
        check=True,
    )
    assert told.stdout.rstrip("\n").splitlines() == "\n".join(simulate(3).timeline).splitlines()


def test_a_failure_says_how_to_see_it_again(monkeypatch: pytest.MonkeyPatch) -> None:
    variant = VARIANTS["no wait after the put"]
    variant.patch(monkeypatch)
    failed = next(r for s in range(variant.seeds) if (r := simulate(s, script=attack(s))).violations)
    assert "VIOLATION" in "\n".join(failed.timeline)
    same = simulate(failed.seed, only=[f.number for f in failed.faults], script=attack(failed.seed))
    assert same.violations == failed.violations


# --- what seeds found, as a script of its own --------------------------------------------------------------------------


def test_move_to_a_device_that_is_away_waits() -> None:
    """The app was released to nobody, taken by another, released again: a new epoch every 15 s."""
    script = (
        Fault(number=0, at=40.0, kind="power cut", devices=(1,), seconds=230.0, value=0.0),
        # 1.1 / 997 names app 0 and device 1.
        Fault(number=1, at=90.0, kind="move", devices=(2,), seconds=1.0, value=1.1 / 997),
    )
    result = simulate(4, script=script)
    assert not result.violations, say(result)
    assert any("move aaaa to d1" in line for line in result.timeline)
    # When it comes back the wish is carried out, once.
    assert result.counts["epochs"] == 2, say(result)


def test_app_that_does_not_get_healthy_is_given_up_though_its_agent_was_killed() -> None:
    """Its successor did not know since when it was starting, and waited for ever."""
    script = (
        Fault(number=0, at=40.0, kind="moves to where it gets sick", devices=(1,), seconds=250.0, value=0.0),
        Fault(number=1, at=85.0, kind="agent killed", devices=(1,), seconds=2.0, value=0.0),
    )
    result = simulate(0, script=script, scene=Scene(faults_for=230.0, rest=60.0))
    assert not result.violations, say(result)
    assert result.counts["entry: released, unhealthy"] == 1, say(result)
    assert result.counts["take: did not get healthy on its owner"] == 1, say(result)


def test_an_app_that_no_policy_keeps_any_more_is_taken_over_once_its_owner_has_read_that() -> None:
    """It was renewed for the policy that kept it, and ran on when that ended."""
    variant = TERMS["the guard keeps what it was granted by policy"]
    result = simulate(0, script=variant.faults(0), scene=variant.scene)
    assert not result.violations, say(result)
    assert result.counts["epochs"] == 3, say(result)
    assert result.counts["take: released by its owner"] == 1, say(result)
    assert result.counts["take: its owner does not answer"] == 1, say(result)


def test_an_unfit_owner_that_was_cut_off_gives_the_app_up_when_it_is_back() -> None:
    variant = TERMS["an unfit owner is replaced though it needs no proof"]
    result = simulate(0, script=variant.faults(0), scene=variant.scene)
    assert not result.violations, say(result)
    assert result.counts["epochs"] == 3, say(result)
    assert result.counts["entry: released, clean"] == 2, say(result)


def test_a_device_whose_orderly_end_lasts_longer_than_the_faults_is_on_again() -> None:
    """It was off for good, beside the one that stays off: nobody was left to run the app (seed 4452)."""
    script = (
        Fault(number=0, at=20.0, kind="cut off from the store", devices=(0,), seconds=80.0, value=0.0),
        Fault(number=1, at=26.0, kind="orderly end", devices=(0,), seconds=10.0, value=0.0),
    )
    result = simulate(0, script=script, scene=Scene(size=2, mortal=1, faults_for=100.0, rest=60.0))
    assert not result.violations, say(result)


@pytest.mark.parametrize(
    ("seed", "at", "seconds", "bent"),
    [
        # Reads that failed for whoever tried to take an app with a bent store were no outage: silence went on to count.
        (9, 65.0, 8.0, True),
        # A challenge was sent into the outage: it got into the log at its end, and an owner whose read hung still was late.
        # Its own challenge hung too, and the answer waited for that.
        (4, 66.0, 20.0, True),
        (0, 64.0, 6.0, False),
        (5, 64.0, 6.0, False),
    ],
)
def test_a_log_that_is_away_as_silence_gets_long_moves_nothing(
    seed: int, at: float, seconds: float, bent: bool
) -> None:
    """Owners whose signals are lost, and whose patience with each other ends in an outage (seeds 4950, 6122)."""
    muted = [Fault(number=n, at=60.0, kind="muted", devices=(n,), seconds=25.0, value=0.0) for n in (0, 1)]
    down = Fault(number=2, at=at, kind="log down", devices=(0,), seconds=seconds, value=0.0)
    scene = Scene(kind="gentle", size=2, apps=2, bent=bent, faults_for=85.0, rest=20.0)
    result = simulate(seed, script=(*muted, down), scene=scene)
    assert not result.violations, say(result)


@pytest.mark.parametrize("after", [0.06, 0.08, 0.1, 0.12])
def test_a_log_that_goes_away_as_it_takes_a_challenge_in_moves_nothing(after: float) -> None:
    """Its owner's read hung beyond the outage, and a read of the taker's was answered first: silence of 8 s, all but one in the outage (seed 7271)."""
    muted = Fault(number=0, at=60.0, kind="muted", devices=(0,), seconds=30.0, value=0.0)
    scene = Scene(kind="gentle", size=3, faults_for=95.0, rest=20.0)
    challenged = next(
        float(line.split()[0])
        for line in simulate(1, script=(muted,), scene=scene).timeline
        if "challenging" in line
    )
    down = Fault(number=1, at=challenged + after, kind="log down", devices=(0,), seconds=9.5, value=0.0)
    result = simulate(1, script=(muted, down), scene=scene)
    assert not result.violations, say(result)
