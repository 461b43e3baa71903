"""Settings of the `acme` authority."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

LETS_ENCRYPT = "https://acme-v02.api.letsencrypt.org/directory"


@dataclass(frozen=True, slots=True, kw_only=True)
class AcmeConfig:
    """Which authority, and who asks."""

    directory: str = field(
        default=LETS_ENCRYPT,
        metadata={"help": "Address of the authority's ACME directory."},
    )
    accept_terms: bool = field(
        default=False,
        metadata={"help": "Whether you accept the authority's terms of service; it asks for that."},
    )
    email: str = field(
        default="",
        metadata={"help": "Where the authority may write to about your certificates; may be left out."},
    )
    ca_file: Path | None = field(
        default=None,
        metadata={
            "help": "PEM file with the certificate that a private authority's own server is trusted by."
        },
    )
    timeout: float = field(
        default=15.0,
        metadata={"help": "Seconds that one request to the authority may take."},
    )
