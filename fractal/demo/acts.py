"""The demo's acts. Every figure comes from the client's journal, the files of apps and store, and /proc."""

from __future__ import annotations

import gzip
import signal
import time
from dataclasses import dataclass
from typing import Any

from fractal.core.lease import PROFILES, seconds
from fractal.demo.client import Attempt
from fractal.demo.devices import DemoDevice
from fractal.demo.scene import APP, GROUP, INTERVAL, Scene
from fractal.demo.tap import files_that_hold, holds

APP_START = 20.0
"""Seconds that the app itself is given to start, on a machine that does three devices' work."""
LOSS = 120.0
"""Seconds of data that may be lost at most: the promise."""
UPLOAD = 8.0
"""Seconds that taking and storing a snapshot may take on a machine that does three devices' work."""
MOVE = 2.0
"""Seconds that a planned move may take, besides the app's own start."""


def takeover_bound() -> float:
    """Seconds from death to running that the profile's timers give, without the app's own start."""
    timers = PROFILES["standard"]
    silence = timers.beat + timers.patience
    decision = timers.answer_window + timers.rank_step + timers.poll + timers.read_timeout
    return seconds(silence + decision + timers.proof + timers.margin)


@dataclass(slots=True)
class Demo(Scene):
    """Plays the acts on the scene."""

    # --- the acts ----------------------------------------------------------------------------------------------------

    def play(self, number: int) -> None:
        """Play an act."""
        acts = {1: self.act_death, 2: self.act_hang, 3: self.act_travel}
        acts[number]()

    def act_death(self) -> None:
        """Kitchen dies: agent, guard and app."""
        self.head("Act 1: Kitchen dies (SIGKILL to its agent, its guard and its app)")
        time.sleep(INTERVAL / 2)
        died = self.kitchen.kill_everything()
        self.say("Kitchen is dead")
        self.after_takeover("Attic takes over", died, self.attic)
        before = time.monotonic()
        self.kitchen.start()
        self.say("Kitchen is back")
        time.sleep(12)
        self.promise(
            self.watch.last("Kitchen") < before,
            "Kitchen starts no second copy when it comes back",
        )
        self.check_branch(self.lost)

    def act_hang(self) -> None:
        """The owner's agent hangs while its app runs on."""
        owner = self.owner()
        other = self.kitchen if owner is self.attic else self.attic
        self.head(f"Act 2: the agent of {owner.name} hangs (SIGSTOP) while its app runs on")
        self.wait("the other device is ready", lambda: self.behind(other) is not None, 40)
        stopped = time.monotonic()
        owner.signal_agent(signal.SIGSTOP)
        try:
            self.after_takeover(f"{other.name} takes over", stopped, other, grace=14.0)
            froze = self.watch.last(owner.name) - stopped
            self.figure("hung agent: its app frozen by the guard after", f"{froze:.1f} s", "< 14 s")
            self.promise(froze < 14.5, f"the guard froze {owner.name}'s app by itself after {froze:.1f} s")
        finally:
            owner.signal_agent(signal.SIGCONT)
        resumed = time.monotonic()
        time.sleep(10)
        self.promise(
            self.watch.last(owner.name) < resumed,
            f"{owner.name} does not thaw its copy when its agent goes on",
        )
        self.check_branch(self.lost)

    def act_travel(self) -> None:
        """A planned move, a fork and a restore."""
        source = self.owner()
        target = self.kitchen if source is self.attic else self.attic
        self.head(f"Act 3: planned move to {target.name}, then time travel")
        self.wait("the target is ready", lambda: self.behind(target) is not None, 40)
        before = len(self.writer.acknowledged())
        began = time.monotonic()
        source.run("app", "move", APP, target.name, "--group", GROUP)
        ended = time.monotonic()
        time.sleep(2)
        gap = self.writer.longest_gap(began, time.monotonic())
        start = self.app_start(target, began)
        self.figure(
            "planned move: longest time without an answer",
            f"{gap:.1f} s",
            f"< {MOVE:.0f} s + the app's start",
        )
        self.figure("of which the app's own start", f"{start:.1f} s")
        self.say(
            f"moved in {ended - began:.1f} s, the client waited {gap:.1f} s, of which the app's start {start:.1f} s"
        )
        self.promise(gap < MOVE + start, "the move keeps the client waiting for less than its bound")
        known = self.calendar.entries()
        moved = self.writer.acknowledged()[:before]
        missing = [a for a in moved if a.uid not in known and a.uid not in self.gone]
        self.promise(not missing, "a planned move loses nothing that was acknowledged")
        self.fork()
        self.restore()

    def fork(self) -> None:
        """A second copy of an earlier moment, beside the live one."""
        moment = self.early
        self.owner().run("app", "fork", APP, "yesterday", "--group", GROUP, "--at", moment)
        calendar = self.open_calendar("yesterday.demo.localhost")
        then, now = self.entries_soon(calendar), self.calendar.entries()
        self.promise(
            bool(then) and then < now,
            f"a fork of snapshot {moment} has {len(then)} of today's {len(now)} entries",
        )
        self.owner().run("app", "remove", "yesterday", "--group", GROUP, "--yes")

    def restore(self) -> None:
        """The app itself back to an earlier moment, and forward again."""
        self.writer.stop()
        owner = self.owner()
        owner.run("snapshot", "create", APP, "--group", GROUP)
        full = self.calendar.entries()
        early, latest = self.early, self.moment(owner, -1)
        owner.run("app", "restore", APP, "--group", GROUP, "--at", early, "--yes")
        then = self.entries_soon(self.calendar)
        self.promise(bool(then) and then < full, f"restored to {early}: {len(then)} of {len(full)} entries")
        owner.run("app", "restore", APP, "--group", GROUP, "--at", latest, "--yes")
        again = self.entries_soon(self.calendar)
        self.promise(again == full, f"and forward again to {latest}: all {len(again)} entries")

    # --- what the acts check -------------------------------------------------------------------------------------------

    def after_takeover(self, title: str, since: float, by: DemoDevice, *, grace: float = 0.0) -> None:
        """Wait for the client to be served again; measure time and loss.

        `grace`: seconds for which the old copy may have gone on serving after the failure.
        """
        bound = takeover_bound()
        self.wait(title, lambda: self.writer.outage(since) is not None, bound + APP_START + 30)
        outage = self.writer.outage(since)
        assert outage is not None
        start = self.app_start(by, since)
        self.say(f"{title}: served again after {outage:.1f} s, of which the app's own start {start:.1f} s")
        self.figure(f"{title}: without service", f"{outage:.1f} s", f"<= {bound:.0f} s + the app's start")
        self.figure("of which the app's own start", f"{start:.1f} s")
        self.promise(outage - start <= bound, f"within what the profile's timers give ({bound:.0f} s)")
        known = self.calendar.entries()
        fresh = [a for a in self.writer.acknowledged() if a.done <= since + outage and a.uid not in self.gone]
        acked = [a for a in fresh if a.done < (self.watch.started(by.name, since) or since)]
        self.lost = [a for a in acked if a.uid not in known]
        self.gone |= {a.uid for a in self.lost}
        # From the newest entry that is there (if none is, from before the first) to the last acknowledgement of the old copy.
        first = min((a.sent for a in acked), default=since)
        kept = max((a.done for a in acked if a.uid in known), default=first)
        loss = max(a.done for a in acked) - kept if self.lost else 0.0
        self.figure(
            f"{title}: data lost",
            f"{loss:.1f} s ({len(self.lost)} of {len(acked)} entries)",
            f"<= {LOSS:.0f} s",
        )
        self.say(f"of {len(acked)} acknowledged entries {len(self.lost)} are missing: {loss:.1f} s of data")
        self.promise(loss <= LOSS, f"no more than {LOSS:.0f} s of data lost")
        self.promise(
            loss <= grace + INTERVAL + UPLOAD,
            "no more than an interval and an upload beyond the failure lost",
        )
        newest = max((a.done for a in acked if a.uid in known), default=0.0)
        older = [a for a in self.lost if a.done < newest - 1]
        self.promise(not older, "what is there is a whole moment: nothing is missing from its middle")
        self.promise(
            not self.watch.overlaps, f"never two running copies ({self.watch.samples} looks into /proc)"
        )

    def check_branch(self, lost: list[Attempt]) -> None:
        """What the replaced owner had not stored is a branch, and can be opened."""
        if not lost:
            return
        owner = self.owner()

        def branches() -> list[dict[str, Any]]:
            return [s for s in self.snapshots(owner) if s["branch"]]

        self.wait("a branch is stored", lambda: bool(branches()), 40)
        moment = branches()[-1]["moment"]
        name = f"branch-{moment.replace('.', '-')}"
        owner.run("app", "fork", APP, name, "--group", GROUP, "--at", moment)
        there = self.entries_soon(self.open_calendar(f"{name}.demo.localhost"))
        missing = [a for a in lost if a.uid not in there]
        self.promise(
            not missing, f"branch {moment} has all {len(lost)} entries that the new owner did not get"
        )
        owner.run("app", "remove", name, "--group", GROUP, "--yes")

    # --- what others saw -----------------------------------------------------------------------------------------------

    def look_for_canary(self) -> None:
        """Search what store, log server and gateway saw for a text that is in every calendar entry."""
        self.head("What store, log and gateway saw")
        canary = self.canary.encode()
        made, span = self.shelf.growth()
        self.figure(
            f"store folder: new bytes per {INTERVAL} s",
            f"{made * INTERVAL / span:,.0f}",
            f"over {span:.0f} s",
        )
        self.promise(self.positive_control(canary), "the search finds the canary where it is known to be")
        for what, folder in (("store", "store"), ("log", "log")):
            count, found = files_that_hold(self.folder / "shared" / folder, canary)
            self.promise(
                not found, f"the canary is in none of {count} files of the {what}, also decompressed"
            )
            self.promise(count > 0, f"the {what} was searched")
        leaks = sum(holds(stream, canary) for stream in self.tap.seen)
        self.promise(
            not leaks and self.tap.size > 0, f"nor in {self.tap.size:,} bytes of traffic through the gateway"
        )

    def positive_control(self, canary: bytes) -> bool:
        """The app's own files hold the canary in clear; compressed, the search still finds it."""

        import zstandard

        owner = self.owner()
        _, found = files_that_hold(owner.state / "snapshot", canary)
        samples = [gzip.compress(b"xx" + canary), zstandard.ZstdCompressor().compress(b"yy" + canary)]
        return bool(found) and all(holds(b"head" + s + b"tail", canary) for s in samples)
