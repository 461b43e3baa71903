"""Who may run an app, and who may take it over."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fractal.core.lease import (
    MOVE_GRACE,
    PROFILES,
    UNTRIED_GRACE,
    Proofs,
    Right,
    Seen,
    Standing,
    Suspicion,
    Why,
    check_timers,
    clean_succession,
    may_give_word,
    observe,
    owes_word,
    paced,
    read_up_to,
    renews,
    right_to_run,
    takes,
    to_challenge,
    wait_until,
)
from fractal.core.model import (
    App,
    AppKey,
    Challenge,
    Desired,
    Device,
    DeviceRole,
    GroupState,
    Policy,
    Release,
    Timers,
)

TIMERS = Timers()
DEVICES = ("a", "b", "c")
KEEP = Policy(failover="manual", on_isolation="keep", devices=DEVICES)


def device(name: str, **changes: object) -> Device:
    made = Device(
        id=name, name=name, member="m", sign_key=b"", box_key=b"", roles=frozenset({DeviceRole.HOST})
    )
    return replace(made, **changes)  # type: ignore[arg-type]


def app(**changes: object) -> App:
    key = AppKey(generation=1, public=b"", sealed=dict.fromkeys(DEVICES, b""))
    made = App(
        id="x",
        name="x",
        manifest="",
        spec={},
        store="s",
        owner_member="m",
        keys=(key,),
        policy=Policy(devices=DEVICES),
        epoch=3,
        owner="a",
        serving=3,
    )
    return replace(made, **changes)  # type: ignore[arg-type]


def state(*apps: App, **changes: object) -> GroupState:
    made = GroupState(
        id="g", devices={d: device(d) for d in DEVICES}, apps={a.id: a for a in apps or (app(),)}
    )
    return replace(made, **changes)  # type: ignore[arg-type]


def right(
    of: App,
    me: str = "a",
    *,
    log: float | None = 100.0,
    store: float | None = None,
    waited: int = 3,
    released: int = 0,
    stored: int = 3,
    blind: bool = False,
) -> Right:
    return right_to_run(
        of,
        me,
        timers=TIMERS,
        proofs=Proofs(log=log, store=store),
        standing=Standing(waited=waited, released=released, root=3),
        stored=stored,
        blind=blind,
    )


class TestRightToRun:
    def test_lasts_proof_seconds_from_the_sending_of_the_request(self) -> None:
        assert right(app()).deadline == 112.0

    def test_the_later_of_both_proofs_counts(self) -> None:
        assert right(app(), log=100.0, store=130.0).deadline == 142.0
        assert right(app(), log=None, store=130.0).deadline == 142.0

    def test_no_proof_no_run(self) -> None:
        assert right(app(), log=None).deadline is None

    def test_a_blind_log_proves_nothing_but_the_store_does(self) -> None:
        assert right(app(), blind=True).deadline is None
        assert right(app(), blind=True, store=50.0).deadline == 62.0

    @pytest.mark.parametrize(
        "denied",
        [
            {"me": "b"},
            {"stored": 4},
            {"released": 3},
            {"waited": 2},
        ],
    )
    def test_denied(self, denied: dict[str, object]) -> None:
        assert right(app(), **denied).deadline is None  # type: ignore[arg-type]

    def test_a_release_in_the_log_ends_it_for_good(self) -> None:
        assert right(app(release=Release(epoch=3, clean=True))).deadline is None

    def test_keep_runs_on_without_proof_but_not_when_replaced(self) -> None:
        kept = app(policy=KEEP, unproven=7)
        assert right(kept, log=None).deadline == float("inf")
        assert right(kept, log=None, stored=4).deadline is None

    def test_keep_needs_an_epoch_that_began_under_it(self) -> None:
        """Else somebody may be about to take the app who has not read the policy yet."""
        assert right(app(policy=KEEP)).deadline == 112.0
        assert right(app(policy=KEEP), log=None).deadline is None

    def test_whoever_has_read_that_no_policy_keeps_it_runs_by_proof(self) -> None:
        assert right(app(unproven=7)).deadline == 112.0
        assert right(app(unproven=7), log=None).deadline is None


class TestWait:
    def test_outlasts_any_proof_that_the_old_owner_can_hold(self) -> None:
        end = wait_until(
            acknowledged=10.0,
            read_back=11.0,
            longest_proof=12_000,
            longest_margin=2_000,
            staleness=5.0,
            clean=False,
        )
        assert end == 11.0 + 12 + 2 + 5

    def test_none_after_a_clean_release(self) -> None:
        end = wait_until(
            acknowledged=10.0,
            read_back=11.0,
            longest_proof=12_000,
            longest_margin=2_000,
            staleness=5.0,
            clean=True,
        )
        assert end == 11.0

    def test_clean_only_if_everything_before_was_released_cleanly(self) -> None:
        released = app(release=Release(epoch=3, clean=True))
        assert clean_succession(released, 4, 3)
        assert clean_succession(app(epoch=0, owner="", serving=0), 1, 0)
        assert not clean_succession(app(), 4, 3)
        assert not clean_succession(app(release=Release(epoch=3, clean=False)), 4, 3)
        # An epoch that stands in the store and was not announced may have run.
        assert not clean_succession(released, 5, 4)


class TestSuspicion:
    def test_silence_is_counted_from_own_start(self) -> None:
        suspicion = Suspicion(since=100.0)
        assert not suspicion.suspected("b", 109.9, TIMERS)
        assert suspicion.suspected("b", 110.0, TIMERS)

    def test_a_signal_starts_the_count_again(self) -> None:
        suspicion = Suspicion(since=100.0).heard("b", 108.0, TIMERS)
        assert not suspicion.suspected("b", 117.9, TIMERS)

    def test_nobody_is_suspected_for_an_outage_of_ones_own(self) -> None:
        suspicion = Suspicion(since=0.0).heard("b", 10.0, TIMERS).deaf(100.0)
        assert not suspicion.suspected("b", 109.0, TIMERS)

    def test_an_answer_doubles_patience_and_signals_shrink_it_again(self) -> None:
        suspicion = Suspicion(since=0.0).heard("b", 10.0, TIMERS).answered("b", 30.0, TIMERS)
        assert not suspicion.suspected("b", 49.0, TIMERS)
        assert suspicion.suspected("b", 50.0, TIMERS)
        for second in range(60, 120, 3):
            suspicion = suspicion.heard("b", float(second), TIMERS)
        assert suspicion.suspected("b", 117.0 + 10, TIMERS)

    def test_patience_is_bounded(self) -> None:
        suspicion = Suspicion(since=0.0)
        for _ in range(20):
            suspicion = suspicion.answered("b", 0.0, TIMERS)
        assert suspicion.suspected("b", 600.0, TIMERS)


class TestChallenge:
    def test_the_silent_owner_of_something_one_could_host(self) -> None:
        assert to_challenge(state(), "b", Suspicion(since=0.0), 20.0, 0) == ("a",)

    def test_not_oneself_nor_twice_nor_what_one_could_not_host(self) -> None:
        silent = Suspicion(since=0.0)
        assert to_challenge(state(), "a", silent, 20.0, 0) == ()
        open_one = state(challenges={"a": Challenge(device="a", by="c", position=9)})
        assert to_challenge(open_one, "b", silent, 20.0, 0) == ()
        elsewhere = app(keys=(AppKey(generation=1, public=b"", sealed={"a": b"", "c": b""}),))
        assert to_challenge(state(elsewhere), "b", silent, 20.0, 0) == ()

    def test_not_for_manual_or_stopped_apps(self) -> None:
        silent = Suspicion(since=0.0)
        for quiet in (app(policy=Policy(failover="manual")), app(desired=Desired.STOPPED), app(removed=True)):
            assert to_challenge(state(quiet), "b", silent, 20.0, 0) == ()

    def test_a_bounded_absence_defers_it(self) -> None:
        devices = {d: device(d) for d in DEVICES} | {"a": device("a", away_until=200_000)}
        away = state(devices=devices)
        assert to_challenge(away, "b", Suspicion(since=0.0), 20.0, 100_000) == ()
        assert to_challenge(away, "b", Suspicion(since=0.0), 20.0, 200_001) == ("a",)
        # Nobody may say that it is away for longer than five minutes.
        far = state(devices=devices | {"a": device("a", away_until=10_000_000)})
        assert to_challenge(far, "b", Suspicion(since=0.0), 20.0, 0) == ("a",)


def due(of: GroupState, me: str, seen_at: float = 50.0) -> list[tuple[float, Why]]:
    return [(t.at, t.why) for t in takes(of, me, observe(of, Seen(), seen_at))]


class TestTakes:
    def test_nothing_while_the_owner_is_not_challenged(self) -> None:
        assert due(state(), "b") == []

    def test_ranks_act_one_after_the_other(self) -> None:
        challenged = state(challenges={"a": Challenge(device="a", by="b", position=9)})
        assert due(challenged, "b") == [(58.0, Why.SILENT)]
        assert due(challenged, "c") == [(61.0, Why.SILENT)]
        assert due(challenged, "a") == []

    def test_the_window_counts_from_when_the_challenge_was_first_seen(self) -> None:
        challenged = state(challenges={"a": Challenge(device="a", by="b", position=9)})
        seen = observe(challenged, Seen(), 50.0)
        later = observe(challenged, seen, 57.0)
        assert [t.at for t in takes(challenged, "b", later)] == [58.0]
        # A new challenge after an answer begins a new window.
        again = state(challenges={"a": Challenge(device="a", by="b", position=20)})
        assert [t.at for t in takes(again, "b", observe(again, later, 60.0))] == [68.0]

    def test_the_window_counts_anew_after_an_outage_of_ones_own(self) -> None:
        released = app(id="w", release=Release(epoch=3, clean=False), policy=Policy())
        challenged = state(app(), released, challenges={"a": Challenge(device="a", by="b", position=9)})
        seen = observe(challenged, Seen(), 50.0).deaf(61.0)
        assert [t.at for t in takes(challenged, "b", observe(challenged, seen, 62.0))] == [53.0, 69.0]
        assert Seen().deaf(61.0) == Seen()

    def test_first_start_is_for_the_placed_device_alone(self) -> None:
        fresh = state(app(epoch=0, owner="", serving=0, placed="c"))
        assert due(fresh, "c") == [(50.0, Why.FIRST)]
        assert due(fresh, "b") == []

    def test_a_dead_placed_device_is_stood_in_for(self) -> None:
        fresh = state(
            app(epoch=0, owner="", serving=0, placed="c"),
            challenges={"c": Challenge(device="c", by="a", position=9)},
        )
        assert due(fresh, "a") == [(58.0, Why.SILENT)]

    def test_a_move_is_for_its_target_and_only_later_for_others(self) -> None:
        moving = state(app(move_to="c", release=Release(epoch=3, clean=True)))
        assert due(moving, "c") == [(50.0, Why.MOVED)]
        assert due(moving, "a") == [(50.0 + MOVE_GRACE, Why.RELEASED)]
        assert due(moving, "b") == [(50.0 + MOVE_GRACE + 3, Why.RELEASED)]

    def test_an_app_that_failed_here_goes_to_those_who_have_not_tried(self) -> None:
        sick = state(app(release=Release(epoch=3, clean=True, unhealthy=True), failed=("a",)))
        assert due(sick, "b") == [(50.0, Why.UNHEALTHY)]
        # They may be away for good: it is tried here again, but late.
        assert due(sick, "a") == [(50.0 + UNTRIED_GRACE + 6, Why.UNHEALTHY)]

    def test_when_all_have_failed_the_best_keeps_it(self) -> None:
        sick = state(app(release=Release(epoch=3, clean=True, unhealthy=True), failed=DEVICES))
        assert due(sick, "a") == [(50.0, Why.UNHEALTHY)]

    def test_burnt_epochs_and_removed_owners_need_no_challenge(self) -> None:
        assert due(state(app(owner="")), "a") == [(50.0, Why.BURNT)]
        devices = {d: device(d) for d in DEVICES} | {"a": device("a", removed=True)}
        assert due(state(devices=devices), "b") == [(50.0, Why.REMOVED)]

    def test_manual_apps_are_never_taken_from_a_silent_owner(self) -> None:
        manual = app(policy=Policy(failover="manual", devices=DEVICES))
        challenged = state(manual, challenges={"a": Challenge(device="a", by="b", position=9)})
        assert due(challenged, "b") == []

    def test_but_to_where_somebody_wants_them_unless_they_may_still_run(self) -> None:
        challenge = {"a": Challenge(device="a", by="b", position=9)}
        manual = app(policy=Policy(failover="manual", devices=DEVICES), move_to="c")
        assert to_challenge(state(manual), "c", Suspicion(since=0.0), 20.0, 0) == ("a",)
        assert due(state(manual, challenges=challenge), "c") == [(58.0, Why.SILENT)]
        assert due(state(manual, challenges=challenge), "b") == []
        kept = replace(manual, policy=KEEP, unproven=7)
        assert to_challenge(state(kept), "c", Suspicion(since=0.0), 20.0, 0) == ()
        assert due(state(kept, challenges=challenge), "c") == []
        # An epoch from before the policy is run by proof only: it is no safer to leave it where nobody answers.
        assert due(state(replace(kept, unproven=0), challenges=challenge), "c") == [(58.0, Why.SILENT)]

    def test_not_while_the_owner_need_not_have_read_that_no_policy_keeps_it(self) -> None:
        challenge = {"a": Challenge(device="a", by="b", position=9)}
        unread = app(unproven=7)
        assert to_challenge(state(unread), "b", Suspicion(since=0.0), 20.0, 0) == ()
        assert due(state(unread, challenges=challenge), "b") == []
        assert due(state(replace(unread, unproven=0), challenges=challenge), "b") == [(58.0, Why.SILENT)]

    @pytest.mark.parametrize("policy", [Policy(devices=DEVICES), KEEP])
    def test_an_unfit_owner_that_needs_no_proof_gives_it_up_itself(self, policy: Policy) -> None:
        devices = {d: device(d) for d in DEVICES} | {"a": device("a", roles=frozenset())}
        kept = app(policy=policy, unproven=7)
        assert due(state(kept, devices=devices), "b") == []
        assert due(state(replace(kept, unproven=0), devices=devices), "b") == [(50.0, Why.REMOVED)]
        released = replace(kept, release=Release(epoch=3, clean=True))
        assert due(state(released, devices=devices), "b") == [(50.0, Why.RELEASED)]
        # Whoever removes the device says that it is lost, wherever it may still run.
        gone = devices | {"a": device("a", removed=True)}
        assert due(state(kept, devices=gone), "b") == [(50.0, Why.REMOVED)]

    def test_who_renews_its_epoch_takes_the_next_one(self) -> None:
        released = app(policy=replace(KEEP, devices=("b", "a", "c")), release=Release(epoch=3, clean=True))
        assert due(state(released), "a") == [(50.0, Why.RELEASED)]
        assert due(state(released), "b") == [(50.0 + MOVE_GRACE, Why.RELEASED)]
        # One that began under the policy was given up for another reason.
        assert due(state(replace(released, unproven=7)), "b") == [(50.0, Why.RELEASED)]

    def test_stopped_and_removed_apps_are_left_alone(self) -> None:
        for quiet in (app(owner="", desired=Desired.STOPPED), app(owner="", removed=True)):
            assert due(state(quiet), "a") == []


class TestKeep:
    def test_an_epoch_is_renewed_once_the_policy_keeps_the_app(self) -> None:
        assert renews(app(policy=KEEP))
        for settled in (
            app(policy=KEEP, unproven=7),
            app(),
            app(policy=KEEP, owner="", epoch=0),
            app(policy=KEEP, move_to="b"),
            app(policy=KEEP, removed=True),
            app(policy=replace(KEEP, on_isolation="freeze")),
        ):
            assert not renews(settled)

    def test_who_read_that_no_policy_keeps_it_says_so(self) -> None:
        assert owes_word(app(unproven=7), "a")
        assert not owes_word(app(unproven=7), "b")
        for settled in (app(), app(policy=KEEP, unproven=7), app(unproven=7, removed=True)):
            assert not owes_word(settled, "a")

    def test_no_answer_says_more_than_what_the_guard_goes_by(self) -> None:
        of = state(app(unproven=7), replace(app(unproven=9), id="y"), position=20)
        assert read_up_to(of, "a", {}) == 6
        assert read_up_to(of, "a", {"x": 7, "y": 7}) == 8
        assert read_up_to(of, "a", {"x": 7, "y": 9}) == 20
        assert read_up_to(of, "b", {}) == 20
        assert not may_give_word(of, "a", {})
        assert may_give_word(of, "a", {"x": 7})
        assert not may_give_word(of, "b", {"x": 7})
        # An answer could name no position that says so: the next one would say no more, and so on at the log's speed.
        assert not may_give_word(of, "a", {"y": 9})


class TestTimers:
    @pytest.mark.parametrize("profile", sorted(PROFILES))
    def test_shipped_profiles_hold_together(self, profile: str) -> None:
        assert check_timers(PROFILES[profile]) == ()

    @pytest.mark.parametrize(
        "broken", [{"proof": 8_000}, {"answer_window": 7_000}, {"patience": 5_000}, {"margin": 0}]
    )
    def test_broken_ones_are_named(self, broken: dict[str, int]) -> None:
        assert check_timers(replace(Timers(), **broken)) != ()  # type: ignore[arg-type]

    @pytest.mark.parametrize("before", sorted(PROFILES))
    @pytest.mark.parametrize("after", sorted(PROFILES))
    def test_an_owner_of_before_a_change_reads_often_enough_for_its_own_proof(
        self, before: str, after: str
    ) -> None:
        """Two polls and a look into the store fit in what its epoch allows it, as they do in each profile."""
        proof = min(PROFILES[before].proof, PROFILES[after].proof)
        timers = paced(PROFILES[after], PROFILES[before].proof)
        assert timers.proof == proof
        assert 2 * timers.poll < proof / 2
        assert timers.poll <= PROFILES[after].poll
        # What is slow now, and is why somebody wanted patience, is not given up sooner for that.
        assert timers.read_timeout == PROFILES[after].read_timeout

    def test_a_longer_proof_of_before_changes_nothing(self) -> None:
        assert paced(PROFILES["fast"], PROFILES["patient"].proof) is PROFILES["fast"]
        assert paced(Timers(), 0) == Timers()
