"""Getting an account's login: by password, by access token, or by making the account with a registration token."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from fractal.api.errors import BackendError, Denied, InvalidInput
from fractal_matrix.accounts import Account, plain_dict
from fractal_matrix.address import check_user, parse_url
from fractal_matrix.names import text_of
from fractal_matrix.wire import Busy, Refused, Wire

STAGES = 4
"""Steps of one registration at most."""
PATIENCE = 60.0
"""Seconds that a registration waits at most where the homeserver asks to."""
Sleep = Callable[[float], Awaitable[None]]


async def discover(open_wire: Any, server: str, *, cleartext: bool) -> str:
    """URL of the homeserver that people call `server`: a URL, or a name that may have a `.well-known` file.

    Raises InvalidInput, BackendError if nothing there answers as a homeserver.
    """
    url = parse_url(server if "://" in server else f"https://{server}", cleartext=cleartext)
    if "://" not in server:
        wire = open_wire(url)
        try:
            said = await wire.call("GET", ["matrix", "client"], base=".well-known")
        except Refused:
            said = {}
        finally:
            await wire.close()
        found = text_of(plain_dict(said.get("m.homeserver")), "base_url")
        url = parse_url(found, cleartext=cleartext) if found else url
    wire = open_wire(url)
    try:
        await wire.call("GET", ["versions"], base="_matrix/client")
    except Refused as error:
        raise BackendError(f"{url} is no Matrix homeserver: {error}") from error
    finally:
        await wire.close()
    return url


async def by_password(wire: Wire, user: str, password: str, *, name: str, device: str = "") -> Account:
    """Log in. Raises Denied for a wrong password, BackendError."""
    body: dict[str, Any] = {
        "type": "m.login.password",
        "identifier": {"type": "m.id.user", "user": user},
        "password": password,
        "initial_device_display_name": name,
    }
    if device:
        body["device_id"] = device
    try:
        said = await wire.call("POST", ["login"], body=body)
    except Refused as error:
        if error.status == 403:
            raise Denied(
                f"{wire.url} does not let {user} in: {error.body.get('error', error.errcode)}"
            ) from error
        raise
    return _account(wire.url, said)


async def by_token(wire: Wire, token: str) -> Account:
    """Take over an access token made elsewhere. Raises Denied if the homeserver does not know it."""
    try:
        said = await wire.call("GET", ["account", "whoami"], token=token)
    except Refused as error:
        if error.status == 401:
            raise Denied(f"{wire.url} does not accept the access token") from error
        raise
    return _account(wire.url, {**said, "access_token": token})


async def by_registration(
    wire: Wire, wanted: Account, registration: str, *, name: str, sleep: Sleep
) -> Account:
    """Make the account that `wanted` names, with its password, or log in if an earlier attempt made it.

    Raises Denied if the registration token does not count any more or the homeserver asks for more than one, BackendError.
    """
    body: dict[str, Any] = {
        "username": wanted.user,
        "password": wanted.password,
        "initial_device_display_name": name,
    }
    try:
        for _ in range(STAGES):
            try:
                said = await _patiently(wire, ["register"], body, sleep)
            except Refused as error:
                if error.status != 401 or "flows" not in error.body:
                    raise
                body["auth"] = _next_stage(wire.url, error.body, registration)
            else:
                return replace(_account(wire.url, said), password=wanted.password)
    except Refused as error:
        if error.errcode == "M_USER_IN_USE":
            return replace(
                await by_password(wire, wanted.user, wanted.password, name=name), password=wanted.password
            )
        if error.status in (401, 403):
            raise Denied(
                f"{wire.url} makes no account for this device: {error.body.get('error', error.errcode)}: ask for a new"
                " invitation, made on a device with a registration token that counts"
            ) from error
        raise
    raise BackendError(f"{wire.url} does not come to the end of making an account")


async def _patiently(
    wire: Wire, path: Sequence[str], body: Mapping[str, Any], sleep: Sleep
) -> dict[str, Any]:
    """A request, repeated after as long as the homeserver asks to wait, up to a minute in all. Raises as `Wire.call`."""
    left = PATIENCE
    while True:
        try:
            return await wire.call("POST", path, body=body)
        except Busy as error:
            left -= error.wait
            if left < 0:
                raise
            await sleep(error.wait)


def _next_stage(url: str, said: Mapping[str, Any], registration: str) -> dict[str, Any]:
    """The next proof that the homeserver asks for."""
    known = {
        "m.login.registration_token": {"token": registration},
        "m.login.dummy": {},
    }
    completed = said.get("completed")
    done = set(completed) if isinstance(completed, list) else set()
    flows = said.get("flows")
    for flow in flows if isinstance(flows, list) else []:
        stages = plain_dict(flow).get("stages")
        if isinstance(stages, list) and set(stages) <= set(known):
            left = [stage for stage in stages if stage not in done]
            if left:
                return {"type": left[0], "session": said.get("session"), **known[left[0]]}
    raise Denied(
        f"{url} asks for more than a registration token to make an account: log in with `homeserver login` on this device instead"
    )


async def sign_out(wire: Wire, account: Account, *, for_good: bool) -> None:
    """End a login; `for_good` also closes an account that this device made. Raises BackendError."""
    try:
        if for_good and account.password:
            await _deactivate(wire, account)
        else:
            await wire.call("POST", ["logout"], token=account.token, body={})
    except Refused as error:
        if error.status != 401:
            raise


async def _deactivate(wire: Wire, account: Account) -> None:
    auth: dict[str, Any] = {
        "type": "m.login.password",
        "identifier": {"type": "m.id.user", "user": account.user},
        "password": account.password,
    }
    path = ["account", "deactivate"]
    try:
        await wire.call("POST", path, token=account.token, body={})
    except Refused as error:
        if error.status != 401 or "session" not in error.body:
            raise
        auth["session"] = error.body["session"]
        await wire.call("POST", path, token=account.token, body={"auth": auth})


def _account(url: str, said: dict[str, Any]) -> Account:
    user, device = text_of(said, "user_id"), text_of(said, "device_id")
    token = text_of(said, "access_token", longest=4096)
    try:
        check_user(user)
    except InvalidInput as error:
        raise BackendError(f"{url} names no user in its answer: is this a Matrix homeserver?") from error
    if not device or not token:
        raise BackendError(f"{url} gives no device or token: application services and guests cannot be used")
    return Account(url=url, user=user, device=device, token=token)
