"""What an S3 server's refusals and a line's failures mean to callers. Pure, but for the library's exception classes."""

from __future__ import annotations

from typing import Any

from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectTimeoutError,
    EndpointConnectionError,
    ProxyConnectionError,
    SSLError,
)

from fractal.api.errors import BackendError, Conflict, Misconfigured, NotFound, NotSupported

LONGEST_WAIT = 300.0
"""Seconds; a server that asks for more is asked again all the same."""


class Unanswered(BackendError):
    """The request may have been carried out, as no answer came; or it never left, and `sent` is False."""

    def __init__(self, message: str, *, sent: bool) -> None:
        super().__init__(message, retryable=True)
        self.sent = sent


class Refused(Conflict):
    """A conditional write was refused, as the object exists; or `busy`: another write of it is under way."""

    def __init__(self, message: str, *, busy: bool = False) -> None:
        super().__init__(message, retryable=busy)
        self.busy = busy


def explain(where: str, what: str, error: Exception) -> BackendError:
    """The API's error for one of the library's."""
    if isinstance(error, ClientError):
        return _refusal(where, what, error)
    if isinstance(error, SSLError) and "CERTIFICATE_VERIFY_FAILED" in str(error):
        return Misconfigured(
            "ca_file", f"{where}: the server's certificate is not from whom it must be: {_short(error)}"
        )
    if isinstance(
        error, EndpointConnectionError | ConnectTimeoutError | ProxyConnectionError | SSLError
    ) and not isinstance(error, ConnectionError):
        return Unanswered(f"{where}: cannot be reached: {_short(error)}", sent=False)
    if isinstance(error, BotoCoreError | OSError | TimeoutError):
        return Unanswered(f"{where}: {what}: no whole answer came: {_short(error)}", sent=True)
    return BackendError(f"{where}: {what}: {type(error).__name__}: {_short(error)}")


def status(error: ClientError) -> int:
    """Of HTTP; 0 if the library does not say."""
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def _refusal(where: str, what: str, error: ClientError) -> BackendError:
    http = status(error)
    code = str(error.response.get("Error", {}).get("Code", ""))
    words = f"{where}: {what}: the server says {code or http}"
    if code == "NoSuchBucket":
        return Misconfigured("bucket", f"{where}: there is no such bucket: create it first")
    if http == 412:
        return Refused(f"{where}: {what}: exists already")
    if http == 409 and code in {
        "ConditionalRequestConflict",
        "OperationAborted",
        "ConcurrentModification",
        "409",
        "",
    }:
        return Refused(f"{where}: {what}: another write is under way", busy=True)
    if http == 404:
        return NotFound(f"{where}: {what}: there is none")
    if http in {301, 307} or code == "AuthorizationHeaderMalformed":
        region = (
            error.response.get("ResponseMetadata", {})
            .get("HTTPHeaders", {})
            .get("x-amz-bucket-region", "another")
        )
        return Misconfigured(
            "region", f"{words}: the bucket is in region {str(region)[:40]}, see region and endpoint"
        )
    if code in {"QuotaExceeded", "XMinioStorageFull", "InsufficientStorage"} or http == 507:
        return BackendError(f"{words}: it is full: make room or raise the quota")
    if code == "RequestTimeTooSkewed":
        return BackendError(f"{words}: set this device's clock", retryable=True)
    if http in {401, 403}:
        return BackendError(
            f"{words}: look at the credentials and at what they may do (list, get, put, delete)"
        )
    if http in {405, 501}:
        return NotSupported(f"{words}: it cannot do this")
    if http in {408, 429} or code in {"SlowDown", "RequestTimeout", "TooManyRequests", "ServiceUnavailable"}:
        return BackendError(f"{words}: it asks for patience", retryable=True, wait=_wait(error))
    if http >= 500:
        return Unanswered(f"{words}: it failed by itself", sent=True)
    return BackendError(words)


def _wait(error: ClientError) -> float:
    headers: Any = error.response.get("ResponseMetadata", {}).get("HTTPHeaders", {})
    text = str(headers.get("retry-after", ""))
    return min(float(text), LONGEST_WAIT) if text.isascii() and text.isdigit() else 0.0


def _short(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
