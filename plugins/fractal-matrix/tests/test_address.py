"""Addresses and invitations, which come out of codes that people paste; bytes in JSON; the file of accounts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from fractal_matrix.accounts import Account, Accounts, Known, with_login, with_room
from fractal_matrix.address import Address, is_user, parse_address
from fractal_matrix.names import pack, unpack
from hypothesis import given
from hypothesis import strategies as st

from fractal.api.coordination import MAX_ENTRY
from fractal.api.errors import BackendError, InvalidInput

PLAIN = "matrix:https://hs.example.org:8448#!abc_DEF-1"


def test_an_invitation_is_an_address_and_more() -> None:
    """The rest is not part of what is kept or shown."""
    found = parse_address(f"{PLAIN}?user=homeserver-12&token=a.b~c")
    assert (found.url, found.room) == ("https://hs.example.org:8448", "!abc_DEF-1")
    assert (found.plain, found.user, found.token) == (PLAIN, "homeserver-12", "a.b~c")
    assert parse_address(found.admission) == found
    assert parse_address(PLAIN) == Address("https://hs.example.org:8448", "!abc_DEF-1")
    assert "a.b~c" not in repr(found)


@pytest.mark.parametrize(
    "text",
    [
        "matrix:http://example.org#!a",
        "matrix:https://example.org#a",
        "matrix:https://example.org#!a/../b",
        "matrix:https://example.org/x#!a",
        "matrix:https://u:p@example.org#!a",
        "matrix:https://example.org?x#!a",
        "matrix:https://exa mple.org#!a",
        "matrix:https://example.org:99999#!a",
        "matrix:#!a",
        f"{PLAIN}?user=&token=x",
        f"{PLAIN}?user=UPPER&token=x",
        f"{PLAIN}?user=a&token=x%20y",
        f"{PLAIN}?user=a&user=b/&token=" + "x" * 65,
        f"{PLAIN}?",
        "sqlite#abc",
    ],
)
def test_other_texts_are_refused(text: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        parse_address(text)
    assert "token=" not in str(caught.value)


@given(st.text(max_size=200))
def test_any_text_is_an_address_or_refused(text: str) -> None:
    """Never another error."""
    for candidate in (text, f"matrix:{text}", f"matrix:https://a#{text}", f"{PLAIN}?{text}"):
        try:
            parse_address(candidate)
        except InvalidInput:
            continue


@given(st.binary(max_size=300))
def test_bytes_come_back(data: bytes) -> None:
    assert unpack(pack(data), 300) == data
    assert json.dumps(pack(data))[1:-1] == pack(data)


def test_the_largest_entry_fits_into_an_event() -> None:
    """64,500 bytes of content were taken by Synapse, 65,000 were not."""
    assert len(json.dumps({"v": 1, "token": "t" * 128, "entry": pack(bytes(MAX_ENTRY))})) < 64_500


@pytest.mark.parametrize("text", [None, 7, "~" * 5, "0 1", "é", "0" * 10_000, "00000\n"])
def test_other_texts_are_no_bytes(text: object) -> None:
    assert unpack(text, 100) is None


@pytest.mark.parametrize(
    ("text", "sound"), [("@a:b", True), ("@a", False), ("a:b", False), ("@a:b c", False), ("a" * 20, False)]
)
def test_matrix_ids(text: str, sound: bool) -> None:
    assert is_user(text) is sound


def test_accounts_are_kept_and_shown_to_nobody(tmp_path: Path) -> None:
    """Also when another process wrote the file; and a damaged one is no reason to forget silently."""
    mine, theirs = Accounts(tmp_path), Accounts(tmp_path)
    assert mine.known() == Known()
    account = Account(
        url="https://a", user="@a:a", device="D", token="secret-token", password="secret-password"
    )
    theirs.write(with_room(with_login(Known(), account, "registration"), "!r", account))
    known = mine.known()
    assert known.rooms["!r"] == account
    assert "secret" not in repr(known)
    assert "registration" not in repr(known).replace("registration=", "")
    theirs.path.write_text('{"logins": 7}')
    with pytest.raises(BackendError, match="damaged"):
        mine.known()
