"""Folders of a run on this device: its volumes, and its secrets as files."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from fractal.api.app import AppRun
from fractal.api.errors import BackendError
from fractal_containers.config import EngineConfig


def make_volumes(run: AppRun) -> None:
    """Make what is missing. An app writes what it likes below its volumes, but never leads the runtime out of them."""
    for volume in run.spec.volumes:
        path = run.folder(volume)
        try:
            if path.is_symlink() or (path.exists() and not path.is_dir()):
                raise BackendError(f"{path}: volume {volume!r} is not a folder")
            if not path.exists():
                path.mkdir()
                path.chmod(0o755)  # services run as users of their own
        except OSError as error:
            raise BackendError(f"{path}: {error.strerror}", retryable=True) from error


def refuse_detours(run: AppRun, config: EngineConfig) -> None:
    """Raises BackendError for a folder of the device whose name leads elsewhere than where the device lets apps go.

    An app that may write in a shared folder could plant a link there, for another app's mount to follow.
    """
    if "all" in config.allow:
        return
    given = [os.path.realpath(a.partition(":")[2]) for a in config.allow if a.startswith("host-path:")]
    for mount in (m for service in run.spec.services for m in service.mounts if m.host):
        real = os.path.realpath(mount.host)
        if not any(real == folder or real.startswith(folder.rstrip("/") + "/") for folder in given):
            raise BackendError(
                f"{run.key}: {mount.host} leads to {real}, which this device gives to no app; "
                f'allow = ["host-path:{real}"] of its runtime if it may have that'
            )


def write_secrets(folder: Path, secrets: Mapping[str, str]) -> Path | None:
    """Files for /run/secrets, readable inside by any user; the folder above keeps everybody else out."""
    if not secrets:
        return None
    for above in (folder.parent.parent, folder.parent):
        above.mkdir(mode=0o700, exist_ok=True)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(mode=0o755)
    folder.chmod(0o755)
    for name, text in secrets.items():
        descriptor = os.open(
            folder / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600
        )
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
        (folder / name).chmod(0o444)
    return folder


def write_files(folder: Path, texts: Mapping[str, str]) -> dict[str, Path]:
    """Files each to be bound to its own path inside, which may be scripts: path inside -> path here."""
    names = {target: str(number) for number, target in enumerate(texts)}
    write_secrets(folder, {names[target]: text for target, text in texts.items()})
    for name in names.values():
        (folder / name).chmod(0o555)
    return {target: folder / name for target, name in names.items()}
