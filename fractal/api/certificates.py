"""Keys of certificates, and self-signed certificates, whose users trust them by their fingerprint."""

from __future__ import annotations

import datetime as dt
from typing import TYPE_CHECKING

from fractal.api.context import Entropy
from fractal.api.names import normal_host
from fractal.api.transport import Certificate

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

LIFETIME_DAYS = 3650
"""Nobody but the app's own users trusts it, by its fingerprint; a renewal would only break that trust."""

# Order of the group of NIST P-256 (FIPS 186-4, D.1.2.3).
_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551


def new_key(entropy: Entropy) -> EllipticCurvePrivateKey:
    """A P-256 key."""
    from cryptography.hazmat.primitives.asymmetric import ec

    # 128 bits more than needed make the remainder's bias negligible (FIPS 186-4, B.4.1).
    secret = int.from_bytes(entropy.bytes(48), "big") % (_ORDER - 1) + 1
    return ec.derive_private_key(secret, ec.SECP256R1())


def key_pem(key: EllipticCurvePrivateKey) -> bytes:
    """A private key as PEM, not encrypted: what holds it is."""
    from cryptography.hazmat.primitives import serialization

    encoding, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    return key.private_bytes(encoding, form, serialization.NoEncryption())


def first_certificate(chain: str) -> bytes:
    """DER of a PEM chain's first certificate, b"" if there is none."""
    from cryptography import x509
    from cryptography.hazmat.primitives import serialization

    try:
        return x509.load_pem_x509_certificate(chain.encode()).public_bytes(serialization.Encoding.DER)
    except ValueError:
        return b""


def begins_ms(chain: str) -> int:
    """When a PEM chain's first certificate begins to be valid, in ms since 1970; 0 for what is none."""
    return _valid(chain)[0]


def expires_ms(chain: str) -> int:
    """When a PEM chain's first certificate ends, in ms since 1970; 0 for what is none."""
    return _valid(chain)[1]


def _valid(chain: str) -> tuple[int, int]:
    from cryptography import x509

    try:
        first = x509.load_pem_x509_certificate(chain.encode())
    except ValueError:
        return 0, 0
    begin, end = first.not_valid_before_utc, first.not_valid_after_utc
    return int(1000 * begin.timestamp()), int(1000 * end.timestamp())


def make_certificate(
    name: str, entropy: Entropy, wall_ms: int, *, extension: tuple[str, bytes] | None = None
) -> Certificate:
    """A certificate for DNS name `name`, valid from a day before `wall_ms`, with a new P-256 key. Raises InvalidInput.

    `extension`: object identifier and DER content of one more extension, which is critical.
    """
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

    name = normal_host(name)
    key = new_key(entropy)
    # The common name holds 64 characters at most; clients read the alternative name.
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name[:64])])
    start = dt.datetime.fromtimestamp(wall_ms / 1000, dt.UTC) - dt.timedelta(days=1)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(int.from_bytes(entropy.bytes(16), "big") >> 1 | 1)
        .not_valid_before(start)
        .not_valid_after(start + dt.timedelta(days=LIFETIME_DAYS))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
    )
    if extension is not None:
        oid, content = extension
        unknown = x509.UnrecognizedExtension(x509.ObjectIdentifier(oid), content)
        builder = builder.add_extension(unknown, critical=True)
    certificate = builder.sign(key, hashes.SHA256())
    return Certificate(
        chain=certificate.public_bytes(serialization.Encoding.PEM),
        key=key_pem(key),
    )
