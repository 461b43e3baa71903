"""Authority kind: gives certificates for the names under which apps are reached."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Protocol

from fractal.api.backend import Backend, C, Offer
from fractal.api.transport import Certificate

Answer = Callable[[Certificate | None], Awaitable[None]]
"""Lets whoever asks this device for the name by `acme-tls/1` see that certificate; None ends it. Raises BackendError."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Issued:
    """A certificate, and the account that it was got by."""

    certificate: Certificate
    account: bytes = field(default=b"", repr=False)
    """What the authority wants to be given the next time: it is kept with the app, as secret as the certificate's key."""


class Authority(Protocol):
    """Issues certificates. Keys are made here, on the device, for every certificate anew."""

    @property
    def identity(self) -> str:
        """Who issues, e.g. the address of a directory: at most 400 printable characters, the same on every device."""

    @property
    def needs_traffic(self) -> bool:
        """Whether it looks for itself that the name leads here: then it is asked only once gateways lead it here."""

    async def issue(self, name: str, account: bytes, answer: Answer) -> Issued:
        """A certificate for DNS name `name`; `account` is what an earlier call gave, b"" at first.

        What was answered is ended before this returns, also when it fails. Raises BackendError saying what the authority
        said, retryable or not.
        """


class AuthorityOffer(Offer):
    """An `AuthorityBackend` of any config type: what `fractal_authorities` yields."""

    __slots__ = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class AuthorityBackend(AuthorityOffer, Backend[Authority, C]):
    """Offers an `Authority`."""
