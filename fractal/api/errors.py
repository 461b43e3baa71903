"""Errors that cross a boundary, each with the exit code that the command line gives it.

A backend raises only `BackendError` and its subclasses (and `asyncio.CancelledError`); anything else is a bug in it.
A message says what happened, where (backend and object, or file and line), and what to do next.
"""

from __future__ import annotations

from enum import IntEnum


class ExitCode(IntEnum):
    """What `homeserver` exits with. Documented in docs/reference/exit-codes.md; numbers never change meaning."""

    OK = 0
    FAILED = 1
    USAGE = 2
    CONFIG = 3
    MISSING = 4
    UNREACHABLE = 5
    CONFLICT = 6
    PARTIAL = 7
    NOT_FOUND = 8
    DENIED = 9
    INTERRUPTED = 130


class FractalError(Exception):
    """Base of every expected error: shown as one message, without a traceback."""

    exit_code: ExitCode = ExitCode.FAILED
    code: str = "failed"
    """Stable word for programs that read `--json`."""


class InvalidInput(FractalError, ValueError):
    """Bytes or values from outside are not what they must be. Nothing was changed."""

    exit_code = ExitCode.USAGE
    code = "invalid"


class Denied(FractalError):
    """The group's rules or the device's policy do not allow it."""

    exit_code = ExitCode.DENIED
    code = "denied"


class BackendError(FractalError):
    """A backend could not do what it was asked.

    `retryable` says whether the same call may succeed later without anybody changing anything, `wait` how many seconds
    later at the earliest, if the backend said so (a rate limit).
    """

    code = "backend"

    def __init__(self, message: str, *, retryable: bool = False, wait: float = 0.0) -> None:
        super().__init__(message)
        self.retryable = retryable
        self.wait = wait


class NotInstalled(BackendError):
    """The tool behind a backend is absent; the message names the package."""

    exit_code = ExitCode.MISSING
    code = "not_installed"


class Misconfigured(BackendError):
    """A configured value cannot work. `key` is the configuration key below the backend's own table."""

    exit_code = ExitCode.CONFIG
    code = "misconfigured"

    def __init__(self, key: str, message: str) -> None:
        super().__init__(f"{key}: {message}")
        self.key = key


class NotSupported(BackendError):
    """The backend, or the file system below it, cannot do this at all."""

    code = "not_supported"


class NotFound(BackendError, LookupError):
    """The named object does not exist."""

    exit_code = ExitCode.NOT_FOUND
    code = "not_found"


class Conflict(BackendError):
    """A create-only write found that the name exists. The object that exists is whole."""

    exit_code = ExitCode.CONFLICT
    code = "conflict"


class Ambiguous(BackendError):
    """A write may or may not have happened (time-out after sending). Repeat it under the same name and read back."""

    code = "ambiguous"

    def __init__(self, message: str) -> None:
        super().__init__(message, retryable=True)


class Corrupt(FractalError):
    """Stored bytes failed authentication or do not fit what is recorded. The message names the object."""

    code = "corrupt"


class LeaseLost(FractalError):
    """This device is no longer the owner of the app at that epoch."""

    exit_code = ExitCode.CONFLICT
    code = "lease_lost"


class Unreachable(FractalError):
    """The agent, or another device, did not answer."""

    exit_code = ExitCode.UNREACHABLE
    code = "unreachable"
