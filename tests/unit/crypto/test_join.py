"""Joining by a long code, against a log server that guesses, repeats, substitutes, invents and withholds."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fractal.api import canonical
from fractal.api.errors import Denied, InvalidInput
from fractal.core.entries import Approved, Invited
from fractal.core.log import fold
from fractal.core.model import GroupState, Invitation, Role
from fractal.crypto.join import (
    Code,
    envelope_type,
    join_request,
    make_code,
    new_code,
    open_request,
    open_welcome,
    parse_code,
    welcome,
)
from fractal.crypto.keys import DeviceKeys, MemberKeys
from fractal.crypto.seal import GroupOpener
from fractal.testing.group import SeededEntropy, World

GROUP = "ab" * 16
codes = st.builds(
    Code,
    st.binary(min_size=16, max_size=16),
    st.binary(min_size=16, max_size=16).map(bytes.hex),
    st.text(max_size=60).filter(lambda text: text.isprintable()),
    st.booleans(),
)


# --- the code --------------------------------------------------------------------------------------------------------


@given(codes)
def test_code_survives_being_copied(code: Code) -> None:
    text = make_code(code)
    assert parse_code(text) == code
    wrapped = "\n  ".join(text[at : at + 30] for at in range(0, len(text), 30))
    assert parse_code(f"  {wrapped}\n") == code


@given(codes, st.data())
@settings(max_examples=200)
def test_damaged_code_is_refused(code: Code, data: st.DataObject) -> None:
    text = make_code(code)
    at = data.draw(st.integers(0, len(text) - 1))
    other = data.draw(st.sampled_from("ABCDXYZ234567abcxyz.-_ 019é"))
    for damaged in (text[:at], text[:at] + other + text[at + 1 :], text[:at] + text[at + 1 :]):
        try:
            assert parse_code(damaged) == code  # a dash or the case of a letter carries nothing
        except InvalidInput:
            continue


@given(st.text(max_size=300))
def test_garbage_is_no_code(text: str) -> None:
    for attempt in (text, f"HS1-{text}", f"HS1-AAAA.{text}"):
        with pytest.raises(InvalidInput):
            parse_code(attempt)


def test_secret_shows_in_no_repr() -> None:
    code = new_code(GROUP, "sqlite#x", SeededEntropy(), new_member=True)
    assert code.secret.hex() not in repr(code) and repr(code.secret) not in repr(code)


# --- the log server --------------------------------------------------------------------------------------------------


class Stage:
    """A real group, an open invitation, and a device with its code."""

    def __init__(self) -> None:
        self.world = World.founded()
        self.attic = self.world.machines["attic"]
        self.code = new_code(self.world.state.id, "memory#x", self.world.entropy, new_member=False)
        self.world.must("attic", self.invited(self.code))
        self.stranger = DeviceKeys.generate(self.world.entropy)
        self.request = join_request(self.code, self.stranger, "Kitchen", self.world.entropy)

    def invited(self, code: Code) -> Invited:
        return Invited(
            id=code.invitation,
            verify_key=code.signer.public,
            role=Role.MEMBER,
            expires_ms=0,
            member=self.attic.person.id,
            lobby_key=code.lobby_key,
        )

    @property
    def invitation(self) -> Invitation:
        return self.world.state.invitations[self.code.invitation]

    def greeting(self) -> bytes:
        _, request = open_request(self.request, self.world.state.id, {self.code.invitation: self.invitation})
        return welcome(
            self.invitation,
            request,
            self.attic.keys,
            self.world.state.id,
            self.world.group_keys,
            self.world.entropy,
            member=self.attic.person.keys,
        )


def test_honest_server() -> None:
    stage = Stage()
    assert stage.world.put(stage.request) == ""
    assert set(stage.world.state.requests) == {stage.stranger.id}
    raw = stage.greeting()
    assert stage.world.put(raw) == ""
    opened = open_welcome(raw, stage.code, stage.stranger)
    assert opened.group_keys == stage.world.group_keys
    assert opened.member_seed == stage.attic.person.keys.seed
    assert opened.signed_by(stage.attic.keys.sign_public)
    assert not opened.signed_by(stage.stranger.sign_public)


def test_server_sees_no_key_and_no_name() -> None:
    stage = Stage()
    seen = stage.request + stage.greeting()
    for secret in (
        stage.code.secret,
        stage.code.lobby_key,
        stage.stranger.sign_public,
        *stage.world.group_keys.values(),
    ):
        assert secret not in seen and canonical.pack(secret).encode() not in seen
    assert b"Kitchen" not in seen


def test_server_cannot_ask_by_guessing() -> None:
    stage = Stage()
    mallory = DeviceKeys.generate(stage.world.entropy)
    for seed in range(20):
        guess = Code(SeededEntropy(seed).bytes(16), stage.code.group, stage.code.address, False)
        raw = join_request(guess, mallory, "Mallory", stage.world.entropy)
        assert stage.world.put(raw) != ""
        value = {**canonical.decode(raw), "invitation": stage.code.invitation}
        assert stage.world.put(canonical.encode(value)) != ""
    assert stage.world.state.requests == {}


def test_insider_who_knows_what_the_log_knows_cannot_ask() -> None:
    """A removed device has the lobby key and the public key of invitations it saw, and not the secret."""
    stage = Stage()
    mallory = DeviceKeys.generate(stage.world.entropy)

    class Half(Code):
        @property
        def invitation(self) -> str:
            return stage.code.invitation

        @property
        def lobby_key(self) -> bytes:
            return stage.code.lobby_key

    half = Half(bytes(16), stage.code.group, stage.code.address, False)
    assert stage.world.put(join_request(half, mallory, "Mallory", stage.world.entropy)) != ""
    assert stage.world.state.requests == {}


def test_server_cannot_substitute_or_damage() -> None:
    stage = Stage()
    value = canonical.decode(stage.request)
    other = Stage()
    elsewhere = join_request(
        new_code("cd" * 16, "memory#y", stage.world.entropy, new_member=False),
        stage.stranger,
        "K",
        stage.world.entropy,
    )
    attempts = [elsewhere, other.request if other.world.state.id != stage.world.state.id else b"x"]
    for field in ("box", "sig"):
        data = bytearray(canonical.unpack(value[field]))
        data[len(data) // 2] ^= 1
        attempts.append(canonical.encode({**value, field: canonical.pack(bytes(data))}))
    attempts.append(canonical.encode({**value, "group": "cd" * 16}))
    attempts.append(canonical.encode({**value, "extra": 1}))
    for raw in attempts:
        assert stage.world.put(raw) != ""
    assert stage.world.state.requests == {}


def test_server_gains_nothing_by_repeating() -> None:
    stage = Stage()
    for _ in range(5):
        stage.world.put(stage.request)
    assert len(stage.world.state.requests) == 1
    newcomer = stage.world.machine("kitchen", stage.attic.person)
    approval = stage.world.approval(newcomer, by="attic")
    entry = Approved(
        device=approval.device, sealed_keys=approval.sealed_keys, invitation=stage.code.invitation
    )
    stage.world.must("attic", entry)
    assert stage.world.state.requests == {}
    for _ in range(3):
        assert stage.world.put(stage.request) != ""
    assert stage.world.state.requests == {}
    with pytest.raises(Denied):
        open_request(stage.request, stage.world.state.id, stage.world.state.invitations)


def test_welcome_opens_for_its_device_alone_and_only_whole() -> None:
    stage = Stage()
    raw = stage.greeting()
    with pytest.raises(InvalidInput):
        open_welcome(raw, stage.code, DeviceKeys.generate(stage.world.entropy))
    wrong = new_code(stage.code.group, "memory#x", stage.world.entropy, new_member=False)
    with pytest.raises(InvalidInput):
        open_welcome(raw, wrong, stage.stranger)
    for at in range(0, len(raw), 7):
        damaged = raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :]
        try:
            opened = open_welcome(damaged, stage.code, stage.stranger)
        except InvalidInput:
            continue
        # Only the signature lies outside the box, and it is checked once the log tells the author's key.
        assert not opened.signed_by(stage.attic.keys.sign_public)


def test_fake_group_is_not_the_one_in_the_code() -> None:
    """The server invents a group of its own and even gets its keys to the newcomer: the first entry has another hash."""
    stage, fake = Stage(), World.founded(seed=7)
    state = GroupState(id=stage.code.group)
    for raw in fake.log:
        state = fold(state, raw, GroupOpener(stage.stranger, fake.group_keys))
    assert not state.devices and not state.generation


@given(st.binary(max_size=400))
def test_garbage_is_no_envelope(raw: bytes) -> None:
    keys = DeviceKeys(bytes(32), bytes(32))
    code = Code(bytes(16), GROUP, "memory#x", False)
    assert envelope_type(raw, GROUP) == ""
    with pytest.raises(InvalidInput):
        open_request(raw, GROUP, {})
    with pytest.raises(InvalidInput):
        open_welcome(raw, code, keys)


def test_new_member_is_bound_to_its_device() -> None:
    entropy = SeededEntropy(3)
    code = new_code(GROUP, "memory#x", entropy, new_member=True)
    keys, member = DeviceKeys.generate(entropy), MemberKeys.generate(entropy)
    raw = join_request(code, keys, "Front", entropy, member=member, member_name="Bob")
    made = Invitation(
        id=code.invitation,
        verify_key=code.signer.public,
        member="",
        role=Role.MEMBER,
        by="x",
        expires_ms=0,
        lobby_key=code.lobby_key,
    )
    device, request = open_request(raw, GROUP, {made.id: made})
    assert device == keys.id and request.member_key == member.public and request.member_name == "Bob"
