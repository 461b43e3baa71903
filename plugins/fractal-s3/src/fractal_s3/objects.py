"""One object being created."""

from __future__ import annotations

import asyncio
import io
import tempfile
from collections import deque
from collections.abc import AsyncIterator, Mapping
from typing import IO, Any

from fractal.api.context import Context
from fractal.api.errors import Ambiguous, BackendError, Conflict, NotFound
from fractal_s3.client import ATTEMPTS, Client
from fractal_s3.faults import Refused, Unanswered

WRITER = "writer"
"""Metadata by which a create recognises its own work after an answer was lost."""
SMALL = 64 << 10
"""Bytes up to which a body is sent at once. A longer one goes in blocks: the library wants all that it sends at once to be
gone within the time-out for connecting, and asks beforehand whether the server will have it."""
AT_ONCE = 3
"""Parts of one object on their way."""
LARGEST_PUT = 5 << 30
"""Bytes that S3 takes in one request."""

Body = bytes | IO[bytes]


class Upload:
    """Creates the object `name` (called `key` in messages) from `data`, under the condition that there is none.

    `fences` says whether the server holds to that condition; where it does not, it is asked beforehand, which two writers
    may do at the same time. `parts` says whether it holds to it, too, when an object of many parts is completed; where it
    does not, whatever does not fit in one part is spooled to disk first and sent in one request.
    """

    def __init__(
        self, context: Context, client: Client, key: str, name: str, *, fences: bool, parts: bool
    ) -> None:
        self._context = context
        self._client = client
        self._key = key
        self._name = name
        self._condition = {"IfNoneMatch": "*"} if fences else {}
        self._parts = parts or not fences
        self._size = client.config.part_mib << 20
        self._writer = context.entropy.bytes(16).hex()

    async def run(self, data: bytes | AsyncIterator[bytes]) -> None:
        """Raises Conflict, Ambiguous, BackendError."""
        if isinstance(data, bytes) and (len(data) <= self._size or not self._parts):
            await self._put(data if len(data) <= SMALL else io.BytesIO(data))
            return
        blocks = _blocks(data, self._size)
        first = await anext(blocks, b"")
        second = await anext(blocks, None)
        if second is None:
            await self._put(first if len(first) <= SMALL else io.BytesIO(first))
        elif self._parts:
            await self._put_parts(_again([first, second], blocks))
        else:
            await self._put_spooled(_again([first, second], blocks))

    async def _put(self, body: Body) -> None:
        await self._create("put_object", Key=self._name, Body=body, Metadata={WRITER: self._writer})

    async def _put_spooled(self, blocks: AsyncIterator[bytes]) -> None:
        workers = self._context.workers
        spool = await workers.run(_spool, str(self._context.state_dir))
        try:
            size = 0
            async for block in blocks:
                size += len(block)
                if size > LARGEST_PUT:
                    raise BackendError(
                        f"{self._client.where}: {self._key}: the server takes no more than 5 GiB at once"
                    )
                try:
                    await workers.run(spool.write, block)
                except OSError as error:
                    raise BackendError(f"{self._client.where}: {self._key}: spooling it: {error}") from error
            await self._put(spool)
        finally:
            spool.close()

    async def _put_parts(self, blocks: AsyncIterator[bytes]) -> None:
        await self._refuse_existing()  # spares sending it all
        begun = await self._client.ask(
            "create_multipart_upload", self._key, Key=self._name, Metadata={WRITER: self._writer}
        )
        upload = {"Key": self._name, "UploadId": begun["UploadId"]}
        done = False
        try:
            parts = await self._send_parts(upload, blocks)
            await self._create("complete_multipart_upload", **upload, MultipartUpload={"Parts": parts})
            done = True
        finally:
            if not done:
                await self._client.finish(self._client.ask("abort_multipart_upload", self._key, **upload))

    async def _send_parts(
        self, upload: Mapping[str, Any], blocks: AsyncIterator[bytes]
    ) -> list[dict[str, Any]]:
        flying: deque[asyncio.Task[dict[str, Any]]] = deque()
        sent: list[dict[str, Any]] = []
        number = 0
        try:
            async for block in blocks:
                if len(flying) >= AT_ONCE:
                    sent.append(await flying.popleft())
                number += 1
                flying.append(asyncio.create_task(self._send_part(upload, number, block)))
            while flying:
                sent.append(await flying.popleft())
        finally:
            for task in flying:
                task.cancel()
            await asyncio.gather(*flying, return_exceptions=True)
        return sent

    async def _send_part(self, upload: Mapping[str, Any], number: int, block: bytes) -> dict[str, Any]:
        answer = await self._client.ask(
            "upload_part", self._key, **upload, PartNumber=number, Body=io.BytesIO(block)
        )
        return {"PartNumber": number, "ETag": answer["ETag"]}

    async def _create(self, operation: str, **parameters: Any) -> None:
        """The request that makes the object appear. An answer that was lost is looked for: whose object is it?"""
        if not self._condition:
            await self._refuse_existing()
        doubt: BackendError | None = None
        for attempt in range(1, ATTEMPTS + 1):
            try:
                await self._client.once(operation, self._key, **parameters, **self._condition)
            except BackendError as error:
                if await self._is_done_after(error, doubt):
                    return
                if not (isinstance(doubt, Unanswered) and doubt.sent):
                    doubt = error
                if attempt < ATTEMPTS:
                    await self._client.pause(attempt, error)
            else:
                return
        assert doubt is not None
        if isinstance(doubt, Unanswered) and doubt.sent:
            raise Ambiguous(f"{doubt}; {self._key} may have been created") from doubt
        if isinstance(doubt, Refused):
            # Another write under the name went on all the while and is not there: nothing exists yet.
            raise BackendError(str(doubt), retryable=True) from doubt
        raise doubt

    async def _is_done_after(self, error: BackendError, doubt: BackendError | None) -> bool:
        """As `_is_done`, but whatever goes wrong after an answer was lost leaves it open whether the object was created."""
        try:
            return await self._is_done(error, doubt)
        except (Ambiguous, Conflict):
            raise
        except BackendError as failed:
            if not (isinstance(doubt, Unanswered) and doubt.sent):
                raise
            raise Ambiguous(f"{failed}; {self._key} may have been created") from failed

    async def _is_done(self, error: BackendError, doubt: BackendError | None) -> bool:
        """Whether an earlier attempt, of which `doubt` is left, has done it; False if it is worth another. Raises otherwise."""
        if isinstance(error, Refused):
            if error.busy and not await self._exists():
                return False
            if doubt is None:
                raise self._conflict()
            return await self._recognise(error)
        if isinstance(error, NotFound):
            # The parts are gone: an attempt whose answer was lost has completed them, or somebody has dropped them.
            if doubt is None or not await self._exists():
                raise BackendError(f"{error}: its upload was dropped", retryable=True)
            return await self._recognise(error)
        if not error.retryable:
            raise error
        return False

    async def _recognise(self, error: BackendError) -> bool:
        try:
            found = await self._client.ask("head_object", self._key, Key=self._name)
        except NotFound:
            raise BackendError(
                f"{self._client.where}: {self._key}: was deleted meanwhile", retryable=True
            ) from error
        except BackendError as lost:
            raise Ambiguous(f"{lost}; {self._key} may have been created") from lost
        if found.get("Metadata", {}).get(WRITER) != self._writer:
            raise self._conflict()
        return True

    async def _exists(self) -> bool:
        try:
            await self._client.ask("head_object", self._key, Key=self._name)
        except NotFound:
            return False
        return True

    async def _refuse_existing(self) -> None:
        if await self._exists():
            raise self._conflict()

    def _conflict(self) -> Conflict:
        return Conflict(f"{self._client.where}: {self._key}: exists already")


async def _blocks(data: bytes | AsyncIterator[bytes], size: int) -> AsyncIterator[bytes]:
    """The same bytes in blocks of `size`, of which the last may be shorter."""
    if isinstance(data, bytes):
        for at in range(0, len(data), size):
            yield data[at : at + size]
        return
    held = bytearray()
    async for chunk in data:
        held += chunk
        while len(held) >= size:
            yield bytes(held[:size])
            del held[:size]
    if held:
        yield bytes(held)


async def _again(taken: list[bytes], rest: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    while taken:
        yield taken.pop(0)
    async for block in rest:
        yield block


def _spool(folder: str) -> IO[bytes]:
    return tempfile.TemporaryFile(dir=folder)
