"""Signs of life inside the tunnels: a device asks each gateway twice a second, the gateway's agent answers.

Keepalives hold the way through a NAT open and prove nothing; a handshake stays valid for three minutes after the other end is
gone. Who speaks needs no proof of its own: WireGuard lets only the owner of a key use the address.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

from fractal.api.context import Clock
from fractal_wireguard.addresses import HEARTBEAT_PORT

MISSES = 3
_ASK, _ANSWER = b"fractal?", b"fractal!"
_MESSAGE = re.compile(rb"fractal[?!].{8}", re.DOTALL)


@dataclass(slots=True)
class Pulse:
    """What is known of one other end, by its address."""

    heard: float | None = None
    """CLOCK_BOOTTIME of its last message."""
    rtt: float | None = None
    """Seconds of the last round trip."""
    asked: int = 0
    """Number of the last question."""
    asked_at: float = 0.0
    answered: int = 0
    """Number of the last question that was answered."""

    @property
    def missed(self) -> int:
        """Questions since the last answer, but for one that may be on its way."""
        return max(0, self.asked - self.answered - 1)


class Heartbeat(asyncio.DatagramProtocol):
    """One socket at the device's own address, for both ends."""

    def __init__(self, clock: Clock, known: Callable[[str], bool]) -> None:
        self._clock = clock
        self._known = known
        self._transport: asyncio.DatagramTransport | None = None
        self.pulses: dict[str, Pulse] = {}

    async def open(self, address: str) -> None:
        """Begin to listen. Raises OSError."""
        await asyncio.get_running_loop().create_datagram_endpoint(
            lambda: self, local_addr=(address, HEARTBEAT_PORT)
        )

    def close(self) -> None:
        """Stop."""
        if self._transport is not None:
            self._transport.close()

    def ask(self, address: str) -> Pulse:
        """Send the next question; what is known so far."""
        pulse = self.pulses.setdefault(address, Pulse())
        pulse.asked += 1
        pulse.asked_at = self._clock.boottime()
        if self._transport is not None:
            self._transport.sendto(_ASK + pulse.asked.to_bytes(8, "big"), (address, HEARTBEAT_PORT))
        return pulse

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # A cast, as asyncio's own one is no DatagramTransport before Python 3.12.
        self._transport = cast("asyncio.DatagramTransport", transport)

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        address = addr[0]
        if not _MESSAGE.fullmatch(data) or not self._known(address):
            return
        now, number = self._clock.boottime(), int.from_bytes(data[8:], "big")
        pulse = self.pulses.setdefault(address, Pulse())
        pulse.heard = now
        if data.startswith(_ASK) and self._transport is not None:
            self._transport.sendto(_ANSWER + data[8:], addr)
        elif data.startswith(_ANSWER) and pulse.answered < number <= pulse.asked:
            pulse.answered = number
            if number == pulse.asked:
                pulse.rtt = now - pulse.asked_at

    def error_received(self, exc: Exception) -> None:
        """A message that could not be sent is a message that is not answered."""
