"""The `matrix` coordination backend: each log is a room of its own on one homeserver, each device an account or login of its own.

Entries come sealed and signed; the homeserver is trusted with their order and with nothing else. What people do as themselves
(make rooms, put accounts out) is done by the member's login, where this device has it; everything else by the device's account.
"""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

from fractal.api.context import Context
from fractal.api.coordination import MAX_ENTRY, MAX_SIGNAL, Page, Signal
from fractal.api.errors import BackendError, Denied, FractalError, InvalidInput, Misconfigured, NotFound
from fractal_matrix import layout
from fractal_matrix.accounts import Account, Accounts, Known, with_room
from fractal_matrix.address import Address, check_user, is_user, parse_address
from fractal_matrix.config import MatrixConfig
from fractal_matrix.log import RoomLog
from fractal_matrix.names import CONTACT
from fractal_matrix.outgoing import Outgoing
from fractal_matrix.session import Session
from fractal_matrix.signalling import Signalling, logins_of
from fractal_matrix.signing_in import by_registration, sign_out
from fractal_matrix.wire import Wire

_NAME_LIMIT = 128


@asynccontextmanager
async def open_coordinator(context: Context, config: MatrixConfig) -> AsyncIterator[MatrixCoordinator]:
    """Raises Misconfigured. Asks no homeserver anything: a device starts without one."""
    if not 1 <= config.timeout <= 60:
        raise Misconfigured("timeout", f"{config.timeout} is not between 1 and 60 seconds")
    if not 0 <= config.staleness <= 300:
        raise Misconfigured("staleness", f"{config.staleness} is not between 0 and 300 seconds")
    if config.ca_file and not Path(config.ca_file).is_absolute():
        raise Misconfigured("ca_file", f"{config.ca_file!r} is not absolute")
    coordinator = MatrixCoordinator(context, config)
    try:
        yield coordinator
    finally:
        await coordinator.close()


class _Log:
    """A log as this device sees it at present."""

    def __init__(self, session: Session, room: str, outgoing: Outgoing) -> None:
        self.session = session
        self.entries = RoomLog(session, room, outgoing)
        self.signals = Signalling(session, room)


