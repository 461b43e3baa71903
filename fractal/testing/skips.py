"""A plugin of pytest: no test is silently left out.

With CI=true a skip is a failure, unless its reason is one of those below. It is loaded by name (`-p`), not as a `conftest.py`, which
would hold below its own folder only, and not for the plugins' tests.
"""

from __future__ import annotations

import os
from collections.abc import Generator

import pluggy
import pytest

ALLOWED = (
    # A question of a contract that the backend does not raise.
    "the backend does not declare ",
    "the store does not claim fencing",
    "the store is append-only",
    "the store deletes",
    # Of two tests that say the same, one for root and one for everybody else, only one can run.
    "root may write everything",
    # Machines that boot only cgroup v2; with neither version the tests of v2 fail.
    "cgroups of version 1 are not mounted here",
    "no cgroup v1 freezer",
    # A module that machines without it cannot bring.
    "no WireGuard in this kernel",
)
"""Beginnings of reasons. A tool, a library or a right that is missing is not one of them: CI brings it."""


def _refused(report: pytest.TestReport | pytest.CollectReport) -> str:
    """Why a skip may not be, or ""."""
    if os.environ.get("CI") != "true" or not report.skipped or hasattr(report, "wasxfail"):
        return ""
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    reason = reason.removeprefix("Skipped: ")
    return "" if reason.startswith(ALLOWED) else f"skipped, which CI does not allow: {reason}"


def _fail(report: pytest.TestReport | pytest.CollectReport) -> None:
    if refused := _refused(report):
        report.outcome = "failed"
        report.longrepr = refused


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport() -> Generator[None, pluggy.Result[pytest.TestReport], None]:
    _fail((yield).get_result())


@pytest.hookimpl(hookwrapper=True)
def pytest_make_collect_report() -> Generator[None, pluggy.Result[pytest.CollectReport], None]:
    _fail((yield).get_result())
