"""A gateway and two devices of the `direct` transport on loopback, for its contract tests and `plugin check`."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from fractal.builtin.direct import open_direct
from fractal.builtin.direct.config import DirectConfig
from fractal.testing.context import real_context
from fractal.testing.transport_parts import Bed, free_port

GATEWAY, ONE, TWO = "a" * 20, "b" * 20, "c" * 20


@asynccontextmanager
async def direct_bed(folder: Path) -> AsyncIterator[Bed]:
    """A gateway and two devices, each with a folder of its own."""
    https = free_port()
    common = DirectConfig(hold=2.0, greeting_timeout=3.0, probe_interval=0.2)
    public = DirectConfig(hold=2.0, greeting_timeout=3.0, probe_interval=0.2, https_port=https)
    async with (
        real_context(folder / "gateway", device=GATEWAY) as front,
        real_context(folder / "one", device=ONE) as first,
        real_context(folder / "two", device=TWO) as second,
        open_direct(front, public) as gateway,
        open_direct(first, common) as one,
        open_direct(second, common) as two,
    ):
        yield Bed(
            gateway_id=GATEWAY,
            gateway=gateway,
            devices={ONE: one, TWO: two},
            https=("127.0.0.1", https),
            tcp_port=free_port(),
            udp_port=free_port(socket.SOCK_DGRAM),
            hold=2.0,
        )
