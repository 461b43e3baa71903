"""Folders that belong to this device's user alone."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from fractal.api.errors import FractalError


def private_folder(path: Path) -> Path:
    """Make the folder (and missing parents), 0700; an existing one must be ours and is closed to others.

    Raises FractalError naming the folder if it cannot be made, is not a folder, or belongs to somebody else.
    """
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise FractalError(
            f"{path}: cannot be used as a folder: {error.strerror}; choose another or fix it"
        ) from error
    try:
        found = os.fstat(handle)
        if found.st_uid != os.geteuid():
            raise FractalError(
                f"{path}: belongs to user {found.st_uid}, not to {os.geteuid()} who runs this; fix its owner"
            )
        if stat.S_IMODE(found.st_mode) & 0o077:
            os.fchmod(handle, 0o700)
    finally:
        os.close(handle)
    return path
