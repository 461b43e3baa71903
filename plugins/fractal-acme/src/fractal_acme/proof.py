"""TLS-ALPN-01 (RFC 8737): the challenge, and the certificate that answers it.

The `acme` library knew this challenge once and does not any more; what it needs to know is said here.
"""

from __future__ import annotations

import hashlib

from acme import challenges
from acme.messages import ChallengeBody
from josepy.jwk import JWK

from fractal.api.certificates import make_certificate
from fractal.api.context import Entropy
from fractal.api.transport import Certificate

TYPE = "tls-alpn-01"
IDENTIFIER = "1.3.6.1.5.5.7.1.31"
"""id-pe-acmeIdentifier."""
_OCTETS = b"\x04\x20"
"""DER: an octet string of 32 bytes."""


@challenges.ChallengeResponse.register
class Response(challenges.KeyAuthorizationChallengeResponse):
    """Tells the authority to look."""

    typ = TYPE


@challenges.Challenge.register
class Challenge(challenges.KeyAuthorizationChallenge):
    """A challenge of this type."""

    typ = TYPE
    response_cls = Response

    def validation(self, account_key: JWK, **_: object) -> str:
        """What the certificate's hash is made of."""
        return str(self.key_authorization(account_key))


def challenge_of(offered: list[ChallengeBody]) -> ChallengeBody | None:
    """The challenge of this type among those that an authority offers."""
    return next((body for body in offered if isinstance(body.chall, Challenge)), None)


def proof(challenge: Challenge, account_key: JWK, name: str, entropy: Entropy, wall_ms: int) -> Certificate:
    """The self-signed certificate that the authority is to be shown."""
    digest = hashlib.sha256(challenge.validation(account_key).encode()).digest()
    return make_certificate(name, entropy, wall_ms, extension=(IDENTIFIER, _OCTETS + digest))
