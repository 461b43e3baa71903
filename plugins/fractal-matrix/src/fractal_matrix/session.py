"""One account's requests, with errors in our terms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fractal.api.context import Context
from fractal.api.errors import BackendError, Denied, FractalError, InvalidInput, NotFound
from fractal_matrix.accounts import Account, plain_dict
from fractal_matrix.listening import Listener
from fractal_matrix.wire import Busy, Refused, Wire

SLOW = 22.0
"""Seconds that such a change is given beyond the usual: a small homeserver makes a room in ten."""
PATIENCE = 60.0
"""Seconds that a change of rooms or membership waits at most where the homeserver asks to."""


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

    async def do(
        self,
        method: str,
        path: Sequence[str],
        body: Mapping[str, Any],
        *,
        query: Mapping[str, str] | None = None,
    ) -> dict[str, Any]:
        """A write of its own right, in the sense of `call`: for rooms and membership, never for entries.

        Waits as long as the homeserver asks to, up to a minute in all. Raises as `call`.
        """
        left = PATIENCE
        while True:
            try:
                return await self.call(method, path, query=query, body=body, wait=SLOW, write=True)
            except Busy as error:
                left -= error.wait
                if left < 0:
                    raise
                self.context.logger.info("matrix: waiting %g s: %s", error.wait, error)
                await self.context.clock.sleep(error.wait)

    async def ignored(self) -> set[str]:
        """Users whose events the homeserver keeps from this account, as the person wished. Raises BackendError."""
        path = ["user", self.account.user, "account_data", "m.ignored_user_list"]
        try:
            said = await self.call("GET", path)
        except Refused as error:
            if error.status == 404:
                return set()
            raise translated(error) from error
        return set(plain_dict(said.get("ignored_users")))

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
            await self.do("PUT", ["rooms", room, "state", kind, *([key] if key else [])], content)
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
            await self.do("POST", path, body or {})
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
