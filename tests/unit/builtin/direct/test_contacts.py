"""Contacts that other members' devices published, which need make no sense."""

from __future__ import annotations

import pytest

from fractal.api.errors import BackendError
from fractal.api.transport import Peer
from fractal.builtin.direct.device import _addresses
from fractal.builtin.direct.peers import read_contact
from fractal.builtin.direct.sockets import connect

HOSTS = ["a..b", ".", "x" * 70 + ".example", "a\0b", "\ud800", "b\xfccher\u200d.example", "x" * 5000, " "]


@pytest.mark.parametrize("host", HOSTS)
async def test_a_contact_that_is_no_host_harms_nobody_else(host: str) -> None:
    """One gateway's nonsense must not keep a device from serving the others."""
    assert await _addresses(Peer(device="d", contact={"host": host, "source": host})) == frozenset()
    assert await _addresses(Peer(device="d", contact={"host": host, "source": "127.0.0.1"})) == {"127.0.0.1"}
    with pytest.raises(BackendError):
        await connect(host, 1, timeout=5)


@pytest.mark.parametrize("host", ["", "a\0b", "\ud800", "x" * 254, "a b", "a/b"])
def test_what_cannot_be_a_host_is_no_contact(host: str) -> None:
    with pytest.raises(BackendError):
        read_contact("d", {"host": host, "port": "1", "token": "00" * 32})
    assert read_contact("d", {"host": "fe80::1%eth0", "port": "1", "token": "00" * 32}).host == "fe80::1%eth0"
