"""Who may run an app, and who may take it over: the rules of docs/explanation/failover.md as pure functions.

Instants are seconds on CLOCK_BOOTTIME of this device, passed in. Nothing here waits, sends or reads a clock.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum

from fractal.core.model import App, Desired, GroupState, Timers
from fractal.core.placement import may_host, of_both, refusal, successors

MAX_PATIENCE = 600.0
UNTRIED_GRACE = 300.0
"""Seconds for which an app that got unhealthy here waits for devices that have not tried it."""
POLLS = 5
"""Into how many polls a proof is divided at least, where an owner's is shorter than the group's: `fast` divides its own so."""
MOVE_GRACE = 15.0
"""Seconds for which a planned move's target is alone in taking a released app."""


def seconds(milliseconds: int) -> float:
    """The log's milliseconds as seconds."""
    return milliseconds / 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Proofs:
    """When the requests were sent whose answers proved something. None: never since this agent's start."""

    log: float | None = None
    """A read that reached the log's head."""
    store: float | None = None
    """A complete listing of the epochs in the app's store."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """What this device durably noted of one app."""

    waited: int = 0
    """Epoch whose wait is over."""
    released: int = 0
    """Highest epoch that this device gave up: it never runs that one again."""
    clean: int = 0
    """Epoch taken without need to wait: the first of all, or after a clean release."""
    root: int = 0
    """Epoch to which the local volume root belongs; 0: there is none."""


@dataclass(frozen=True, slots=True)
class Right:
    """Until when an app may run here; `deadline` None means not at all, and `reason` says why."""

    deadline: float | None
    reason: str


def right_to_run(
    app: App, me: str, *, timers: Timers, proofs: Proofs, standing: Standing, stored: int, blind: bool
) -> Right:
    """The right to run the announced epoch of `app` on device `me`.

    `stored` is the highest epoch that any listing ever showed; `blind` is true while the log cannot be fully read
    (an entry cannot be unsealed, or the server forked it): then only the store proves anything.
    """
    if app.removed or app.owner != me or app.epoch == 0:
        return Right(None, "another device owns it" if app.owner else "nobody owns it")
    if stored > app.epoch:
        return Right(None, f"epoch {stored} stands in the store")
    if app.release is not None or standing.released >= app.epoch:
        return Right(None, f"epoch {app.epoch} was released")
    if standing.waited != app.epoch:
        return Right(None, f"the wait of epoch {app.epoch} is not over")
    sent = [at for at in (None if blind else proofs.log, proofs.store) if at is not None]
    if app.policy.keeps and app.unproven:
        # Nobody takes such an app by itself, so a missing proof says nothing; a replaced epoch was caught above. In an epoch from
        # before the policy said so, somebody may be about to take it who has not read that yet.
        return Right(float("inf"), "kept by policy")
    if not sent:
        return Right(None, "neither log nor store has been read since the agent started")
    return Right(max(sent) + seconds(timers.proof), "proved")


def renews(app: App) -> bool:
    """Whether the owner is to take the app's next epoch itself: only in that one the policy can keep the app when it is cut off."""
    return app.policy.keeps and not app.unproven and bool(app.owner) and not app.move_to and not app.removed


def owes_word(app: App, me: str) -> bool:
    """Whether others wait for `me` to say that it has read a policy that no longer keeps the app."""
    return app.owner == me and bool(app.unproven) and not app.policy.keeps and not app.removed


def read_up_to(state: GroupState, me: str, bound: Mapping[str, int]) -> int:
    """The position that an answer of `me` may name: one below any word that it owes and may not give yet.

    `bound` gives, by app, the `unproven` by which its guard goes already.
    """
    unbound = (a.unproven - 1 for a in _owed(state, me) if bound.get(a.id) != a.unproven)
    return min([state.position, *unbound])


def may_give_word(state: GroupState, me: str, bound: Mapping[str, int]) -> bool:
    """Whether `me` owes word of an app by which its guard goes already, and an answer may name a position that gives it."""
    ready = [a.unproven for a in _owed(state, me) if bound.get(a.id) == a.unproven]
    return bool(ready) and min(ready) <= read_up_to(state, me, bound)


def _owed(state: GroupState, me: str) -> Iterator[App]:
    return (a for a in state.apps.values() if owes_word(a, me))


