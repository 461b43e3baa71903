"""Appending what is no author's next entry, to a log that asks to wait."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from fractal.agent.here import SEND_WAIT, send
from fractal.api.errors import BackendError
from fractal.shell.entropy import SystemEntropy


class _Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def boottime(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.now += seconds


class _Limited:
    """Takes an entry at `opens` only, and says until then how long that is."""

    def __init__(self, clock: _Clock, opens: float) -> None:
        self.clock, self.opens, self.tries = clock, opens, 0

    async def append(self, address: str, token: str, raw: bytes) -> None:
        self.tries += 1
        if self.clock.now < self.opens:
            raise BackendError("a rate limit", retryable=True, wait=self.opens - self.clock.now)


def here(opens: float) -> Any:
    clock = _Clock()
    return SimpleNamespace(clock=clock, entropy=SystemEntropy(), coordinator=_Limited(clock, opens))


async def test_a_log_that_asks_to_wait_is_waited_for() -> None:
    limited = here(40.0)
    await send(limited, "log", b"welcome")
    assert limited.coordinator.tries == 2
    assert limited.clock.now >= 40.0


async def test_a_log_is_not_waited_for_longer_than_may_be() -> None:
    limited = here(SEND_WAIT + 1)
    with pytest.raises(BackendError, match="rate limit"):
        await send(limited, "log", b"welcome")
    assert limited.coordinator.tries == 1
