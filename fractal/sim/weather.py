"""What is wrong with the network and the two servers at present. Faults overlap, so most of it is counted."""

from __future__ import annotations

from dataclasses import dataclass, field

LOG, STORE, SIGNALS, APPENDS = "log", "store", "signals", "appends"


@dataclass(slots=True)
class Bucket:
    """Appends that a rate limit still grants to one device."""

    tokens: float
    at: float


@dataclass(slots=True)
class Weather:
    """Read at every call; changed by faults."""

    over: bool = False
    """Nothing goes wrong any more, whatever begins late."""
    cut: dict[tuple[str, str], int] = field(default_factory=dict)
    """(device, service) -> how many faults keep them apart."""
    loss: float = 0.0
    """Probability that a request or an answer is lost."""
    twice: float = 0.0
    """Probability that a request arrives a second time, later."""
    slow: float = 0.0
    """Probability of a delay out of a heavy tail."""
    lying: float = 0.0
    """Probability that a write succeeds and looks timed out."""
    belated: float = 0.0
    """Probability that a write to the store looks failed and takes effect up to a minute later."""
    slow_log: float = 0.0
    """Seconds that the log's server takes for each answer."""
    slow_store: float = 0.0
    """The same of the store's."""
    late: dict[str, float] = field(default_factory=dict)
    """Devices to which answers take about so many seconds."""
    muted: dict[str, int] = field(default_factory=dict)
    """Devices whose signals are lost."""
    limited: int = 0
    """How many faults make the log's server limit appends: 0.2 a second and device, after a burst of 5."""
    buckets: dict[str, Bucket] = field(default_factory=dict)
    snares: dict[str, float] = field(default_factory=dict)
    """Device -> for how many seconds it is cut off when its next entry has got into the log."""
    hides: dict[str, int] = field(default_factory=dict)
    """Device -> how many of the newest keys that it was shown before its listings lack."""

    def apart(self, device: str, service: str) -> bool:
        """Whether nothing gets through."""
        return not self.over and self.cut.get((device, service), 0) > 0

    def granted(self, device: str, now: float) -> float:
        """Takes one append from the device's allowance; how many seconds to wait if there is none, else 0."""
        if self.limited <= 0:
            return 0.0
        bucket = self.buckets.setdefault(device, Bucket(5.0, now))
        bucket.tokens = min(5.0, bucket.tokens + 0.2 * (now - bucket.at))
        bucket.at = now
        if bucket.tokens < 1.0:
            return 5.0 * (1.0 - bucket.tokens)
        bucket.tokens -= 1.0
        return 0.0

    def clear(self) -> None:
        """All is well. An owner that is unheard until it is cut off as well would be so only after this, where no count is yet."""
        self.over = True
        self.muted = dict.fromkeys(self.muted, -1000)
        self.loss = self.twice = self.slow = self.lying = self.belated = self.slow_log = self.slow_store = 0.0
        self.limited = -1000
        self.late.clear()
        self.hides.clear()
        self.snares.clear()
