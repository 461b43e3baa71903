"""Names as people type them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fractal.agent.control.contract import GROUP, Spec
from fractal.agent.control.names import UnknownName, check_new_name, find_group, resolve
from fractal.agent.control.params import Params
from fractal.api.errors import Conflict, ExitCode, InvalidInput, NotFound

NAMES = {
    "aabbccddeeff00112233": "Raspberry Pi",
    "aabbcc00000000000000": "Attic",
    "ffffff11111111111111": "attic",
    "00112233445566778899": "Kitchen",
    "99999999999999999999": "aabbccddeeff00112233",
}


@pytest.mark.parametrize(
    ("wanted", "meant"),
    [
        ("Raspberry Pi", "aabbccddeeff00112233"),
        ("  raspberry PI ", "aabbccddeeff00112233"),
        ("Attic", "aabbcc00000000000000"),
        ("attic", "ffffff11111111111111"),
        ("001122", "00112233445566778899"),
        ("00112233445566778899", "00112233445566778899"),
        # A name goes before an id, so that nobody can hide a device behind another's id; the id's owner is still found by prefix.
        ("aabbccddeeff00112233", "99999999999999999999"),
        ("aabbccddee", "aabbccddeeff00112233"),
    ],
)
def test_resolve(wanted: str, meant: str) -> None:
    assert resolve("device", wanted, NAMES) == meant


def test_unknown_names_get_a_suggestion_and_the_candidates() -> None:
    with pytest.raises(UnknownName, match="did you mean 'Kitchen'") as caught:
        resolve("device", "Kitchn", NAMES)
    assert caught.value.exit_code == ExitCode.NOT_FOUND
    assert "Raspberry Pi" in caught.value.candidates
    with pytest.raises(UnknownName, match="no device yet"):
        resolve("device", "x", {})


@pytest.mark.parametrize("wanted", ["ATTIC", "aabbcc"])
def test_ambiguous_names_get_the_ids(wanted: str) -> None:
    with pytest.raises(UnknownName, match="ambiguous") as caught:
        resolve("device", wanted, NAMES)
    assert caught.value.exit_code == ExitCode.USAGE
    assert caught.value.code == "ambiguous"
    assert all("(" in candidate for candidate in caught.value.candidates)


def test_short_beginnings_of_ids_mean_nothing() -> None:
    with pytest.raises(UnknownName):
        resolve("device", "00112", NAMES)


@given(st.text(max_size=200), st.dictionaries(st.text(max_size=12), st.text(max_size=12), max_size=6))
def test_resolve_is_total(wanted: str, names: dict[str, str]) -> None:
    try:
        assert resolve("device", wanted, names) in names
    except UnknownName as error:
        assert str(error)


class Journal:
    def __init__(self, name: str) -> None:
        self.state = type("State", (), {"name": name})()


class Group:
    def __init__(self, name: str) -> None:
        self.journal = Journal(name)


def chosen(names: dict[str, str], wanted: str | None) -> str:
    agent = type("Agent", (), {"groups": {i: Group(n) for i, n in names.items()}})()
    params = Params(Spec(name="x.y", summary="", params={"group": GROUP}), {"group": wanted})
    name: str = find_group(agent, params).journal.state.name
    return name


def test_the_group_may_be_left_out_when_there_is_one() -> None:
    assert chosen({"a1": "Group 1"}, None) == "Group 1"
    assert chosen({"a1": "Group 1", "b2": "Home"}, "home") == "Home"
    with pytest.raises(NotFound, match="group create"):
        chosen({}, None)
    with pytest.raises(UnknownName, match="say which with --group") as caught:
        chosen({"a1": "Group 1", "b2": "Home"}, None)
    assert caught.value.candidates == ("Group 1", "Home")


@pytest.mark.parametrize("name", ["", "  ", "x" * 81, "a\nb", "a\x1b[31mb"])
def test_names_that_cannot_be_given(name: str) -> None:
    with pytest.raises(InvalidInput):
        check_new_name("device", name, ["Attic"])


def test_a_name_that_is_taken_is_a_conflict() -> None:
    with pytest.raises(Conflict, match="is taken by another device") as caught:
        check_new_name("device", "ATTIC", ["Attic"])
    assert caught.value.exit_code == ExitCode.CONFLICT


def test_new_names_are_stripped() -> None:
    assert check_new_name("device", " Front door ", ["Attic"]) == "Front door"


def test_what_is_unknown_is_said_in_whole_sentences() -> None:
    for names, text in (
        ({}, "no app 'cal': there is no app yet"),
        ({"1": "radicale"}, "no app 'cal'. Known: radicale."),
        ({"1": "call"}, "no app 'cal': did you mean 'call'? Known: call."),
    ):
        with pytest.raises(UnknownName) as caught:
            resolve("app", "cal", names)
        assert str(caught.value) == text
