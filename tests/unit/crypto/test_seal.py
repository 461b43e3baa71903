"""Envelopes and seals: what opens, what never does, and what a log server learns from sizes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fractal.api import canonical
from fractal.api.coordination import MAX_ENTRY
from fractal.api.errors import Corrupt, InvalidInput
from fractal.core.entries import Answered, AppChanged, Challenged, GroupChanged
from fractal.core.log import Invalid, Opened
from fractal.crypto.seal import (
    SMALLEST_BUCKET,
    Envelope,
    GroupOpener,
    key_check,
    open_group,
    pad,
    parse_envelope,
    seal_group,
    unpad,
)
from fractal.testing.group import SeededEntropy, World

WORLD = World.founded()
KEY = bytes(range(32))
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53) + 1, 2**53 - 1) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(st.binary(max_size=500))
def test_garbage_is_no_envelope(data: bytes) -> None:
    with pytest.raises(InvalidInput):
        parse_envelope(data)
    assert isinstance(WORLD.opener.open(data, WORLD.state), Invalid)


@given(
    st.dictionaries(
        st.sampled_from(
            [
                "v",
                "type",
                "group",
                "author",
                "number",
                "prev",
                "position",
                "head",
                "generation",
                "box",
                "sig",
                "x",
            ]
        ),
        values,
    )
)
def test_objects_that_look_like_envelopes_are_judged_without_a_traceback(changes: dict[str, Any]) -> None:
    value = {**canonical.decode(WORLD.log[0]), **changes}
    try:
        raw = canonical.encode(value)
    except InvalidInput:
        return
    assert isinstance(WORLD.opener.open(raw, WORLD.state), Invalid)


@given(st.binary(max_size=3_000))
def test_padding_comes_off_and_hides_the_size(data: bytes) -> None:
    padded = pad(data)
    assert unpad(padded) == data
    assert len(padded) >= SMALLEST_BUCKET
    assert len(padded) <= max(SMALLEST_BUCKET, 1.25 * (len(data) + 4) + 1)


def test_padding_has_few_sizes_and_one_form() -> None:
    assert len({len(pad(bytes(n))) for n in range(16_384)}) <= 30
    good = pad(b"data")
    for bad in (b"", good[:3], good[:-1], good + b"\0", good[:-1] + b"\1", b"\xff" + good[1:], bytes(7)):
        with pytest.raises(InvalidInput):
            unpad(bad)


@given(st.binary(max_size=100), st.binary(max_size=20))
def test_a_group_seal_is_bound_to_key_and_context(plain: bytes, aad: bytes) -> None:
    sealed = seal_group(plain, KEY, aad, SeededEntropy(1))
    assert open_group(sealed, KEY, aad) == plain
    for key, other in ((KEY[::-1], aad), (KEY, aad + b"x")):
        with pytest.raises(Corrupt):
            open_group(sealed, key, other)
    for at in (0, len(sealed) // 2, len(sealed) - 1):
        with pytest.raises(Corrupt):
            open_group(sealed[:at] + bytes([sealed[at] ^ 1]) + sealed[at + 1 :], KEY, aad)
    with pytest.raises(Corrupt):
        open_group(sealed[:39], KEY, aad)


def test_entries_of_different_kinds_have_one_size() -> None:
    world = World.founded()
    sizes = {
        len(world.seal("attic", entry))
        for entry in (Answered(seen=1), Challenged(device="d" * 20), GroupChanged(name="x" * 60))
    }
    assert len(sizes) == 1


def test_nothing_of_the_inside_shows() -> None:
    raw = WORLD.seal("attic", GroupChanged(name="canary-canary-canary"))
    assert b"canary" not in raw
    assert b"group.changed" not in raw
    assert canonical.pack(b"canary-canary-canary").encode() not in raw


def test_an_entry_that_a_log_cannot_carry_is_refused_when_sealed() -> None:
    fits = AppChanged(app="a" * 16, manifest="x" * 24_000)
    assert len(WORLD.seal("attic", fits)) <= MAX_ENTRY
    with pytest.raises(InvalidInput, match="make it smaller"):
        WORLD.seal("attic", replace(fits, manifest="x" * 48_000))


def test_an_envelope_survives_its_own_bytes() -> None:
    raw = WORLD.seal("attic", Answered(seen=1))
    envelope = parse_envelope(raw)
    assert envelope.to_bytes() == raw
    assert "box=" not in repr(envelope)


@pytest.mark.parametrize("field", ["number", "position", "generation"])
def test_counts_are_counts(field: str) -> None:
    value = canonical.decode(WORLD.seal("attic", Answered(seen=1)))
    for wrong in (-1, True, None, "1", [1]):
        with pytest.raises(InvalidInput):
            parse_envelope(canonical.encode({**value, field: wrong}))


def test_the_same_signature_does_not_serve_another_purpose() -> None:
    envelope = parse_envelope(WORLD.seal("attic", Answered(seen=1)))
    assert isinstance(envelope, Envelope)
    assert envelope.signed() != envelope.aad()
    assert envelope.signed().startswith(b"fractal-homeserver/1 entry\0")


def test_a_key_that_fails_its_check_counts_as_absent() -> None:
    keys = WORLD.machines["attic"].keys
    right = WORLD.group_keys[1]
    assert WORLD.state.key_checks["1"] == key_check(right) != key_check(KEY)
    assert GroupOpener(keys, {1: KEY}).group_key(WORLD.state, 1) == right, (
        "the sealed one in the log is right"
    )
    stripped = replace(WORLD.state, group_keys={"1": {}})
    assert GroupOpener(keys, {1: KEY}).group_key(stripped, 1) is None
    assert GroupOpener(keys, {1: b"short"}).group_key(stripped, 1) is None
    assert GroupOpener(keys, {1: right}).group_key(stripped, 1) == right
    assert GroupOpener(keys).group_key(WORLD.state, 2) is None


def test_peek_shows_without_believing() -> None:
    raw = WORLD.seal("attic", GroupChanged(name="x"))
    assert WORLD.opener.peek(raw, WORLD.state) == (WORLD.machines["attic"].id, "group.changed", {"name": "x"})
    assert WORLD.opener.peek(b"noise", WORLD.state) == ("", "", {})
    assert isinstance(WORLD.opener.open(raw, WORLD.state), Opened)