def paced(timers: Timers, proof: int) -> Timers:
    """The timers of an owner whose epoch allows it proofs of `proof` ms only: it polls so often that each comes before the last ran out.

    Otherwise a group that is made more patient would starve the owners of before it. Time-outs stay as long as the group's: an
    answer too late to prove anything still tells of a challenge.
    """
    if not 0 < proof < timers.proof:
        return timers
    return replace(timers, proof=proof, poll=max(1, min(timers.poll, proof // POLLS)))


def wait_until(
    *,
    acknowledged: float,
    read_back: float,
    longest_proof: int,
    longest_margin: int,
    staleness: float,
    clean: bool,
) -> float:
    """When the taker of an epoch may start: any proof that the previous owner can hold has run out by then.

    `longest_proof` and `longest_margin` (ms) are the largest found in the app's listed epochs.
    """
    if clean:
        return max(acknowledged, read_back)
    return max(acknowledged, read_back) + seconds(longest_proof + longest_margin) + staleness


def clean_succession(app: App, epoch: int, stored: int) -> bool:
    """Whether taking `epoch` needs no wait: nothing came before it, or all that did was released cleanly."""
    if max(app.epoch, stored) != epoch - 1:
        return False
    if epoch == 1:
        return True
    return (
        stored == app.epoch
        and app.release is not None
        and app.release.epoch == app.epoch
        and app.release.clean
    )


# --- suspicion -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Watch:
    """What one device has heard of another."""

    heard: float
    """Last sign of life, or the moment from which silence counts."""
    patience: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Suspicion:
    """Signs of life of the others. Silence counts only while one's own log reads work."""

    since: float
    """From when on silence counts: own start, or the end of the last outage of one's own reads."""
    watches: Mapping[str, Watch] = field(default_factory=dict)

    def heard(self, device: str, now: float, timers: Timers) -> Suspicion:
        """A signal of the device arrived; patience shrinks towards the profile's."""
        base = seconds(timers.patience)
        patience = max(base, self._patience(device, base) * 0.9)
        return self._watching(device, Watch(heard=now, patience=patience))

    def answered(self, device: str, now: float, timers: Timers) -> Suspicion:
        """The device answered a challenge: it lives, only its signals are lost, so be more patient with it."""
        patience = min(MAX_PATIENCE, 2 * self._patience(device, seconds(timers.patience)))
        return self._watching(device, Watch(heard=now, patience=patience))

    def _watching(self, device: str, watch: Watch) -> Suspicion:
        return Suspicion(since=self.since, watches={**self.watches, device: watch})

    def deaf(self, now: float) -> Suspicion:
        """One's own reads did not work: begin again to count everybody's silence from `now`."""
        return replace(self, since=now)

    def silence(self, device: str, now: float) -> float:
        """Seconds since the last sign of life that counts."""
        watch = self.watches.get(device)
        return now - max(self.since, watch.heard if watch else self.since)

    def suspected(self, device: str, now: float, timers: Timers) -> bool:
        """Whether it is silent for longer than patience."""
        return now >= self.suspected_at(device, timers)

    def suspected_at(self, device: str, timers: Timers) -> float:
        """From when on it is, if nothing more is heard of it."""
        watch = self.watches.get(device)
        heard = max(self.since, watch.heard if watch else self.since)
        return heard + self._patience(device, seconds(timers.patience))

    def _patience(self, device: str, base: float) -> float:
        watch = self.watches.get(device)
        return watch.patience if watch else base


def to_challenge(
    state: GroupState, me: str, suspicion: Suspicion, now: float, wall_ms: int
) -> tuple[str, ...]:
    """Devices that this one should challenge now: silent, not yet challenged, with an app that this one could host."""
    return tuple(d for d in watched(state, me, wall_ms) if suspicion.suspected(d, now, state.timers))


def watched(state: GroupState, me: str, wall_ms: int) -> tuple[str, ...]:
    """Devices that this one would challenge if they were silent."""
    devices = state.devices
    return tuple(
        d for d in of_both(state, me, _watchable) if not 0 < devices[d].away_until - wall_ms <= 300_000
    )


def _watchable(state: GroupState, me: str) -> tuple[str, ...]:
    """The same, also those that said that they will be away for a moment."""
    found = []
    apps = [a for a in state.apps.values() if _at_risk(a)]
    for device in sorted({a.owner or a.placed for a in apps} - {me, ""}):
        known = state.devices.get(device)
        if known is None or known.removed or device in state.challenges:
            continue
        if any((a.owner or a.placed) == device and may_host(state, a, me) for a in apps):
            found.append(device)
    return tuple(found)


def _at_risk(app: App) -> bool:
    """Whether others stand in for a silent owner: by policy, or because somebody wants the app elsewhere.

    An app that its owner may run without proof is never taken from a silent one: it may well run there.
    """
    asked = app.policy.failover == "automatic" or bool(app.move_to)
    return asked and not app.removed and not app.unproven and app.desired is Desired.RUNNING


# --- taking ----------------------------------------------------------------------------------------------------------


class Why(Enum):
    """What makes an app free to be taken."""

    FIRST = "first start"
    MOVED = "planned move"
    RELEASED = "released by its owner"
    UNHEALTHY = "did not get healthy on its owner"
    SILENT = "its owner does not answer"
    BURNT = "its epoch has no valid owner"
    REMOVED = "its owner was removed"


@dataclass(frozen=True, slots=True)
class Take:
    """This device may take the app from `at` on."""

    app: str
    at: float
    why: Why


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """When this device first saw things in the log, on its own clock."""

    challenges: Mapping[tuple[str, int], float] = field(default_factory=dict)
    """(device, position) -> instant."""
    vacancies: Mapping[tuple[str, int], float] = field(default_factory=dict)
    """(app, epoch) without an able owner -> instant."""

    def deaf(self, now: float) -> Seen:
        """One's own reads did not work: whoever is challenged could not answer either, and has all of the window again from `now`."""
        return replace(self, challenges=dict.fromkeys(self.challenges, now)) if self.challenges else self


def vacancy(state: GroupState, app: App) -> Why | None:
    """Why nobody is going to run the app's present epoch, as far as the log says; silence is not among it."""
    return of_both(state, app, _vacancy)


def _vacancy(state: GroupState, app: App) -> Why | None:
    if app.removed or app.desired is not Desired.RUNNING:
        return None
    if app.epoch == 0:
        return Why.FIRST
    if app.release is not None:
        return Why.UNHEALTHY if app.release.unhealthy else Why.MOVED if app.move_to else Why.RELEASED
    if not app.owner:
        return Why.BURNT
    owner = state.devices.get(app.owner)
    if owner is None or owner.removed:
        return Why.REMOVED
    # An owner that may run it without proof gives it up itself, whatever makes it unfit.
    return Why.REMOVED if refusal(state, app, owner) and not app.unproven else None


def takes(state: GroupState, me: str, seen: Seen) -> tuple[Take, ...]:
    """Every app that `me` may take, and from when on. The caller reads the log once more before it acts."""
    found = []
    for _, app in sorted(state.apps.items()):
        take = _vacant(state, app, me, seen) or _silent(state, app, me, seen)
        if take is not None:
            found.append(take)
    return tuple(found)


def _vacant(state: GroupState, app: App, me: str, seen: Seen) -> Take | None:
    why = vacancy(state, app)
    if why is None:
        return None
    since = seen.vacancies.get((app.id, app.epoch))
    if since is None:
        return None
    step = seconds(state.timers.rank_step)
    if why is Why.FIRST:
        return Take(app.id, since, why) if app.placed == me else None
    # Who gives an epoch up to renew it takes the next one itself.
    target = app.move_to or (app.owner if why is Why.RELEASED and renews(app) else "")
    order = successors(state, app)
    if me not in order:
        return None
    if why in (Why.MOVED, Why.RELEASED) and target in order:
        if me == target:
            return Take(app.id, since, why)
        rank = [d for d in order if d != target].index(me)
        return Take(app.id, since + MOVE_GRACE + rank * step, Why.RELEASED)
    if why is Why.UNHEALTHY and me in app.failed and any(d not in app.failed for d in order):
        # Those who have not tried may be away for good: then another try here is better than none.
        since += UNTRIED_GRACE
    return Take(app.id, since + order.index(me) * step, why)


def _silent(state: GroupState, app: App, me: str, seen: Seen) -> Take | None:
    owner = app.owner or app.placed
    challenge = state.challenges.get(owner)
    if challenge is None or owner == me or not _at_risk(app):
        return None
    since = seen.challenges.get((owner, challenge.position))
    if since is None:
        return None
    order = successors(state, app, without=[owner])
    if app.policy.failover == "manual":
        order = tuple(d for d in order if d == app.move_to)
    if me not in order:
        return None
    window = seconds(state.timers.answer_window)
    return Take(app.id, since + window + order.index(me) * seconds(state.timers.rank_step), Why.SILENT)


def observe(state: GroupState, seen: Seen, now: float) -> Seen:
    """Note what is new in the log, forget what is over."""
    challenges = {
        (c.device, c.position): seen.challenges.get((c.device, c.position), now)
        for c in state.challenges.values()
    }
    vacancies = {
        (a.id, a.epoch): seen.vacancies.get((a.id, a.epoch), now)
        for a in state.apps.values()
        if vacancy(state, a) is not None
    }
    return Seen(challenges=challenges, vacancies=vacancies)


def check_timers(timers: Timers) -> tuple[str, ...]:
    """What is wrong with a group's timers; the agent refuses to run automatic failover on wrong ones."""
    problems = []
    if timers.read_timeout + timers.poll >= timers.proof:
        problems.append("read_timeout + poll must be smaller than proof")
    if timers.answer_window < timers.poll + timers.read_timeout:
        problems.append("answer_window must be at least poll + read_timeout")
    if timers.beat * 2 > timers.patience:
        problems.append("patience must be at least two beats")
    if min(timers.beat, timers.patience, timers.margin, timers.poll, timers.proof, timers.rank_step) <= 0:
        problems.append("every timer must be positive")
    return tuple(problems)


PROFILES: Mapping[str, Timers] = {
    "standard": Timers(),
    "fast": Timers(
        profile="fast",
        beat=1_000,
        patience=3_000,
        answer_window=4_000,
        rank_step=1_500,
        proof=5_000,
        margin=1_000,
        poll=1_000,
        read_timeout=3_000,
    ),
    "patient": Timers(
        profile="patient",
        beat=5_000,
        patience=35_000,
        answer_window=15_000,
        rank_step=5_000,
        proof=25_000,
        margin=4_000,
        poll=3_000,
        read_timeout=10_000,
    ),
}
