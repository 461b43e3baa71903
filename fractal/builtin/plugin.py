"""The backends that come with the core, registered as any plugin registers its own.

Only the light configuration modules are imported here; each `open` imports its implementation when it is called.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractAsyncContextManager

from fractal.api.authority import Authority, AuthorityBackend, AuthorityOffer
from fractal.api.backend import Probe
from fractal.api.catalog import Catalog, CatalogBackend, CatalogOffer
from fractal.api.context import Context
from fractal.api.coordination import CoordinationBackend, CoordinationOffer, Coordinator
from fractal.api.runtime import Runtime, RuntimeBackend, RuntimeOffer
from fractal.api.snapshot import SnapshotBackend, SnapshotOffer, Snapshotter
from fractal.api.store import Store, StoreBackend, StoreOffer
from fractal.api.transport import Transport, TransportBackend, TransportOffer
from fractal.builtin.copy.config import CopyConfig
from fractal.builtin.direct.config import DirectConfig
from fractal.builtin.directory_config import DirectoryConfig
from fractal.builtin.folder_config import FolderConfig
from fractal.builtin.memory_log_config import MemoryLogConfig
from fractal.builtin.memory_store import MemoryStoreConfig
from fractal.builtin.process.config import ProcessConfig
from fractal.builtin.self_signed_config import SelfSignedConfig
from fractal.builtin.sqlite_config import SqliteConfig
from fractal.hookspecs import hookimpl


@hookimpl
def fractal_runtimes() -> Iterable[RuntimeOffer]:
    """`process`."""
    yield RuntimeBackend(
        name="process",
        summary="Apps as plain processes of this user. Does not isolate them from each other or from the device.",
        config=ProcessConfig,
        open=_open_process,
        isolates=False,
    )


@hookimpl
def fractal_snapshotters() -> Iterable[SnapshotOffer]:
    """`copy`."""
    yield SnapshotBackend(
        name="copy",
        summary="Snapshots as copies of changed files, on any file system; the app is paused meanwhile.",
        config=CopyConfig,
        open=_open_copy,
        capabilities=frozenset({"SupportsClone"}),
        instant=False,
    )


@hookimpl
def fractal_stores() -> Iterable[StoreOffer]:
    """`directory`, `memory`."""
    yield StoreBackend(
        name="directory",
        summary="A folder on a local disk or a network file system.",
        config=DirectoryConfig,
        open=_open_directory,
        probe=_probe_directory,
        capabilities=frozenset({"SupportsLinks"}),
    )
    yield StoreBackend(
        name="memory",
        summary="Objects in this process, gone when it ends; for tests.",
        config=MemoryStoreConfig,
        open=_open_memory_store,
    )


@hookimpl
def fractal_transports() -> Iterable[TransportOffer]:
    """`direct`."""
    yield TransportBackend(
        name="direct",
        summary="Gateways that reach devices by address and lead TLS by name without decrypting it.",
        config=DirectConfig,
        open=_open_direct,
        capabilities=frozenset({"SupportsChallenge", "SupportsProbe"}),
    )


@hookimpl
def fractal_authorities() -> Iterable[AuthorityOffer]:
    """`self-signed`."""
    yield AuthorityBackend(
        name="self-signed",
        summary="Certificates that nobody vouches for: clients trust them by their fingerprint.",
        config=SelfSignedConfig,
        open=_open_self_signed,
    )


@hookimpl
def fractal_coordinators() -> Iterable[CoordinationOffer]:
    """`sqlite`, `memory`."""
    yield CoordinationBackend(
        name="sqlite",
        summary="Logs in one SQLite file that all agents of one machine share.",
        config=SqliteConfig,
        open=_open_sqlite,
    )
    yield CoordinationBackend(
        name="memory",
        summary="Logs in this process, gone when it ends; for tests.",
        config=MemoryLogConfig,
        open=_open_memory_log,
    )


@hookimpl
def fractal_catalogs() -> Iterable[CatalogOffer]:
    """`folder`."""
    yield CatalogBackend(
        name="folder",
        summary="Manifests in a folder; without a path, those that come with Fractal HomeServer.",
        config=FolderConfig,
        open=_open_folder,
        probe=_probe_folder,
        capabilities=frozenset({"SupportsFiles"}),
    )


def _open_process(context: Context, config: ProcessConfig) -> AbstractAsyncContextManager[Runtime]:
    from fractal.builtin.process.runtime import open_process

    return open_process(context, config)


def _open_copy(context: Context, config: CopyConfig) -> AbstractAsyncContextManager[Snapshotter]:
    from fractal.builtin.copy.snapshotter import open_copy

    return open_copy(context, config)


def _open_directory(context: Context, config: DirectoryConfig) -> AbstractAsyncContextManager[Store]:
    from fractal.builtin.directory import open_directory

    return open_directory(context, config)


async def _probe_directory(config: DirectoryConfig) -> Probe:
    import os

    parent = config.path.parent
    if config.path.is_dir():
        writable = os.access(config.path, os.W_OK | os.X_OK)
        return Probe(writable, f"{config.path} {'exists' if writable else 'cannot be written by this user'}")
    return Probe(
        parent.is_dir(), f"{config.path} will be made" if parent.is_dir() else f"{parent} does not exist"
    )


def _open_memory_store(context: Context, config: MemoryStoreConfig) -> AbstractAsyncContextManager[Store]:
    from fractal.builtin.memory_store import open_memory_store

    return open_memory_store(context, config)


def _open_direct(context: Context, config: DirectConfig) -> AbstractAsyncContextManager[Transport]:
    from fractal.builtin.direct import open_direct

    return open_direct(context, config)


def _open_self_signed(context: Context, config: SelfSignedConfig) -> AbstractAsyncContextManager[Authority]:
    from fractal.builtin.self_signed import open_self_signed

    return open_self_signed(context, config)


def _open_sqlite(context: Context, config: SqliteConfig) -> AbstractAsyncContextManager[Coordinator]:
    from fractal.builtin.sqlite import open_sqlite

    return open_sqlite(context, config)


def _open_memory_log(context: Context, config: MemoryLogConfig) -> AbstractAsyncContextManager[Coordinator]:
    from fractal.builtin.memory_log import open_memory_log

    return open_memory_log(context, config)


def _open_folder(context: Context, config: FolderConfig) -> AbstractAsyncContextManager[Catalog]:
    from fractal.builtin.folder import open_folder

    return open_folder(context, config)


async def _probe_folder(config: FolderConfig) -> Probe:
    if config.path is None:
        return Probe(True, "the apps that come with this version")
    return Probe(
        config.path.is_dir(), f"{config.path} {'exists' if config.path.is_dir() else 'is no folder'}"
    )
