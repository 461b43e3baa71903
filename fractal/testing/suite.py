"""What all contract suites share: declared capabilities, the guard against silent overrides, and a runner.

- A test marked `@requires("SupportsClone")` is skipped, with the reason, unless the author's class declares it in
  `capabilities`. What is declared is tested: it can fail, never skip.
- A contract test may be replaced only by one marked `pytest.mark.xfail(reason="...")`, so that a gap is visible in every run.
- `run_suites` runs finished classes in this process and tells each test's outcome: for `homeserver plugin check`, and for the
  tests that prove that a suite fails a broken backend.
"""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

import pytest

B = TypeVar("B")
F = TypeVar("F", bound=Callable[..., object])


def requires(capability: str) -> Callable[[F], F]:
    """Mark a contract test as one for backends that declare `capability` (the name of a `Supports*` protocol)."""

    def mark(test: F) -> F:
        test.__dict__["fractal_requires"] = (*test.__dict__.get("fractal_requires", ()), capability)
        return test

    return mark


class Contract(Generic[B]):
    """Base of every suite. An author subclasses a suite, never this."""

    capabilities: ClassVar[frozenset[str]] = frozenset()
    """Names of the optional protocols that the backend declares in its record."""
    optional: ClassVar[Mapping[str, type[Any]]] = {}
    """Set by each suite: every optional protocol of the kind, by name."""

    def __init_subclass__(cls, **options: object) -> None:
        """Refuse a contract test that is replaced by anything but a reasoned xfail."""
        super().__init_subclass__(**options)
        for name, member in vars(cls).items():
            if name.startswith("test_") and any(name in vars(base) for base in cls.__mro__[1:]):
                _check_override(cls, name, member)
        unknown = cls.capabilities - set(cls.optional)
        if unknown:
            known = ", ".join(sorted(cls.optional)) or "none"
            raise TypeError(f"{cls.__name__}.capabilities: unknown {sorted(unknown)}; this kind has: {known}")

    @pytest.fixture
    def backend(self) -> B:
        """The opened backend under test, empty. The one fixture that an author must override."""
        pytest.fail(f"{type(self).__name__} must override the fixture `backend`")

    @pytest.fixture(autouse=True)
    def _declared(self, request: pytest.FixtureRequest) -> None:
        test = getattr(request.node, "function", None)
        for capability in getattr(test, "fractal_requires", ()):
            if capability not in self.capabilities:
                pytest.skip(f"the backend does not declare {capability}")

    def opened(self, backend: B) -> Iterable[object]:
        """The opened backends behind the fixture; a suite whose fixture holds several says which."""
        return (backend,)

    async def test_capabilities_agree_with_protocols(self, backend: B) -> None:
        """What is declared is there, and what is there is declared."""
        for name, protocol in self.optional.items():
            for one in self.opened(backend):
                assert isinstance(one, protocol) == (name in self.capabilities), name


def _check_override(cls: type, name: str, member: object) -> None:
    marks: Iterable[pytest.Mark] = getattr(member, "pytestmark", ())
    if not any(mark.name == "xfail" and mark.kwargs.get("reason") for mark in marks):
        raise TypeError(
            f"{cls.__name__}.{name} replaces a contract test: mark it with pytest.mark.xfail(reason=...) or remove it"
        )


@dataclass(frozen=True, slots=True)
class Outcome:
    """How one test of a suite ended."""

    test: str
    """Name with parameters, without the class."""
    result: str
    """`passed` | `failed` | `skipped` | `xfailed` | `error` (a fixture failed, or the file could not be read)."""
    detail: str = ""
    """The failure's text, or the reason for skipping."""


def broken(
    suite: type[Contract[B]],
    open_backend: Callable[[Path], AbstractAsyncContextManager[B]],
    **attributes: object,
) -> type[Contract[B]]:
    """A finished class of `suite` over what `open_backend(tmp_path)` opens; `attributes` are set on the class."""

    async def backend(_self: Contract[B], tmp_path: Path) -> AsyncIterator[B]:
        async with open_backend(tmp_path) as opened:
            yield opened

    members = {"backend": pytest.fixture(backend), **attributes}
    return type(f"Test{suite.__name__}", (suite,), members)


def run_suites(
    classes: Mapping[str, type[Contract[Any]]], *options: str, only: Mapping[str, str] | None = None
) -> dict[str, list[Outcome]]:
    """Run each class in one pytest session inside this process; its outcomes by the class's key.

    Must not be called from a running event loop. `options` are further pytest options. `only` names, by a
    class's key, the one test to run of it. An empty list means that nothing ran.
    """
    names = {f"Test_{number}": key for number, key in enumerate(classes)}
    recorder = _Recorder({name: only[key] for name, key in names.items() if key in only} if only else {})
    token = f"suites_{id(recorder):x}"
    _handed_over[token] = {name: classes[key] for name, key in names.items()}
    try:
        with (
            tempfile.TemporaryDirectory(prefix="fractal-suite-") as folder,
            pytest.MonkeyPatch.context() as patch,
        ):
            # On CI pytest shows values that differ whole, line by line: that takes minutes for a few MiB.
            for name in ("CI", "BUILD_NUMBER"):
                patch.delenv(name, raising=False)
            # A file, as pytest collects from files only; the classes themselves come from this process.
            Path(folder, f"test_{token}.py").write_text(
                f"from fractal.testing import suite\n\nglobals().update(suite._handed_over[{token!r}])\n"
            )
            Path(folder, "pytest.ini").write_text(
                "[pytest]\nasyncio_mode = auto\nasyncio_default_fixture_loop_scope = function\n"
            )
            quiet = (
                "-q",
                "-p",
                "no:cacheprovider",
                "-p",
                "no:timeout",
                "-p",
                "no:faulthandler",
                "--import-mode=importlib",
            )
            pytest.main([folder, "-c", f"{folder}/pytest.ini", *quiet, *options], plugins=[recorder])
    finally:
        del _handed_over[token]
    outcomes: dict[str, list[Outcome]] = {key: [] for key in classes}
    for group, outcome in recorder.outcomes:
        if group not in names:
            raise RuntimeError(f"the suites could not be collected: {outcome.detail}")
        outcomes[names[group]].append(outcome)
    return outcomes


def failures(outcomes: Iterable[Outcome]) -> set[str]:
    """Names, without parameters, of the tests that failed in their own code (errors of fixtures do not count)."""
    return {outcome.test.partition("[")[0] for outcome in outcomes if outcome.result == "failed"}


_handed_over: dict[str, dict[str, type]] = {}


class _Recorder:
    """A pytest plugin that keeps each test's outcome."""

    def __init__(self, only: Mapping[str, str]) -> None:
        self.outcomes: list[tuple[str, Outcome]] = []
        self._only = only

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items[:] = [item for item in items if self._wanted(item)]

    def _wanted(self, item: pytest.Item) -> bool:
        _, group, test = item.nodeid.split("::", 2)
        return self._only.get(group) in {None, test.partition("[")[0]}

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self.outcomes.append(("", Outcome("", "error", str(report.longrepr))))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when != "call" and report.passed:
            return
        _, group, test = report.nodeid.split("::", 2)
        result: str = report.outcome if report.when == "call" or report.skipped else "error"
        if hasattr(report, "wasxfail"):
            result = "xfailed"
        self.outcomes.append((group, Outcome(test, result, report.longreprtext)))
