"""Configuration of the `s3` store."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from fractal.api.errors import Misconfigured

_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,62}")
_PREFIX = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]*/)*")
LONGEST_PREFIX = 200
"""Characters. A key of ours takes up to 600 of the 1024 bytes that S3 allows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class S3Config:
    """A bucket of an S3-compatible server, or a part of one."""

    bucket: str = field(metadata={"help": "Name of the bucket, which must exist."})
    endpoint: str = field(
        default="",
        metadata={"help": "URL of the server, https://host[:port]; without it Amazon's in the region."},
    )
    region: str = field(default="us-east-1", metadata={"help": "Region that requests are signed for."})
    prefix: str = field(
        default="",
        metadata={"help": "Put in front of every name, such as home/; several stores may share a bucket."},
    )
    credentials: Path | None = field(
        default=None,
        metadata={
            "help": "File of mode 0600 in the form of ~/.aws/credentials; without it AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY of the agent's environment."
        },
    )
    virtual_host: bool = field(
        default=False,
        metadata={
            "help": "Whether the bucket is part of the host name (bucket.host) rather than of the path."
        },
    )
    ca_file: Path | None = field(
        default=None,
        metadata={
            "help": "Certificates in PEM form that the server's must come from; by default the public ones."
        },
    )
    staleness: float = field(
        default=0.0,
        metadata={
            "help": "Seconds by which listings and reads may lag behind writes; 0 for servers that are strongly consistent, as Amazon's, Ceph and most others are."
        },
    )
    part_mib: int = field(
        default=8,
        metadata={"help": "MiB of one part of a large object; each waits in memory.", "minimum": 5},
    )
    timeout: float = field(
        default=20.0, metadata={"help": "Seconds without any answer after which a request counts as lost."}
    )
    connect_timeout: float = field(default=10.0, metadata={"help": "Seconds that connecting may take."})

    def __post_init__(self) -> None:
        """Raises Misconfigured."""
        if not _BUCKET.fullmatch(self.bucket):
            raise Misconfigured("bucket", f"{self.bucket!r} is no name of a bucket")
        if not (_PREFIX.fullmatch(self.prefix) and len(self.prefix) <= LONGEST_PREFIX):
            raise Misconfigured(
                "prefix", f"{self.prefix!r}: names of letters, digits, '.', '_', '-', each followed by '/'"
            )
        if not self.region or not self.region.isprintable() or " " in self.region:
            raise Misconfigured("region", f"{self.region!r} cannot be one")
        if self.endpoint:
            _check_url(self.endpoint)
        if not 5 <= self.part_mib <= 1024:
            raise Misconfigured("part_mib", f"{self.part_mib} is not within 5 and 1024, which S3 takes")
        for key, seconds in (("timeout", self.timeout), ("connect_timeout", self.connect_timeout)):
            if not (math.isfinite(seconds) and seconds > 0):
                raise Misconfigured(key, f"{seconds} is no number of seconds")
        if not (math.isfinite(self.staleness) and self.staleness >= 0):
            raise Misconfigured("staleness", f"{self.staleness} is no number of seconds")

    @property
    def where(self) -> str:
        """The store in messages."""
        return f"store s3 {self.endpoint or f'Amazon {self.region}'} {self.bucket}/{self.prefix}"


def _check_url(url: str) -> None:
    try:
        parts = urlsplit(url)
        parts.port  # noqa: B018 - raises for what is no port
    except ValueError as error:
        raise Misconfigured("endpoint", f"{url!r} is no URL: {error}") from None
    if parts.username or parts.password:
        raise Misconfigured(
            "endpoint", "a URL is no place for credentials: write them to a file, see credentials"
        )
    if (
        parts.scheme not in {"http", "https"}
        or not parts.hostname
        or parts.path not in {"", "/"}
        or parts.query
    ):
        raise Misconfigured("endpoint", f"{url!r} is not of the form https://host[:port]")
