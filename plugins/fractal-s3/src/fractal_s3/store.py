"""The `s3` store: the layout of `fractal.api.store_files` in a bucket, where a conditional write is the atomic create."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from functools import partial
from typing import Any

from fractal.api.context import Context
from fractal.api.errors import BackendError, Conflict, InvalidInput, Misconfigured, NotFound, NotSupported
from fractal.api.names import check_key, check_prefix
from fractal.api.store import ObjectInfo, Store
from fractal.api.store_files import (
    KNOWN,
    MARK,
    MARK_TEXT,
    OBJECTS,
    TEMPORARY,
    first_folders,
    object_key,
    object_names,
)
from fractal_s3.client import ATTEMPTS, Client, connect
from fractal_s3.config import S3Config
from fractal_s3.credentials import load_credentials
from fractal_s3.objects import Upload
from fractal_s3.trial import Trial

CHUNK = 1 << 20
ABANDONED = timedelta(days=1)
"""By the server's clock, after which an upload of parts that was never completed is dropped."""
MAX_DROPPED = 1000
"""Abandoned uploads dropped at once."""


class S3Store(Store):
    """A `Store` in a bucket. Open it by `open_s3`."""

    def __init__(self, context: Context, config: S3Config, client: Client) -> None:
        self._context = context
        self._config = config
        self._client = client
        self._weakness = "it was never tried"
        self._parts = False

    @property
    def staleness(self) -> float:
        """What is configured: a server does not say it of itself."""
        return self._config.staleness

    @property
    def fencing(self) -> bool:
        """Whether the server refused the second of two writes of one name, in turn and at the same time."""
        return not self._weakness

    @property
    def weakness(self) -> str:
        """Why it cannot fence, or ""."""
        return self._weakness

    async def put_new(self, key: str, data: bytes | AsyncIterator[bytes]) -> None:
        """Create the object; the server has it whole when this returns."""
        check_key(key)
        upload = Upload(
            self._context, self._client, key, self._name(key), fences=self.fencing, parts=self._parts
        )
        await upload.run(data)

    async def get(self, key: str, *, offset: int = 0, length: int | None = None) -> AsyncIterator[bytes]:
        """The object's bytes in chunks of at most 1 MiB. A transfer that breaks goes on from where it was."""
        check_key(key)
        if offset < 0 or (length is not None and length < 0):
            raise InvalidInput(
                f"{self._config.where}: {key}: offset {offset}, length {length}: neither may be negative"
            )
        size = (await self.head(key)).size
        end = size if length is None else min(size, offset + length)
        failures = 0
        while offset < end:
            before = offset
            try:
                async for chunk in self._read(key, offset, end):
                    offset += len(chunk)
                    yield chunk
            except BackendError as error:
                failures = 1 if offset > before else failures + 1
                if not error.retryable or failures >= ATTEMPTS:
                    raise
                await self._client.pause(failures, error)

    async def head(self, key: str) -> ObjectInfo:
        """The object's size."""
        check_key(key)
        answer = await self._client.ask("head_object", key, Key=self._name(key))
        return ObjectInfo(key, int(answer["ContentLength"]))

    async def list(self, prefix: str) -> AsyncIterator[ObjectInfo]:
        """Every object below `prefix`, sorted, page by page. What is created meanwhile may be missing."""
        check_prefix(prefix)
        folders = first_folders(prefix)
        if folders is None:
            return
        below = f"{self._config.prefix}{OBJECTS}/"
        # The last part of a prefix is unfinished; one so long that it is kept in two pieces is sought by its folder.
        last = prefix.rpartition("/")[2][:200]
        start = below + "".join(f"{folder}/" for folder in folders) + last
        found = []
        async for entry in self._pages(start):
            names = str(entry["Key"]).removeprefix(below).split("/")
            key = object_key(names[:-1], names[-1])
            if key is not None and key.startswith(prefix):
                found.append(ObjectInfo(key, int(entry["Size"])))
        for info in sorted(found):
            yield info

    async def delete(self, key: str) -> None:
        """Delete the object."""
        check_key(key)
        try:
            await self._client.ask("delete_object", key, Key=self._name(key))
        except NotFound:
            return
        except BackendError as error:
            if "AccessDenied" in str(error) or "MethodNotAllowed" in str(error):
                raise NotSupported(f"{self._config.where}: the server lets nobody delete {key}") from error
            raise

    async def prepare(self) -> None:
        """Make sure that there is a store of our version, learn whether it can fence, drop what dead uploads left."""
        await self._check_mark()
        tag = self._context.entropy.bytes(16).hex()
        trial = Trial(self._client, f"{self._config.prefix}{TEMPORARY}/", tag)
        self._weakness, self._parts = await trial.run()
        await self._drop_abandoned()
        if self._weakness:
            self._context.logger.warning("%s: it cannot fence: %s", self._config.where, self._weakness)

    def _name(self, key: str) -> str:
        folders, file = object_names(check_key(key))
        return "/".join([self._config.prefix + OBJECTS, *folders, file])

    async def _read(self, key: str, offset: int, end: int) -> AsyncIterator[bytes]:
        """One request's bytes. Raises if the server answers with others than those asked for, or with too few."""
        wanted = f"bytes={offset}-{end - 1}"
        answer = await self._client.ask("get_object", key, Key=self._name(key), Range=wanted)
        body = answer["Body"]
        try:
            if offset and not str(answer.get("ContentRange", "")).startswith(f"bytes {offset}-"):
                raise BackendError(f"{self._config.where}: {key}: the server does not give parts of objects")
            left = end - offset
            while left:
                chunk = await self._client.run(key, partial(body.read, min(CHUNK, left)))
                if not chunk:
                    raise BackendError(f"{self._config.where}: {key}: was cut short", retryable=True)
                left -= len(chunk)
                yield chunk
        finally:
            await self._client.finish(self._client.run(key, body.close))

    async def _pages(self, start: str) -> AsyncIterator[Mapping[str, Any]]:
        token: dict[str, str] = {}
        while True:
            page = await self._client.ask("list_objects_v2", "listing", Prefix=start, **token)
            for entry in page.get("Contents", []):
                yield entry
            following = page.get("NextContinuationToken")
            if not page.get("IsTruncated"):
                return
            if not following or following == token.get("ContinuationToken"):
                raise BackendError(f"{self._config.where}: the server's listing does not end: {start}")
            token = {"ContinuationToken": following}

    async def _check_mark(self) -> None:
        name = self._config.prefix + MARK
        for _ in range(2):
            try:
                answer = await self._client.ask(
                    "get_object", MARK, Key=name, Range=f"bytes=0-{2 * len(MARK_TEXT)}"
                )
            except NotFound:
                await self._refuse_foreign()
                with suppress(Conflict):  # another device was quicker
                    upload = Upload(self._context, self._client, MARK, name, fences=False, parts=False)
                    await upload.run(MARK_TEXT)
                continue
            if await self._client.run(MARK, answer["Body"].read) == MARK_TEXT:
                return
            raise Misconfigured(
                "prefix",
                f"{self._config.where}{MARK} is of another version of the store: upgrade this device",
            )
        raise BackendError(
            f"{self._config.where}: the server does not show what was written to it", retryable=True
        )

    async def _refuse_foreign(self) -> None:
        page = await self._client.ask(
            "list_objects_v2", "listing", Prefix=self._config.prefix, Delimiter="/", MaxKeys=100
        )
        names = [entry["Key"] for entry in page.get("Contents", [])]
        names += [entry["Prefix"] for entry in page.get("CommonPrefixes", [])]
        for name in sorted(names):
            if name.removeprefix(self._config.prefix).strip("/") not in KNOWN | {""}:
                raise Misconfigured(
                    "prefix",
                    f"{self._config.where} is not a store and not empty ({name[:80]!r}): choose another prefix or bucket",
                )

    async def _drop_abandoned(self) -> None:
        """Parts of uploads whose writer died cost room and are never listed. Not every server tells of them."""
        below = self._config.prefix + OBJECTS + "/"
        try:
            answer = await self._client.ask(
                "list_multipart_uploads", "unfinished uploads", Prefix=below, MaxUploads=MAX_DROPPED
            )
        except BackendError as error:
            self._context.logger.info("%s: unfinished uploads stay: %s", self._config.where, error)
            return
        now = _date(answer)
        for upload in answer.get("Uploads", []):
            begun = upload.get("Initiated")
            if now is None or not isinstance(begun, datetime) or begun > now - ABANDONED:
                continue
            with suppress(BackendError):  # another device was quicker, or nothing may be dropped there
                await self._client.ask(
                    "abort_multipart_upload",
                    "an unfinished upload",
                    Key=upload["Key"],
                    UploadId=upload["UploadId"],
                )
                self._context.logger.info(
                    "%s: dropped an unfinished upload of %s", self._config.where, upload["Key"]
                )


def _date(answer: Mapping[str, Any]) -> datetime | None:
    """The server's clock."""
    text = answer.get("ResponseMetadata", {}).get("HTTPHeaders", {}).get("date", "")
    try:
        found = parsedate_to_datetime(text)
    except (TypeError, ValueError):
        return None
    return found if found.tzinfo else found.replace(tzinfo=UTC)


@asynccontextmanager
async def open_s3(context: Context, config: S3Config) -> AsyncIterator[S3Store]:
    """Open the store, making it where the prefix is empty. Raises Misconfigured, BackendError."""
    try:
        credentials = await context.workers.run(load_credentials, config.credentials, os.environ)
        library = await context.workers.run(connect, config, credentials)
    except OSError as error:
        raise BackendError(f"{config.where}: the credentials: {error}") from error
    client = Client(context, config, library)
    try:
        store = S3Store(context, config, client)
        await store.prepare()
        yield store
    finally:
        await client.close()
