"""Whole agents that agree through a real Synapse: founding, joining by code and by Matrix id, a takeover, a removal."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import quote

import pytest
from fractal_matrix.accounts import Accounts
from fractal_matrix.address import parse_address
from fractal_matrix.testing import Devices

from fractal.crypto.join import parse_code
from fractal.testing.agents import Bed, bed

MATRIX = '[coordination]\nbackend = "matrix"\n'


@pytest.fixture
async def group(tmp_path: Path, devices: Devices, anna: str) -> AsyncIterator[Bed]:
    """Anna's group with an app on her attic, made while she is logged in there."""
    async with bed(tmp_path) as made:
        log_in(devices, tmp_path, "Attic", anna)
        await made.start("Attic", log=MATRIX)
        await made.found("Attic", timers="standard")
        yield made


def log_in(devices: Devices, folder: Path, device: str, user: str = "", *, registration: bool = True) -> str:
    """As `homeserver login` on that device; the Matrix id."""
    state = folder / device / "state" / "coordination" / "matrix"
    state.mkdir(parents=True)
    scratch = f"login-{os.urandom(4).hex()}"
    who = devices.log_in(scratch, user=user, registration=registration)
    Accounts(state).write(devices.accounts(scratch).known())
    return who


async def test_a_group_lives_on_matrix(group: Bed, devices: Devices, tmp_path: Path) -> None:
    """A second device makes its own account; the first one dies, and its app goes on there; then it is put out."""
    await group.start("Kitchen", log=MATRIX)
    await group.join("Kitchen", by="Attic")
    kitchen = group.agents["Kitchen"]
    accounts = Accounts(tmp_path / "Kitchen" / "state" / "coordination" / "matrix").known()
    assert not accounts.logins
    (account,) = accounts.rooms.values()
    assert account.user.startswith("@homeserver-")
    await group.install("Attic")
    await group.until(lambda: group.at("Attic").online(kitchen.keys.id))
    await group.until(lambda: kitchen.keys.id in group.app("Attic").keys[-1].sealed)
    await group.stop("Attic")
    await group.until(lambda: group.app("Kitchen").owner == kitchen.keys.id, limit=120)
    await group.start("Attic", log=MATRIX)
    await group.until(lambda: group.app("Attic").owner == kitchen.keys.id)
    await group.until(lambda: group.at("Attic").online(kitchen.keys.id))
    room = parse_address(group.at("Attic").journal.address).room
    await group.call("Attic", "device.remove", device="Kitchen")
    path = f"/_matrix/client/v3/rooms/{quote(room)}/state/m.room.member/{quote(account.user)}"
    owner = Accounts(tmp_path / "Attic" / "state" / "coordination" / "matrix").known()
    said = devices.server.call("GET", path, None, owner.logins[owner.home].token)
    assert said["membership"] == "leave"


async def test_a_member_is_invited_by_matrix_id(group: Bed, devices: Devices, tmp_path: Path) -> None:
    """The code is for a device of theirs, and nothing in it or in the notes afterwards is the founder's."""
    ben = log_in(devices, tmp_path, "Den", registration=False)
    await group.start("Den", log=MATRIX)
    await group.join("Den", by="Attic", new_member=True, contact=ben)
    den = group.agents["Den"]
    assert "Den" in {member.name for member in group.at("Attic").state.members.values()}
    code = parse_code(str((await group.call("Attic", "group.invite"))["code"]))
    assert "token=" in code.address
    assert "token=" not in repr(code)
    notes = {value for _, value in den.notes.scan("")}
    token = next(
        iter(Accounts(tmp_path / "Attic" / "state" / "coordination" / "matrix").known().registration.values())
    )
    assert not any(token.encode() in note for note in notes)
