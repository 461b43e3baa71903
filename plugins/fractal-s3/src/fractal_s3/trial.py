"""Tries on the server itself whether it can fence: what it says of itself counts for nothing.

Servers that know `If-None-Match: *` at all may look for the object when a write begins, and not again when it ends: then
of two writes under way both succeed. So two are begun, each holds back its last byte until the other has sent the rest,
and one of them must be refused. Conditions on writes: Amazon S3 User Guide, "How to prevent object overwrites".
"""

from __future__ import annotations

import asyncio
import io
import threading
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from fractal.api.errors import BackendError, NotFound, NotSupported
from fractal_s3.client import Client
from fractal_s3.faults import Refused, Unanswered

HELD = 160 << 10
"""Bytes of a write that waits for another; more than the library sends at once."""
LONGEST_HOLD = 3.0
"""Seconds; a server that takes one write of a name after the other is not held up for longer."""


class Trial:
    """One trial below `folder`, whose objects it deletes again."""

    def __init__(self, client: Client, folder: str, tag: str) -> None:
        self._client = client
        self._names = [f"{folder}{tag}-{step}=" for step in ("once", "race")]

    async def run(self) -> tuple[str, bool]:
        """Why the server cannot fence, or ""; and whether it holds to the condition for objects of many parts, too."""
        once, race = self._names
        try:
            await self._put(once, b"once")
            if not await self._refuses(once):
                return "the server creates an object that exists already (it ignores If-None-Match: *)", False
            if not await self._listed(once):
                return "the server does not list at once what was written", False
            if await self._winners(race) != 1:
                return (
                    "of two writes of one name that the server took at the same time not just one succeeded",
                    False,
                )
            return "", await self._refuses_parts(once)
        except NotSupported:
            return "the server does not know conditional writes (If-None-Match: *)", False
        finally:
            await self._client.finish(self._clear())

    async def _put(self, name: str, body: Any) -> None:
        await self._client.once("put_object", "trying it", Key=name, Body=body, IfNoneMatch="*")

    async def _refuses(self, name: str) -> bool:
        try:
            await self._put(name, b"twice")
        except Refused:
            answer = await self._client.ask("get_object", "trying it", Key=name)
            return bool(await self._client.run("trying it", answer["Body"].read) == b"once")
        return False

    async def _listed(self, name: str) -> bool:
        answer = await self._client.ask("list_objects_v2", "trying it", Prefix=name)
        return [found.get("Key") for found in answer.get("Contents", [])] == [name]

    async def _winners(self, name: str) -> int:
        patience = min(self._client.config.timeout / 2, LONGEST_HOLD)
        gate = threading.Barrier(2)
        results = await asyncio.gather(
            *(self._put(name, _Held(number, gate, patience)) for number in (b"1", b"2")),
            return_exceptions=True,
        )
        for result in results:
            # One that went silent says nothing of the server; whoever opens the store tries again.
            if isinstance(result, BaseException) and not isinstance(result, Refused | NotFound):
                if isinstance(result, Unanswered) and "failed by itself" in str(result):
                    continue
                raise result
        return sum(result is None for result in results)

    async def _refuses_parts(self, name: str) -> bool:
        upload: Mapping[str, Any] = {"Key": name}
        try:
            begun = await self._client.ask("create_multipart_upload", "trying it", Key=name)
            upload = {"Key": name, "UploadId": begun["UploadId"]}
            part = await self._client.ask("upload_part", "trying it", **upload, PartNumber=1, Body=b"parts")
            parts = {"Parts": [{"PartNumber": 1, "ETag": part["ETag"]}]}
            await self._client.once(
                "complete_multipart_upload", "trying it", **upload, MultipartUpload=parts, IfNoneMatch="*"
            )
        except Refused:
            await self._client.finish(self._client.ask("abort_multipart_upload", "trying it", **upload))
            return True
        except BackendError as error:
            if error.retryable:
                raise
        return False

    async def _clear(self) -> None:
        for name in self._names:
            try:
                await self._client.ask("delete_object", "clearing up", Key=name)
            except BackendError:
                continue  # an append-only server keeps our few bytes


class _Held(io.BytesIO):
    """A body that reaches its last bytes only when the other has, too, or after `patience` seconds."""

    def __init__(self, mark: bytes, gate: threading.Barrier, patience: float) -> None:
        super().__init__(mark * HELD)
        self._gate = gate
        self._patience = patience
        self._passes = 0

    def read(self, size: int | None = -1, /) -> bytes:
        """As of any file, but slower."""
        at = self.tell()
        # The library reads all of it first, for the signature where the line is not sealed, with larger bites.
        if size is not None and 0 < size <= HELD // 2 and at <= HELD // 2 < at + size:
            # Broken: the other was refused at its beginning, or runs after us. Its answer says what it is worth.
            with suppress(threading.BrokenBarrierError):
                self._gate.wait(self._patience)
        return super().read(size)
