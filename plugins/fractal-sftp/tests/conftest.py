"""A real sshd in a network namespace of its own, behind a cable that tests may pull."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from fractal_sftp.store import SftpStore, open_sftp
from fractal_sftp.testing import TIMEOUT, Cable, SshServer, cable, missing

from fractal.testing.context import real_context

Opener = Callable[..., AbstractAsyncContextManager[SftpStore]]


@pytest.fixture(scope="session")
def sshd() -> None:
    """Skips without a real sshd; fails instead with CI=true."""
    if reason := missing():
        if os.environ.get("CI") == "true":
            pytest.fail(f"{reason}, which CI does not allow")
        pytest.skip(reason)


@pytest.fixture(scope="session")
def plugged(sshd: None) -> Iterator[Cable]:
    """The cable that tests share which leave it alone."""
    with cable() as made:
        yield made


@pytest.fixture(scope="session")
def server(plugged: Cable, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SshServer]:
    """The server that tests share which leave it alone."""
    folder = tmp_path_factory.mktemp("sshd")
    with SshServer(folder, root=folder / "disk", address=plugged.address, enter=plugged.enter) as started:
        yield started


@pytest.fixture
def own_cable(sshd: None) -> Iterator[Cable]:
    """One for a test that pulls it."""
    with cable() as made:
        yield made


@pytest.fixture
def own_server(own_cable: Cable, tmp_path: Path) -> Iterator[SshServer]:
    """One for a test that pulls its cable, stops it or starts it anew."""
    made = SshServer(
        tmp_path / "sshd",
        root=tmp_path / "disk",
        address=own_cable.address,
        enter=own_cable.enter,
        patience=TIMEOUT,
    )
    with made:
        yield made


@pytest.fixture
def opener(tmp_path: Path) -> Opener:
    """Opens stores, each as a device of its own."""
    numbers = count()

    @asynccontextmanager
    async def opened(server: SshServer, path: Path | str, **more: Any) -> AsyncIterator[SftpStore]:
        folder = tmp_path / f"device-{next(numbers)}"
        server.let_in_device(folder / "state", folder.name)
        async with (
            real_context(folder, device=folder.name) as context,
            open_sftp(context, server.settings(path, **more)) as store,
        ):
            yield store

    return opened
