"""The `direct` transport: a gateway reaches each device by its address. See docs/explanation/decisions/0005-direct-transport.md."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fractal.api.context import Context
    from fractal.api.transport import Transport
    from fractal.builtin.direct.config import DirectConfig


def open_direct(context: Context, config: DirectConfig) -> AbstractAsyncContextManager[Transport]:
    """The transport with its ports bound; closed, with every connection, on exit."""
    from fractal.builtin.direct.transport import open_direct as opened

    return opened(context, config)