class MatrixCoordinator:
    """A `Coordinator` on Matrix rooms."""

    def __init__(self, context: Context, config: MatrixConfig) -> None:
        self._context = context
        self._config = config
        self._accounts = Accounts(context.state_dir)
        self._outgoing = Outgoing(context.state_dir)
        self._sessions: dict[Account, Session] = {}
        self._logs: dict[str, _Log] = {}

    async def close(self) -> None:
        """End polls and connections."""
        for session in self._sessions.values():
            await session.close()
        self._sessions.clear()
        self._logs.clear()
        self._outgoing.close()

    @property
    def staleness(self) -> float:
        """As configured: 0 for a homeserver in one process."""
        return self._config.staleness

    # --- logs --------------------------------------------------------------------------------------------------------

    async def create(self, group: str, name: str) -> str:  # noqa: ARG002 - names are not for the homeserver
        """Make the log room as the member, and what is around it; this device enters it with an account of its own."""
        _check_name("group token", group)
        known = self._accounts.known()
        login = known.logins.get(known.home)
        if login is None:
            raise Denied(
                "this device is known to no homeserver: log in with `homeserver login`, then create the group"
            )
        member = await self._session(login)
        room = await layout.make_log(member, group)
        address = Address(login.url, room)
        registration = known.registration.get(login.url)
        if registration and room not in known.rooms:
            made = self._new_name()
            await layout.invite(member, room, f"@{made}:{login.user.partition(':')[2]}")
            await self._register(replace(address, user=made, token=registration))
        await self._enter(address)
        await layout.make_surroundings(member, room)
        return address.plain

    async def join(self, address: str) -> str:
        """Enter the room: with the account that this device has there, else one that the invitation lets it make."""
        asked = self._parse(address)
        known = self._accounts.known()
        if asked.room not in known.rooms:
            if asked.user:
                await self._register(asked)
            elif asked.url not in known.logins:
                raise Denied(
                    f"this device has no account on {asked.url}: log in with `homeserver login --server {asked.url}`, or"
                    " ask for an invitation from a device that can make accounts"
                )
        try:
            await self._enter(asked)
        except (Denied, NotFound):
            # The account of an earlier stay is let in no more.
            if not asked.user or self._account(asked).user.startswith(f"@{asked.user}:"):
                raise
            await self._register(asked)
            await self._enter(asked)
        login = self._accounts.known().logins.get(asked.url)
        if login is not None:
            space = await self._space(asked)
            if space:
                await layout.enter_around(await self._session(login), space)
        return asked.plain

    async def leave(self, address: str) -> None:
        """Leave the room, and close the account that was made for it; a login that others of the group use stays in."""
        asked = self._parse(address)
        known = self._accounts.known()
        account = known.rooms.get(asked.room) or known.logins.get(asked.url)
        if account is None:
            return
        session = await self._session(account)
        try:
            others = await Signalling(session, asked.room).withdraw()
            if not others:
                await session.act(asked.room, "leave")
        except (Denied, NotFound):
            pass  # out already
        session.listener.forget(asked.room)
        self._logs.pop(asked.room, None)
        if asked.room in known.rooms:
            wire = self._wire(account.url)
            try:
                await sign_out(wire, account, for_good=True)
            finally:
                await wire.close()
            self._accounts.write(with_room(self._accounts.known(), asked.room, None))
            await self._close(account)
        await self._context.workers.run(self._outgoing.forget, asked.room)

    async def append(self, address: str, token: str, entry: bytes) -> None:
        """Append; durable and ordered when this returns, as Synapse answers after its commit."""
        _check_name("token", token)
        if not 1 <= len(entry) <= MAX_ENTRY:
            raise InvalidInput(f"an entry has 1 to {MAX_ENTRY} bytes, not {len(entry)}")
        await (await self._log(address)).entries.append(token, entry)

    async def read(self, address: str, after: str | None, *, limit: int = 500, wait: float = 0.0) -> Page:
        """Read; while it waits, the account's long poll wakes it."""
        if limit < 1:
            raise InvalidInput(f"a page holds at least one entry, not {limit}")
        log = await self._log(address)
        try:
            return await log.entries.read(after, limit=limit, wait=wait)
        except BackendError:
            log.entries.doubt()
            raise

    # --- signals -----------------------------------------------------------------------------------------------------

    async def signal(self, address: str, payload: bytes, *, to: str | None = None) -> None:
        """One request, to one device or to all that gave a sign of themselves lately."""
        if len(payload) > MAX_SIGNAL:
            raise InvalidInput(f"a signal has at most {MAX_SIGNAL} bytes, not {len(payload)}")
        if to is not None:
            _check_name("device", to)
        await (await self._log(address)).signals.send(payload, to)

    async def signals(self, address: str) -> Sequence[Signal]:
        """What the account's long poll brought."""
        return await (await self._log(address)).signals.take()

    # --- access ------------------------------------------------------------------------------------------------------

    async def invite(self, address: str, member: str) -> str:
        """Let in an account that the invited device makes for itself, or a person's own; for a person also what is around.

        Without a registration token and without a person, nobody is invited: the device has to be logged in as somebody who
        is in already.
        """
        asked = self._parse(address)
        if member:
            check_user(member)
        session = (await self._log(address)).session
        known = self._accounts.known()
        registration = known.registration.get(asked.url, "")
        if member:
            login = known.logins.get(asked.url)
            if login is not None:
                person = await self._session(login)
                if await layout.creator(session, asked.room) == login.user:
                    await layout.make_surroundings(person, asked.room)
                await layout.invite_around(person, asked.room, member)
        if not registration:
            if member:
                await layout.invite(session, asked.room, member)
            return asked.plain
        name = self._new_name()
        await layout.invite(session, asked.room, f"@{name}:{session.account.user.partition(':')[2]}")
        return replace(asked, user=name, token=registration).admission

    async def remove(self, address: str, member: str) -> None:
        """Put an account out: a person's by Matrix id, else those that say they are that device and no other.

        Raises Denied where the homeserver lets only the member who made the log do that, and this device is not logged in as
        them.
        """
        asked = self._parse(address)
        session = (await self._log(address)).session
        users = (
            [member]
            if is_user(member)
            else await self._only(session, asked.room, _check_name("device", member))
        )
        login = self._accounts.known().logins.get(asked.url)
        acting = await self._session(login) if login is not None else session
        for user in users:
            if user == session.account.user:
                continue
            try:
                await layout.put_out(acting, asked.room, user)
            except Denied as error:
                raise BackendError(
                    f"{acting.account.user} may not put {user} out of room {asked.room}: do it on a device where the one who"
                    f" made the group is logged in ({error})"
                ) from error

    async def _only(self, session: Session, room: str, device: str) -> list[str]:
        """Users who say that they are that device and no other one."""
        found = []
        for event in await layout.whole_state(session, room):
            if event.get("type") == CONTACT and isinstance(event.get("content"), dict):
                user = str(event.get("state_key"))
                if is_user(user) and list(logins_of(event["content"])) == [device]:
                    found.append(user)
        return found

    # --- accounts ----------------------------------------------------------------------------------------------------

    def _parse(self, address: str) -> Address:
        return parse_address(address, cleartext=self._config.cleartext)

    def _account(self, address: Address) -> Account:
        known: Known = self._accounts.known()
        account = known.rooms.get(address.room) or known.logins.get(address.url)
        if account is None or account.url != address.url:
            raise NotFound(
                f"this device has no account for room {address.room} on {address.url}: join the group by an invitation, or"
                " log in with `homeserver login`"
            )
        return account

    async def _log(self, address: str) -> _Log:
        asked = self._parse(address)
        session = await self._session(self._account(asked))
        log = self._logs.get(asked.room)
        if log is None or log.session is not session:
            log = _Log(session, asked.room, self._outgoing)
            self._logs[asked.room] = log
        session.listener.watch(asked.room, log.signals.receive)
        return log

    async def _session(self, account: Account) -> Session:
        session = self._sessions.get(account)
        if session is None:
            for old in [a for a in self._sessions if (a.url, a.user) == (account.url, account.user)]:
                await self._close(old)  # logged in anew
            session = Session(self._context, account, self._wire(account.url))
            self._sessions[account] = session
        return session

    async def _close(self, account: Account) -> None:
        session = self._sessions.pop(account, None)
        if session is not None:
            await session.close()

    def _wire(self, url: str) -> Wire:
        return Wire(url, timeout=self._config.timeout, ca_file=self._config.ca_file)

    def _new_name(self) -> str:
        return f"homeserver-{self._context.entropy.bytes(8).hex()}"

    async def _register(self, asked: Address) -> None:
        """Make the account and note it. Noted before, too: what was made before a crash is logged in to."""
        known = self._accounts.known()
        wanted = known.rooms.get(asked.room)
        if wanted is None or wanted.token or wanted.user != asked.user:
            password = base64.urlsafe_b64encode(self._context.entropy.bytes(24)).decode("ascii")
            wanted = Account(url=asked.url, user=asked.user, password=password)
            self._accounts.write(with_room(known, asked.room, wanted))
        wire = self._wire(asked.url)
        try:
            account = await by_registration(
                wire,
                wanted,
                asked.token,
                name=f"homeserver device {self._context.device[:6]}",
                sleep=self._context.clock.sleep,
            )
        finally:
            await wire.close()
        self._accounts.write(with_room(self._accounts.known(), asked.room, account, asked.token))

    async def _enter(self, asked: Address) -> None:
        """Be in the room, see that it can hold a log, and say there which device this is."""
        account = self._account(asked)
        if not account.token:
            raise Denied(
                f"the account {account.user} on {asked.url} was not made yet: use the invitation again"
            )
        session = await self._session(account)
        await session.act(asked.room, "join")
        try:
            await layout.check_log(session, asked.room)
        except Denied:
            await session.act(asked.room, "leave")
            raise
        await Signalling(session, asked.room).publish()

    async def _space(self, asked: Address) -> str:
        try:
            return await layout.parent(await self._session(self._account(asked)), asked.room)
        except FractalError as error:
            self._context.logger.info("matrix: the Space of room %s is not known: %s", asked.room, error)
            return ""


def _check_name(what: str, text: str) -> str:
    if not (0 < len(text) <= _NAME_LIMIT and text.isascii() and all(c.isalnum() or c in "._-" for c in text)):
        raise InvalidInput(
            f"{what}: 1 to {_NAME_LIMIT} letters, digits, dots, dashes or underscores, not {text[:40]!r}"
        )
    return text
