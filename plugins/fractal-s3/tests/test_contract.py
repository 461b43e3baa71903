"""The contract of stores over real S3 servers."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import pytest
from botocore.exceptions import ClientError
from fractal_s3.store import S3Store
from fractal_s3.testing import CephServer, RcloneServer, S3Server

from fractal.api.store_files import object_names
from fractal.testing.store import StoreContract

Opener = Callable[..., AbstractAsyncContextManager[S3Store]]
Bucket = Callable[[S3Server], str]
Peek = Callable[[str], Awaitable[bytes | None]]


class _OnServer(StoreContract):
    """Everything that a store must do, on the server of the fixture `kept_by`."""

    settings: dict[str, Any] = {}  # noqa: RUF012 - of the class

    @pytest.fixture
    def place(self, kept_by: S3Server, bucket: Bucket) -> str:
        """An empty bucket."""
        return bucket(kept_by)

    @pytest.fixture
    async def backend(self, kept_by: S3Server, place: str, opener: Opener) -> AsyncIterator[S3Store]:
        """An empty store."""
        async with opener(kept_by, place, **self.settings) as opened:
            yield opened

    @pytest.fixture
    async def second(
        self, backend: S3Store, kept_by: S3Server, place: str, opener: Opener
    ) -> AsyncIterator[S3Store]:
        """Another device's."""
        async with opener(kept_by, place, **self.settings) as opened:
            yield opened

    @pytest.fixture
    def peek(self, kept_by: S3Server, place: str) -> Peek:
        """Reads by the library alone."""
        client = kept_by.client()

        async def kept(key: str) -> bytes | None:
            folders, file = object_names(key.split("/"))
            name = "/".join([f"{self.settings.get('prefix', '')}objects", *folders, file])
            try:
                return bytes(client.get_object(Bucket=place, Key=name)["Body"].read())
            except ClientError:
                return None

        return kept


class TestCeph(_OnServer):
    """It fences, and objects of many parts go in one request, as it would let them overwrite."""

    @pytest.fixture
    def kept_by(self, ceph: CephServer) -> CephServer:
        """The cluster that tests share."""
        return ceph

    async def test_it_fences(self, backend: S3Store) -> None:
        assert backend.fencing
        assert not backend._parts


class TestRclone(_OnServer):
    """It keeps objects all the same, and promises less. Here below a prefix."""

    settings = {"prefix": "home/attic/"}  # noqa: RUF012

    @pytest.fixture
    def kept_by(self, rclone: RcloneServer) -> RcloneServer:
        """The server that tests share."""
        return rclone

    async def test_it_says_so(self, backend: S3Store) -> None:
        assert not backend.fencing
        assert "exists already" in backend.weakness
