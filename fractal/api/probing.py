"""Looking whether a service answers, alike for every runtime: `HealthSpec.http` and plain TCP."""

from __future__ import annotations

import asyncio
import contextlib

LONGEST_LINE = 1 << 14


async def answers(host: str, port: int, path: str = "") -> tuple[bool, str]:
    """Whether a service takes connections or, with a `path`, answers `GET path` with a status below 500; and what it said.

    Whoever asks sets the time-out. Raises OSError if nobody listens.
    """
    reader, writer = await asyncio.open_connection(host, port, limit=LONGEST_LINE)
    try:
        if not path:
            return True, ""
        request = f"GET {path} HTTP/1.1\r\nHost: {host}:{port}\r\nConnection: close\r\nUser-Agent: homeserver\r\n\r\n"
        writer.write(request.encode("ascii", "replace"))
        await writer.drain()
        try:
            line = (await reader.readline()).decode("latin-1").split(None, 2)
        except ValueError:
            return False, "answer is not HTTP"
        if len(line) < 2 or not line[0].startswith("HTTP/") or not line[1].isdigit():
            return False, "answer is not HTTP"
        return int(line[1]) < 500, f"GET {path}: status {line[1]}"
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
