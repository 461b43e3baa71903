"""What a device does next about an app."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fractal.api.runtime import Health
from fractal.core.lease import Right, Standing
from fractal.core.model import App, Desired, Point, Policy, Release, RestoreWish
from fractal.core.plan import BASE_LEAD, SMALL_ROUND, Step, View, next_step, steady

APP = App(id="x", name="x", manifest="", spec={}, store="s", owner_member="m", epoch=3, owner="me", serving=3)
PROVED = Right(200.0, "proved")
NONE = Right(None, "no proof")
POINT = Point(epoch=2, number=7)


def view(app: App = APP, **changes: object) -> View:
    made = View(
        me="me",
        now=100.0,
        app=app,
        standing=Standing(waited=3, root=3),
        right=PROVED,
        runs={3: Health.HEALTHY},
        tick_due=150.0,
    )
    return replace(made, **changes)  # type: ignore[arg-type]


def app(**changes: object) -> App:
    return replace(APP, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("seen", "step"),
    [
        (view(), Step.IDLE),
        (view(tick_due=99.0), Step.TICK),
        (view(runs={}), Step.START),
        (view(runs={}, here=False), Step.BRING),
        (view(runs={}, here=False, bringing=True), Step.IDLE),
        (view(runs={}, here=False, bringing=True, tick_due=99.0), Step.TICK),
        (view(app(desired=Desired.STOPPED), runs={}, here=False, bringing=True, tick_due=0.0), Step.TICK),
        (view(here=False), Step.IDLE),
        (view(runs={3: Health.STOPPED}), Step.START),
        (view(runs={}, right=NONE), Step.IDLE),
        (view(right=NONE), Step.IDLE),
        (view(right=Right(99.0, "ran out"), tick_due=0.0), Step.IDLE),
        (view(app(serving=2)), Step.ANNOUNCE),
        (view(app(serving=2), runs={3: Health.STARTING}, started=90.0), Step.IDLE),
        (view(app(serving=2), runs={3: Health.UNHEALTHY}, started=-30.0), Step.GIVE_UP),
        (view(app(serving=2), runs={3: Health.UNHEALTHY}, started=-30.0, others_left=False), Step.GIVE_UP),
        (view(app(desired=Desired.STOPPED)), Step.STOP),
        (view(app(desired=Desired.STOPPED), runs={}, tick_due=0.0), Step.TICK),
        (view(app(desired=Desired.STOPPED), runs={}, tick_due=0.0, changed_since_tick=False), Step.IDLE),
        (view(app(restore=RestoreWish(id="r", point=POINT))), Step.RESTORE),
        (view(app(restore=RestoreWish(id="r", point=POINT), restored="r")), Step.IDLE),
    ],
)
def test_owning(seen: View, step: Step) -> None:
    assert next_step(seen) is step


@pytest.mark.parametrize(
    "replaced",
    [
        view(app(owner="other")),
        view(app(owner="other", epoch=4)),
        view(app(epoch=4)),
        view(app(removed=True)),
        view(app(release=Release(epoch=3, clean=True))),
        view(standing=Standing(waited=3, root=3, released=3)),
        view(runs={2: Health.STOPPED, 3: Health.HEALTHY}),
    ],
)
def test_a_run_without_right_is_ended_first(replaced: View) -> None:
    assert next_step(replaced) is Step.KILL


def test_then_its_data_is_kept_aside() -> None:
    assert next_step(view(app(owner="other", epoch=4), runs={})) is Step.SET_ASIDE
    assert next_step(view(app(epoch=4), runs={})) is Step.SET_ASIDE


def test_a_removed_app_is_cleaned_up_after_its_data_was_kept() -> None:
    assert next_step(view(app(removed=True), runs={})) is Step.SET_ASIDE
    # What no store has yet is kept until it is stored, or given up by a person.
    assert next_step(view(app(removed=True), runs={}, standing=Standing(), held=True)) is Step.IDLE
    assert next_step(view(app(removed=True), runs={}, standing=Standing())) is Step.CLEAN_UP


def test_a_release_that_was_noted_is_sent_until_it_is_in_the_log() -> None:
    noted = view(runs={}, standing=Standing(waited=3, root=3, released=3))
    assert next_step(noted) is Step.RELEASE
    sent = replace(noted, app=app(release=Release(epoch=3, clean=True)))
    assert next_step(sent) is Step.IDLE


def test_a_standby_fetches_what_the_owner_committed() -> None:
    elsewhere = view(app(owner="other"), runs={}, standing=Standing(), standby=True, newest=POINT)
    assert next_step(elsewhere) is Step.FETCH
    assert next_step(replace(elsewhere, fetched=POINT)) is Step.IDLE
    assert next_step(replace(elsewhere, standby=False)) is Step.IDLE
    assert next_step(replace(elsewhere, standby=False, crowded=True)) is Step.MAKE_ROOM
    assert next_step(replace(elsewhere, crowded=True)) is Step.FETCH
    assert next_step(view(crowded=True)) is Step.IDLE  # an owner is about to store one more
    on_its_way = app(owner="other", release=Release(epoch=3, clean=True))
    assert next_step(replace(elsewhere, app=on_its_way, standby=False, crowded=True)) is Step.IDLE


def test_what_got_healthy_nowhere_is_tried_again_after_a_rest() -> None:
    """For ever stopped, it would stay so after the full disk that was the reason has room again."""
    last = view(app(serving=1, failed=("other", "me")), runs={}, others_left=False, rest_until=150.0)
    assert next_step(last) is Step.IDLE
    assert next_step(replace(last, now=150.0)) is Step.START
    tried = replace(last, now=150.0, started=20.0, start_limit=120.0)
    assert next_step(tried) is Step.REST  # not given up: nobody is left to take it
    assert next_step(replace(tried, runs={3: Health.UNHEALTHY})) is Step.REST
    assert next_step(replace(tried, others_left=True)) is Step.GIVE_UP
    assert next_step(replace(last, others_left=True)) is Step.START  # a newcomer: both may try


def test_what_cannot_be_prepared_here_is_given_up_like_what_does_not_get_healthy() -> None:
    """Else a device whose disk is full, or that cannot get an image, would try for ever beside one that could run it."""
    stuck = view(app(serving=1), runs={}, started=100.0, start_limit=120.0)
    stuck = replace(stuck, right=replace(stuck.right, deadline=1000.0))
    assert next_step(replace(stuck, now=219.0)) is Step.START
    assert next_step(replace(stuck, now=221.0)) is Step.GIVE_UP
    assert next_step(replace(stuck, now=221.0, started=None)) is Step.START


class TestNoRootCanBeMade:
    """Its owner lives and answers, so nobody else takes the app: it must let go by itself."""

    waiting = view(
        app(serving=2),
        runs={},
        right=NONE,
        standing=Standing(waited=2),
        wait_over=90.0,
        unprepared=100.0,
        start_limit=120.0,
        others_there=True,
    )

    def test_it_is_tried_for_as_long_as_a_start_may_take(self) -> None:
        assert next_step(replace(self.waiting, now=220.0)) is Step.PREPARE
        assert next_step(replace(self.waiting, now=221.0)) is Step.GIVE_UP
        waited = replace(self.waiting, standing=Standing(waited=3), now=221.0)
        assert next_step(waited) is Step.GIVE_UP, "also where the wait is over"

    @pytest.mark.parametrize(
        "but",
        [
            {"unprepared": None},
            {"others_there": False},
            {"app": app(serving=2, desired=Desired.STOPPED)},
            {"app": app(serving=2, policy=Policy(failover="manual"))},
        ],
        ids=["no try failed", "nobody else is there", "it is not to run", "people decide"],
    )
    def test_and_for_ever_where_giving_it_up_helps_nobody(self, but: dict[str, object]) -> None:
        assert next_step(replace(self.waiting, now=1e6, **but)) is Step.PREPARE  # type: ignore[arg-type]

    def test_a_base_that_is_not_valid_is_left_behind_at_once(self) -> None:
        spoilt = replace(self.waiting, spoilt=True, others_there=False)
        assert next_step(spoilt) is Step.LET_GO
        by_hand = app(serving=2, policy=Policy(failover="manual"))
        assert next_step(replace(spoilt, app=by_hand)) is Step.LET_GO, "nobody can start from this epoch"

    def test_whoever_is_to_have_it_gets_it_without_a_last_snapshot(self) -> None:
        wished = replace(self.waiting, hand_over_to="other")
        assert next_step(wished) is Step.LET_GO
        assert next_step(replace(wished, unprepared=None)) is Step.PREPARE

    def test_once_there_is_a_root_none_of_it_matters(self) -> None:
        rooted = replace(self.waiting, standing=Standing(waited=3, root=3), right=PROVED, spoilt=True)
        assert next_step(rooted) is Step.START


class TestNobodyHears:
    """What ends in an entry that is final begins only while the log can be read."""

    def test_an_app_is_not_stopped_for_a_release(self) -> None:
        for target in ("other", "*"):
            moving = view(
                app(move_to="other"), hand_over_to=target, last_round=10, rounds=1, target_ready=True
            )
            assert next_step(moving) is Step.HAND_OVER
            assert next_step(replace(moving, log_away=True)) is Step.IDLE
            assert next_step(replace(moving, log_away=True, tick_due=99.0)) is Step.TICK, (
                "it is saved as ever"
            )

    def test_one_that_does_not_get_healthy_is_tried_on(self) -> None:
        sick = view(app(serving=2), runs={3: Health.UNHEALTHY}, started=-30.0, log_away=True)
        assert next_step(sick) is Step.IDLE
        assert next_step(replace(sick, tick_due=99.0)) is Step.TICK
        assert next_step(replace(sick, runs={})) is Step.START

    def test_nor_is_an_epoch_let_go_that_cannot_start(self) -> None:
        stuck = replace(TestNoRootCanBeMade.waiting, now=1e6, log_away=True)
        for seen in (stuck, replace(stuck, spoilt=True), replace(stuck, hand_over_to="*")):
            assert next_step(seen) is Step.PREPARE

    def test_what_was_noted_is_sent_all_the_same(self) -> None:
        noted = view(runs={}, standing=Standing(waited=3, root=3, released=3), log_away=True)
        assert next_step(noted) is Step.RELEASE


class TestTakingOver:
    taken = view(app(serving=2), runs={}, standing=Standing(waited=2), wait_over=114.0)

    def test_fetches_during_the_wait(self) -> None:
        assert next_step(self.taken) is Step.FETCH
        assert next_step(replace(self.taken, newest=POINT, fetched=POINT)) is Step.IDLE

    def test_chooses_the_base_late(self) -> None:
        late = replace(self.taken, newest=POINT, fetched=POINT, now=114.0 - BASE_LEAD)
        assert next_step(late) is Step.PREPARE

    def test_never_starts_before_the_wait_is_over(self) -> None:
        prepared = replace(self.taken, standing=Standing(waited=2, root=3), now=113.9)
        assert next_step(prepared) is Step.IDLE
        assert next_step(replace(prepared, now=114.0)) is Step.FINISH_WAIT

    def test_a_wait_that_nobody_counted_is_not_over(self) -> None:
        assert next_step(replace(self.taken, wait_over=None, now=1e9)) is Step.IDLE


class TestHandingOver:
    moving = view(app(move_to="other"), hand_over_to="other")

    def test_copies_a_round_while_the_app_runs(self) -> None:
        assert next_step(self.moving) is Step.TICK

    def test_waits_for_the_target(self) -> None:
        assert next_step(replace(self.moving, last_round=10, rounds=1)) is Step.IDLE

    def test_another_round_while_they_are_large(self) -> None:
        large = replace(self.moving, last_round=SMALL_ROUND + 1, rounds=1, target_ready=True)
        assert next_step(large) is Step.TICK
        assert next_step(replace(large, rounds=6)) is Step.HAND_OVER

    def test_stops_for_the_last_small_round(self) -> None:
        small = replace(self.moving, last_round=10, rounds=1, target_ready=True)
        assert next_step(small) is Step.HAND_OVER

    def test_the_end_of_the_agent_waits_for_no_round(self) -> None:
        assert next_step(replace(self.moving, hand_over_to="*")) is Step.HAND_OVER


@given(
    st.builds(
        view,
        app=st.builds(
            app,
            serving=st.sampled_from([2, 3]),
            desired=st.sampled_from(Desired),
            move_to=st.sampled_from(["", "other"]),
            failed=st.sampled_from([(), ("me",)]),
            restore=st.sampled_from([None, RestoreWish(id="r", point=POINT)]),
        ),
        runs=st.one_of(st.just({}), st.fixed_dictionaries({3: st.sampled_from(Health)})),
        right=st.sampled_from([NONE, Right(99.0, "ran out"), Right(102.0, "soon over"), PROVED]),
        standing=st.builds(Standing, waited=st.sampled_from([2, 3]), root=st.just(3)),
        wait_over=st.sampled_from([None, 101.0, 104.0]),
        started=st.sampled_from([None, -19.0, 90.0]),
        start_at=st.sampled_from([0.0, 103.0]),
        restore_at=st.sampled_from([0.0, 103.0]),
        tick_due=st.sampled_from([0.0, 102.0, 150.0]),
        ending=st.booleans(),
        outdated=st.booleans(),
        here=st.booleans(),
    ),
    st.floats(min_value=0.0, max_value=5.0),
)
def test_time_alone_makes_nothing_due_of_a_steady_app_but_what_says_when(seen: View, later: float) -> None:
    """Else it would wait for the next look, which is seconds away."""
    told = [
        at for at in (seen.tick_due, seen.wait_over, seen.start_at, seen.restore_at) if at and at > seen.now
    ]
    then = replace(seen, now=min([seen.now + later, *(at - 0.001 for at in told)]))
    if steady(seen) and next_step(seen) is Step.IDLE:
        assert next_step(then) is Step.IDLE


def test_an_app_that_should_run_and_does_not_is_not_steady() -> None:
    assert steady(view())
    for other in (
        view(runs={}),
        view(right=NONE),
        view(app(serving=2)),
        view(app(move_to="b")),
        view(ending=True),
    ):
        assert not steady(other)
