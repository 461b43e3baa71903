"""Keeping the memory of a process that holds keys to itself."""

from __future__ import annotations

import ctypes
import os
import resource

_PR_SET_DUMPABLE = 4


def keep_memory_private() -> None:
    """No core dump of this process, and no other one of the same user may attach to it or read its memory.

    Apps of the `process` runtime run as that user: they could take the keys out of the agent's memory. (They can read its
    files all the same; only a runtime with containers shuts them out: SECURITY.md.) Raises OSError.
    """
    _, most = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (0, most))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_DUMPABLE, ctypes.c_ulong(0), 0, 0, 0) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"prctl(PR_SET_DUMPABLE): {os.strerror(code)}")
