"""Certificates for `ssl`, which takes them from files only."""

from __future__ import annotations

import os
import ssl

from fractal.api.errors import InvalidInput
from fractal.api.transport import Certificate


def load_certificate(tls: ssl.SSLContext, certificate: Certificate, what: str) -> None:
    """Load chain and key by way of memory only: a key has no place on a disk. Raises InvalidInput."""
    descriptor = os.memfd_create("certificate", os.MFD_CLOEXEC)
    try:
        with os.fdopen(descriptor, "wb", closefd=False) as file:
            file.write(certificate.key.rstrip() + b"\n" + certificate.chain)
        # An encrypted key must fail instead of asking at a terminal.
        tls.load_cert_chain(f"/proc/self/fd/{descriptor}", password="")
    except (ssl.SSLError, ValueError, OSError) as error:
        raise InvalidInput(f"{what} cannot be used: {error}") from error
    finally:
        os.close(descriptor)
