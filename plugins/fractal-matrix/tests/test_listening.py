"""The long poll ends when it is told to, whatever it is doing at that moment."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from fractal_matrix.listening import Listener

from fractal.testing.context import real_context


async def test_it_ends_at_any_moment(tmp_path: Path) -> None:
    """Also while it gives a request up because other rooms are to be watched: one cancellation must not be taken for another."""
    async with real_context(tmp_path) as context:
        for turns in range(40):

            async def call(*_args: object, **_more: object) -> dict[str, Any]:
                try:
                    await asyncio.sleep(3000)
                finally:
                    for _ in range(3):  # a connection takes its time to close
                        await asyncio.sleep(0)
                return {}

            listener = Listener(context, call)
            listener.watch("!a", lambda _: None)
            await asyncio.sleep(0)
            listener.watch("!b", lambda _: None)
            for _ in range(turns):
                await asyncio.sleep(0)
            ended, _ = await asyncio.wait({asyncio.create_task(listener.close())}, timeout=20)
            assert ended, f"after {turns} turns"
