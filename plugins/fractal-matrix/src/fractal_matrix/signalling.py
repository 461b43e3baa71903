"""Signals between the devices of one group, as to-device messages: no event of the room, and gone once they have arrived.

Who is reached how is in the room's state: each account says there which device it is, with which login. One request carries a
signal to all. A device that has not been heard for long is left out, as its homeserver would keep the messages for it; whoever
missed something himself (a start, an outage, a sleep) counts everybody's silence anew, so two devices that both come back
find each other.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

from fractal.api.coordination import MAX_SIGNAL, Signal
from fractal.api.errors import FractalError, NotFound
from fractal_matrix.accounts import plain_dict
from fractal_matrix.names import CONTACT, SIGNAL, VERSION, pack, text_of, unpack
from fractal_matrix.session import Session, translated
from fractal_matrix.wire import Refused

SILENT = 120.0
"""Seconds without a sign of a device after which it is signalled no more."""
KEPT = 256
"""Messages to this device, or of devices not known yet, that are kept."""
MOST = 500
"""Devices of a group that are signalled."""
AGE = 600.0
"""Seconds after which the contacts are read anew though nothing seems to have changed."""
PAUSE = 5.0
"""Seconds between two readings of the contacts at least."""


class Signalling:
    """One room's signals, as one account."""

    def __init__(self, session: Session, room: str) -> None:
        self._session = session
        self._room = room
        self._me = session.context.device
        self._contacts: dict[str, set[tuple[str, str]]] = {}
        """Device -> Matrix users and logins that say they are it."""
        self._read_at: float | None = None
        self._seen: dict[str, float] = {}
        """Device -> boot time of the last sign of it, or since when it is known."""
        self._broadcasts: dict[str, Signal] = {}
        self._messages: deque[Signal] = deque(maxlen=KEPT)
        self._strangers: deque[Mapping[str, Any]] = deque(maxlen=KEPT)

    def receive(self, message: Mapping[str, Any]) -> None:
        """Take in a to-device message; what is not a signal of the device that it names is dropped."""
        content = plain_dict(message.get("content"))
        device, sender = text_of(content, "device"), text_of(message, "sender")
        if not device or device == self._me:
            return
        if not any(user == sender for user, _ in self._contacts.get(device, ())):
            self._strangers.append(message)
            return
        payload = unpack(content.get("data"), MAX_SIGNAL)
        if payload is None or content.get("v") != VERSION:
            return
        self._seen[device] = self._session.context.clock.boottime()
        signal = Signal(device, payload)
        if content.get("to") is None:
            self._broadcasts[device] = signal
        elif content.get("to") == self._me:
            self._messages.append(signal)

    async def take(self) -> Sequence[Signal]:
        """What arrived since the last call."""
        if self._strangers and self._may_read():
            await self._read_contacts()
            waiting = list(self._strangers)
            self._strangers.clear()
            for message in waiting:
                self.receive(message)
            self._strangers.clear()  # whoever is still unknown is none of the group's
        found = [*self._broadcasts.values(), *self._messages]
        self._broadcasts.clear()
        self._messages.clear()
        return found

    async def send(self, payload: bytes, to: str | None) -> None:
        """One request to all whom it concerns. Raises NotFound for a device that nobody says it is, BackendError."""
        clock, listener = self._session.context.clock, self._session.listener
        if self._stale() and self._may_read():
            await self._read_contacts()
        if to is not None and to not in self._contacts:
            raise NotFound(f"no account in room {self._room} says that it is device {to}")
        now = clock.boottime()
        devices = (
            [to] if to is not None else [d for d in self._contacts if d != self._me and self._hears(d, now)]
        )
        content = {"v": VERSION, "room": self._room, "device": self._me, "to": to, "data": pack(payload)}
        messages: dict[str, dict[str, Any]] = {}
        for device in devices[:MOST]:
            for user, login in self._contacts[device]:
                messages.setdefault(user, {})[login] = content
        if not messages:
            return
        number = self._session.context.entropy.bytes(12).hex()
        try:
            await self._session.call("PUT", ["sendToDevice", SIGNAL, number], body={"messages": messages})
        except Refused as error:
            listener.missed()
            raise translated(error) from error
        except FractalError:
            listener.missed()
            raise

    def _hears(self, device: str, now: float) -> bool:
        last = max(self._seen.get(device, 0.0), self._session.listener.interrupted)
        return now - last < SILENT

    # --- contacts ----------------------------------------------------------------------------------------------------

    def _stale(self) -> bool:
        if self._read_at is None or self._room in self._session.listener.changed:
            return True
        return self._session.context.clock.boottime() - self._read_at > AGE

    def _may_read(self) -> bool:
        now = self._session.context.clock.boottime()
        return self._read_at is None or now - self._read_at > PAUSE or not self._contacts

    async def contacts(self) -> Mapping[str, set[tuple[str, str]]]:
        """Who says which device it is, read now. Raises NotFound, BackendError."""
        await self._read_contacts()
        return self._contacts

    async def _read_contacts(self) -> None:
        now = self._session.context.clock.boottime()
        self._session.listener.changed.discard(self._room)
        state = await self._state()
        inside = {
            text_of(event, "state_key")
            for event in state
            if event.get("type") == "m.room.member"
            and text_of(plain_dict(event.get("content")), "membership") == "join"
        }
        found: dict[str, set[tuple[str, str]]] = {}
        for event in state:
            user = text_of(event, "state_key")
            if event.get("type") != CONTACT or user not in inside or user != text_of(event, "sender"):
                continue
            for device, login in logins_of(plain_dict(event.get("content"))).items():
                found.setdefault(device, set()).add((user, login))
        for device in found.keys() - self._contacts.keys():
            self._seen[device] = now
        self._contacts, self._read_at = found, now
        account = self._session.account
        if (account.user, account.device) not in found.get(self._me, set()):
            await self.publish()

    async def _state(self) -> list[Mapping[str, Any]]:
        try:
            # The one answer of this kind that is a list.
            said = await self._session.call("GET", ["rooms", self._room, "state"])
        except Refused as error:
            raise translated(error) from error
        events = said.get("list")
        return [plain_dict(event) for event in events] if isinstance(events, list) else []

    async def publish(self) -> None:
        """Say which device this login is, beside what other logins of the account said. Raises BackendError."""
        await self._say({self._me: self._session.account.device})

    async def withdraw(self) -> list[str]:
        """Say so no more; the account's other devices in the group."""
        return await self._say({}, gone=self._me)

    async def _say(self, mine: Mapping[str, str], gone: str = "") -> list[str]:
        session, room = self._session, self._room
        try:
            before = logins_of(await session.state(room, CONTACT, session.account.user))
        except NotFound:
            before = {}
        after = {device: login for device, login in before.items() if device != gone} | dict(mine)
        if after != before:
            await session.put_state(room, CONTACT, {"v": VERSION, "devices": after}, session.account.user)
        return [device for device in after if device != self._me]


def logins_of(content: Mapping[str, Any]) -> dict[str, str]:
    """Device -> login, of what an account says; at most as many as one person may have."""
    devices = plain_dict(content.get("devices"))
    sound = {
        device: login
        for device, login in devices.items()
        if isinstance(login, str) and 0 < len(device) <= 128 and 0 < len(login) <= 255 and login != "*"
    }
    return dict(list(sound.items())[:64])
