"""Read by mypy, never run: each line marked with BAD must be flagged, and no other (tests/unit/api/test_records_typed.py)."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from fractal.api.authority import AuthorityBackend
from fractal.api.backend import Probe
from fractal.api.catalog import Catalog, CatalogBackend
from fractal.api.context import Context
from fractal.api.coordination import CoordinationBackend, Coordinator
from fractal.api.runtime import Runtime, RuntimeBackend
from fractal.api.snapshot import SnapshotBackend, Snapshotter
from fractal.api.store import ObjectInfo, Store, StoreBackend, StoreOffer
from fractal.api.transport import Transport, TransportBackend


@dataclass(frozen=True)
class Config:
    path: str = ""


@dataclass(frozen=True)
class Other:
    url: str = ""


class Tape:
    """Satisfies Store by its shape alone."""

    staleness: float = 0.0
    fencing: bool = True
    weakness: str = ""

    async def put_new(self, key: str, data: bytes | AsyncIterator[bytes]) -> None: ...

    async def get(self, key: str, *, offset: int = 0, length: int | None = None) -> AsyncIterator[bytes]:
        yield b""

    async def head(self, key: str) -> ObjectInfo:
        return ObjectInfo(key, 0)

    async def list(self, prefix: str) -> AsyncIterator[ObjectInfo]:
        yield ObjectInfo(prefix, 0)

    async def delete(self, key: str) -> None: ...


class Half:
    """Forgot everything but one method."""

    async def head(self, key: str) -> ObjectInfo:
        return ObjectInfo(key, 0)


@asynccontextmanager
async def open_tape(context: Context, config: Config) -> AsyncIterator[Tape]:
    yield Tape()


@asynccontextmanager
async def open_half(context: Context, config: Config) -> AsyncIterator[Half]:
    yield Half()


@asynccontextmanager
async def open_anything(context: Context, config: Config) -> AsyncIterator[Any]:
    yield None


async def open_bare(context: Context, config: Config) -> Tape:
    return Tape()


async def probe(config: Config) -> Probe:
    return Probe(ready=True, detail="")


async def probe_other(config: Other) -> Probe:
    return Probe(ready=True, detail=config.url)


good: StoreBackend[Config] = StoreBackend(name="t", summary="", config=Config, open=open_tape, probe=probe)
inferred = StoreBackend(name="t", summary="", config=Config, open=open_tape, probe=probe)
generic = RuntimeBackend(name="t", summary="", config=Config, open=open_anything, isolates=False)


def offered() -> Iterable[StoreOffer]:
    yield inferred
    yield StoreBackend(name="t", summary="", config=Config, open=open_tape)
    yield StoreBackend(name="t", summary="", config=Config, open=open_half)  # BAD
    yield StoreBackend(name="t", summary="", config=Other, open=open_tape)  # BAD
    yield StoreBackend(name="t", summary="", config=Config, open=open_tape, probe=probe_other)  # BAD
    yield StoreBackend(name="t", summary="", config=Config(), open=open_tape)  # BAD
    yield StoreBackend(name="t", summary="", config=Config, open=open_bare)  # BAD
    yield StoreBackend(name="t", config=Config, open=open_tape)  # BAD
    yield generic  # BAD


wrong_runtime = RuntimeBackend(name="t", summary="", config=Config, open=open_tape)  # BAD
wrong_snapshot = SnapshotBackend(name="t", summary="", config=Config, open=open_tape)  # BAD
wrong_transport = TransportBackend(name="t", summary="", config=Config, open=open_tape)  # BAD
wrong_authority = AuthorityBackend(name="t", summary="", config=Config, open=open_tape)  # BAD
wrong_coordination = CoordinationBackend(name="t", summary="", config=Config, open=open_tape)  # BAD
wrong_catalog = CatalogBackend(name="t", summary="", config=Config, open=open_tape)  # BAD


def opens_what_it_says(
    runtime: RuntimeBackend[Config],
    snapshot: SnapshotBackend[Config],
    store: StoreBackend[Config],
    transport: TransportBackend[Config],
    coordination: CoordinationBackend[Config],
    catalog: CatalogBackend[Config],
    context: Context,
) -> None:
    async def use() -> None:
        async with (
            runtime.open(context, Config()) as a,
            snapshot.open(context, Config()) as b,
            store.open(context, Config()) as c,
            transport.open(context, Config()) as d,
            coordination.open(context, Config()) as e,
            catalog.open(context, Config()) as f,
        ):
            opened: tuple[Runtime, Snapshotter, Store, Transport, Coordinator, Catalog] = (a, b, c, d, e, f)
            assert opened
            swapped: Store = a  # BAD
            assert swapped
        store.open(context, Other())  # BAD

    del use
