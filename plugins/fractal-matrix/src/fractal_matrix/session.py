"""One account's requests, with errors in our terms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fractal.api.context import Context
from fractal.api.errors import BackendError, Denied, FractalError, InvalidInput, NotFound
from fractal_matrix.accounts import Account
from fractal_matrix.listening import Listener
from fractal_matrix.wire import Refused, Wire


class Session:
    """An account on its homeserver. Belongs to one event loop; close it."""

    def __init__(self, context: Context, account: Account, wire: Wire) -> None:
        self.account = account
        self.context = context
        self._wire = wire
        self.listener = Listener(context, self.call)

    async def close(self) -> None:
        """End the long poll and the connections."""
        await self.listener.close()
        await self._wire.close()

    async def call(
        self,
        method: str,
        path: Sequence[str],
        *,
        query: Mapping[str, str] | None = None,
        body: Mapping[str, Any] | None = None,
        wait: float = 0.0,
        write: bool = False,
    ) -> dict[str, Any]:
        """`Wire.call` as this account. Raises as it does, but BackendError with the remedy for a token that does not count."""
        try:
            return await self._wire.call(
                method, path, token=self.account.token, query=query, body=body, wait=wait, write=write
            )
        except Refused as error:
            if error.status == 401:
                raise self.signed_out(error) from error
            raise

    def signed_out(self, error: Refused) -> BackendError:
        """What to say when the access token does not count any more."""
        remedy = (
            "its account was closed or its login ended: leave the group and join it again with a new invitation"
            if self.account.password
            else "its login was ended: log in again with `homeserver login`"
        )
        return BackendError(
            f"{self.account.url} no longer accepts the access token of {self.account.user} on this device"
            f" ({error.errcode or error.status}): {remedy}"
        )

    async def state(self, room: str, kind: str, key: str = "") -> dict[str, Any]:
        """Content of a state event. Raises NotFound."""
        try:
            return await self.call("GET", ["rooms", room, "state", kind, *([key] if key else [])])
        except Refused as error:
            if error.status == 404:
                raise NotFound(f"room {room} has no {kind}") from error
            raise translated(error) from error

    async def put_state(self, room: str, kind: str, content: Mapping[str, Any], key: str = "") -> None:
        """Set a state event. Raises Denied, BackendError."""
        try:
            await self.call(
                "PUT", ["rooms", room, "state", kind, *([key] if key else [])], body=content, write=True
            )
        except Refused as error:
            raise translated(error) from error

    async def membership(self, room: str, user: str) -> str:
        """`join`, `invite`, `leave`, `ban`, or "" for somebody who never was there or a room that we cannot look into."""
        try:
            return str((await self.state(room, "m.room.member", user)).get("membership", ""))
        except (NotFound, Denied):
            return ""

    async def act(self, room: str, action: str, body: Mapping[str, Any] | None = None) -> None:
        """`invite`, `kick`, `leave` or `join` in a room. Raises Denied, NotFound, BackendError."""
        path = ["join", room] if action == "join" else ["rooms", room, action]
        try:
            await self.call("POST", path, body=body or {}, write=True)
        except Refused as error:
            raise translated(error) from error


def translated(error: Refused) -> FractalError:
    """The error of our own that a refusal is."""
    if error.status == 403:
        return Denied(str(error))
    if error.status == 404:
        return NotFound(str(error))
    if error.status == 413:
        return InvalidInput(str(error))
    return error
