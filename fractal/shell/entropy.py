"""The operating system's randomness."""

from __future__ import annotations

import os
import random

from fractal.api.context import Entropy


class SystemEntropy(Entropy):
    """`getrandom(2)`, for keys and for jitter alike."""

    def __init__(self) -> None:
        self._random = random.SystemRandom()

    def bytes(self, count: int) -> bytes:
        """`count` bytes fit for keys."""
        return os.urandom(count)

    def uniform(self, low: float, high: float) -> float:
        """A number between `low` and `high`."""
        return self._random.uniform(low, high)
