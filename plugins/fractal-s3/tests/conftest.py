"""Real S3 servers on loopback."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from fractal_s3.store import S3Store, open_s3
from fractal_s3.testing import CephServer, RcloneServer, S3Server

from fractal.testing.context import real_context

Opener = Callable[..., AbstractAsyncContextManager[S3Store]]
_BUCKETS = count()


def _wanted(missing: str) -> None:
    if missing:
        if os.environ.get("CI") == "true":
            pytest.fail(f"{missing}, which CI does not allow")
        pytest.skip(missing)


@pytest.fixture(scope="session")
def ceph(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CephServer]:
    """Ceph's gateway, which refuses the second write of a name, but not the second completion of parts."""
    _wanted(CephServer.missing())
    with CephServer(tmp_path_factory.mktemp("ceph")) as started:
        yield started


@pytest.fixture(scope="session")
def rclone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RcloneServer]:
    """rclone's server, which ignores the condition."""
    _wanted(RcloneServer.missing())
    with RcloneServer(tmp_path_factory.mktemp("rclone")) as started:
        yield started


@pytest.fixture
def opener(tmp_path: Path) -> Opener:
    """Opens stores, each as a device of its own."""
    numbers = count()

    @asynccontextmanager
    async def opened(server: S3Server, bucket: str, **more: Any) -> AsyncIterator[S3Store]:
        folder = tmp_path / f"device-{next(numbers)}"
        async with (
            real_context(folder, device=folder.name) as context,
            open_s3(context, server.settings(folder, bucket=bucket, **more)) as store,
        ):
            yield store

    return opened


@pytest.fixture
def bucket() -> Callable[[S3Server], str]:
    """Makes empty buckets."""

    def made(server: S3Server) -> str:
        name = f"bucket-{next(_BUCKETS)}"
        server.make_bucket(name)
        return name

    return made
