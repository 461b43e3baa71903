"""The mechanics that every contract suite stands on: a suite that cannot fail would prove nothing."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, ClassVar, Protocol, runtime_checkable

import pytest

from fractal.testing.suite import Contract, broken, failures, requires, run_suites


@runtime_checkable
class SupportsRing(Protocol):
    def ring(self) -> str: ...


class Bell:
    def __init__(self, sound: str) -> None:
        self.sound = sound

    def name(self) -> str:
        return "bell"


class RingingBell(Bell):
    def ring(self) -> str:
        return self.sound


class BellContract(Contract[Any]):
    optional: ClassVar[dict[str, type[Any]]] = {"SupportsRing": SupportsRing}

    async def test_name(self, backend: Any) -> None:
        assert backend.name() == "bell"

    @requires("SupportsRing")
    @pytest.mark.parametrize("times", [1, 2])
    async def test_ring(self, backend: Any, times: int) -> None:
        assert backend.ring() * times == "ding" * times


def bell(made: Any) -> Any:
    @asynccontextmanager
    async def opened(_: Path) -> AsyncIterator[Any]:
        yield made

    return opened


RINGS = frozenset({"SupportsRing"})


def test_outcomes_of_good_and_broken_backends() -> None:
    outcomes = run_suites(
        {
            "good": broken(BellContract, bell(RingingBell("ding")), capabilities=RINGS),
            "silent": broken(BellContract, bell(Bell(""))),
            "dull": broken(BellContract, bell(RingingBell("dull")), capabilities=RINGS),
            "boasting": broken(BellContract, bell(Bell("")), capabilities=RINGS),
            "modest": broken(BellContract, bell(RingingBell("ding"))),
        }
    )
    assert {outcome.result for outcome in outcomes["good"]} == {"passed"}
    assert len(outcomes["good"]) == 4
    skipped = [outcome for outcome in outcomes["silent"] if outcome.result == "skipped"]
    assert len(skipped) == 2
    assert "does not declare SupportsRing" in skipped[0].detail
    assert failures(outcomes["silent"]) == set()
    assert failures(outcomes["dull"]) == {"test_ring"}
    assert failures(outcomes["boasting"]) == {"test_capabilities_agree_with_protocols", "test_ring"}
    assert failures(outcomes["modest"]) == {"test_capabilities_agree_with_protocols"}


def test_a_failure_that_compares_much_is_told_in_short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CI", "true")  # where pytest cuts nothing, and lays all lines side by side
    suites = {"loud": broken(BellContract, bell(RingingBell("dang\n" * 500)), capabilities=RINGS)}
    details = [outcome.detail for outcome in run_suites(suites)["loud"] if outcome.result == "failed"]
    assert len(details) == 2
    assert all(len(detail) < 2000 for detail in details)


def test_a_fixture_that_fails_is_an_error_not_a_finding() -> None:
    class TestNothing(BellContract):
        pass

    outcomes = run_suites({"forgotten": TestNothing})["forgotten"]
    assert "error" in {outcome.result for outcome in outcomes}
    assert failures(outcomes) == set()
    assert any("must override the fixture" in outcome.detail for outcome in outcomes)


def test_one_test_alone_may_be_run() -> None:
    suites = {name: broken(BellContract, bell(Bell(""))) for name in ("all", "one")}
    outcomes = run_suites(suites, only={"one": "test_name"})
    assert [outcome.test for outcome in outcomes["one"]] == ["test_name"]
    assert len(outcomes["all"]) == 4


def test_a_contract_test_cannot_be_replaced_silently() -> None:
    async def test_name(self: object, backend: object) -> None:
        pass

    with pytest.raises(TypeError, match="replaces a contract test"):
        type("TestMine", (BellContract,), {"test_name": test_name})
    with pytest.raises(TypeError, match="replaces a contract test"):
        type("TestMine", (BellContract,), {"test_name": None})
    with pytest.raises(TypeError, match="replaces a contract test"):
        type("TestMine", (BellContract,), {"test_name": pytest.mark.xfail(test_name)})


def test_a_reasoned_xfail_shows_as_such() -> None:
    @pytest.mark.xfail(reason="this bell has another name", strict=True)
    async def test_name(self: object, backend: Bell) -> None:
        assert backend.name() == "gong"

    outcomes = run_suites({"gong": broken(BellContract, bell(Bell("")), test_name=test_name)})["gong"]
    assert [outcome.result for outcome in outcomes if outcome.test == "test_name"] == ["xfailed"]


def test_an_unknown_capability_is_refused() -> None:
    with pytest.raises(TypeError, match=r"SupportsRinging.*this kind has: SupportsRing"):
        type("TestMine", (BellContract,), {"capabilities": frozenset({"SupportsRinging"})})
