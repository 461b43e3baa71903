"""One round of taking several apps from a device that was silent, in a store that takes its time."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from types import SimpleNamespace
from typing import cast

import pytest

from fractal.agent.group import GroupAgent
from fractal.agent.jobs import failover
from fractal.api.errors import BackendError
from fractal.core.entries import Answered, Challenged, Entry, Serving, Took
from fractal.core.lease import Seen, observe, takes
from fractal.core.model import App, GroupState, Timers
from fractal.testing.archive_world import HandClock
from fractal.testing.group import World

APPS = ("a" * 16, "b" * 16, "c" * 16)
PATIENCE = 20.0


class Kitchen:
    """A device that may take the attic's apps. What its stores do while an epoch is created is up to a test."""

    def __init__(self, world: World) -> None:
        self.world, self.clock = world, HandClock()
        self.created: list[str] = []
        self.announced: list[Mapping[str, int]] = []
        self.news = asyncio.Event()
        self.reads = 0
        self.log_down = False
        self.meanwhile: dict[str, Callable[[], Awaitable[None]]] = {}
        """App -> what happens before the answer to the creation of its epoch comes."""
        self.listing: dict[str, Callable[[], Awaitable[None]]] = {}
        """Store -> what happens before the answer to a listing comes."""
        self.me = world.machines["kitchen"].id
        self.blind = False
        self.jobs: Mapping[str, object] = {}
        self.stores = {s: SimpleNamespace(store=SimpleNamespace(staleness=0.0)) for s in world.state.stores}
        self.seen = Seen()
        self.journal = SimpleNamespace(proof_sent=None, poll=self.poll, append=self.append)
        self.pulse = SimpleNamespace(beat=lambda: None)
        self.logger = logging.getLogger("test")
        self.agent = SimpleNamespace(
            clock=self.clock,
            stopping=False,
            coordinator=SimpleNamespace(staleness=0.0),
            tell=lambda *_, **__: None,
        )

    @property
    def state(self) -> GroupState:
        return self.world.state

    def app(self, app: str) -> App:
        return self.state.apps[app]

    def stored(self, app: App) -> Mapping[int, object]:
        return {}

    async def poll(self, wait: float) -> bool:
        self.reads += 1
        if self.log_down:
            raise BackendError("the log does not answer", retryable=True)
        self.journal.proof_sent = self.clock.boottime()
        return False

    async def append(self, entry: Entry, **_: object) -> int:
        assert isinstance(entry, Took)
        self.world.must("kitchen", entry)
        self.announced.append(entry.epochs)
        self.news.set()
        return self.state.position

    async def list_epochs(self, store: str) -> SimpleNamespace:
        if store in self.listing:
            await self.listing[store]()

        async def create(app: str, epoch: int, _: Timers) -> None:
            if app in self.meanwhile:
                await self.meanwhile[app]()
            self.created.append(app)

        return SimpleNamespace(
            highest=lambda app: self.app(app).epoch,
            store=SimpleNamespace(fencing=True, staleness=0.0),
            epochs=SimpleNamespace(create=create),
        )

    def challenge(self) -> None:
        """Somebody challenged the attic, and it did not answer in time."""
        self.world.must("kitchen", Challenged(device=self.world.machines["attic"].id))
        self.seen = observe(self.state, Seen(), self.clock.boottime())
        self.clock.now += 60.0

    def attic_answers(self) -> None:
        """It does after all."""
        self.world.must("attic", Answered(seen=self.state.position - 1))

    async def take(self) -> dict[str, tuple[float, float]]:
        """One round; what it leaves to be tried again."""
        group, tries = cast("GroupAgent", self), dict[str, tuple[float, float]]()
        due = list(takes(self.state, self.me, self.seen))
        assert [t.app for t in due] == list(APPS)
        async with asyncio.timeout(PATIENCE):
            await failover._take(group, due, tries)
        return tries


@pytest.fixture
def kitchen(monkeypatch: pytest.MonkeyPatch) -> Kitchen:
    """Two devices; three apps run on the other one, of which the last has a store of its own."""
    monkeypatch.setattr(failover, "LOOK", 0.01)
    world = World.founded()
    world.join("kitchen", "ann")
    other = world.add_store() and world.add_store(store="6" * 16)
    for app in APPS[:2]:
        world.install(app)
    world.must("attic", world.installation(APPS[2], store=other, placed="attic"))
    world.must("attic", Took(epochs=dict.fromkeys(APPS, 1)))
    for app in APPS:
        world.must("attic", Serving(app=app, epoch=1))
    made = Kitchen(world)
    made.challenge()
    return made


async def test_what_is_taken_in_one_moment_is_announced_by_one_entry(kitchen: Kitchen) -> None:
    await kitchen.take()
    assert sorted(kitchen.created) == list(APPS)
    assert kitchen.announced == [dict.fromkeys(APPS, 2)]
    assert kitchen.reads == 1, "nothing took so long that the log had to be read again"


async def test_an_answer_ends_the_take_of_all_apps_that_are_not_taken_yet(kitchen: Kitchen) -> None:
    """They were taken one after the other by a read of the log that was minutes old at last."""

    async def slow() -> None:
        kitchen.clock.now += 5.0
        kitchen.attic_answers()

    kitchen.meanwhile[APPS[0]] = slow
    kitchen.listing["6" * 16] = slow_listing(kitchen, until=lambda: kitchen.created)
    await kitchen.take()
    assert kitchen.created == [APPS[0]]
    assert kitchen.announced == [{APPS[0]: 2}]


def slow_listing(kitchen: Kitchen, *, until: Callable[[], object]) -> Callable[[], Awaitable[None]]:
    async def wait() -> None:
        while not until():
            await asyncio.sleep(0.001)

    return wait


async def test_where_the_store_was_slow_the_log_is_read_again_before_the_put(kitchen: Kitchen) -> None:
    async def slow() -> None:
        kitchen.clock.now += 5.0
        kitchen.log_down = True

    kitchen.listing["5" * 16] = slow
    kitchen.listing["6" * 16] = slow_listing(kitchen, until=lambda: kitchen.log_down)
    tries = await kitchen.take()
    assert kitchen.created == []
    assert sorted(tries) == list(APPS), "each is tried again"


async def test_the_first_app_is_announced_while_another_ones_store_still_takes_its_time(
    kitchen: Kitchen,
) -> None:
    """Its wait begins with the announcement, and others announce what they find unannounced for three seconds."""

    async def slow() -> None:
        kitchen.clock.now += failover.GATHER
        await kitchen.news.wait()

    kitchen.meanwhile[APPS[1]] = slow
    await kitchen.take()
    assert kitchen.announced[0] == {APPS[0]: 2, APPS[2]: 2}
    assert kitchen.announced[1] == {APPS[1]: 2}


async def test_a_round_that_is_cancelled_leaves_nothing_under_way(kitchen: Kitchen) -> None:
    begun, ended = asyncio.Event(), asyncio.Event()

    async def hangs() -> None:
        begun.set()
        try:
            await asyncio.sleep(PATIENCE)
        finally:
            ended.set()

    kitchen.meanwhile[APPS[0]] = hangs
    round_ = asyncio.create_task(kitchen.take())
    await begun.wait()
    round_.cancel()
    await asyncio.wait([round_])
    assert round_.cancelled()
    assert ended.is_set()
