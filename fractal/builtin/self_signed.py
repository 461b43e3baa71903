"""The `self-signed` authority: certificates that their users trust by fingerprint. It asks nobody."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fractal.api.authority import Answer, Authority, Issued
from fractal.api.certificates import make_certificate
from fractal.api.context import Context
from fractal.builtin.self_signed_config import SelfSignedConfig

IDENTITY = "self-signed"


class SelfSigned:
    """See `Authority`."""

    identity = IDENTITY
    needs_traffic = False

    def __init__(self, context: Context) -> None:
        self._context = context

    async def issue(self, name: str, account: bytes, answer: Answer) -> Issued:
        """A certificate with a key of its own. Raises InvalidInput for what is no name."""
        del answer
        context = self._context
        made = await context.workers.run(make_certificate, name, context.entropy, context.clock.wall_ms())
        return Issued(certificate=made, account=account)


@asynccontextmanager
async def open_self_signed(context: Context, config: SelfSignedConfig) -> AsyncIterator[Authority]:
    """Nothing to open."""
    del config
    yield SelfSigned(context)
