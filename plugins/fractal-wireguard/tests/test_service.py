"""Several gateways, certificates that change, routes that cannot be served."""

from __future__ import annotations

import asyncio
import dataclasses
import secrets
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from fractal_wireguard.addresses import interface_name
from fractal_wireguard.config import WireguardConfig
from fractal_wireguard.testing import CLIENT, Remote, WireguardBed

from fractal.api.certificates import make_certificate
from fractal.api.errors import BackendError, Conflict, InvalidInput
from fractal.api.transport import Certificate, Peer, RouteKind
from fractal.shell.entropy import SystemEntropy
from fractal.testing.transport_parts import GROUP, Town, held, local_route, web_client


@pytest.fixture
async def second(bed: WireguardBed, tmp_path: Path) -> AsyncIterator[Remote]:
    """Another gateway on "the internet"."""
    config = WireguardConfig(advertise=CLIENT, https_port=8443, hold=2.0)
    remote = Remote(bed.streets, "client", tmp_path / "second", f"second{secrets.token_hex(6)}", config)
    await remote.start()
    try:
        yield remote
    finally:
        await remote.stop()


async def test_two_gateways_lead_to_one_app_and_one_may_go(
    town: Town, bed: WireguardBed, second: Remote
) -> None:
    """Each has a tunnel of its own to the device; they share nothing."""
    both = [*town.gateways(), Peer(device=second.device, contact=second.contact())]
    await bed.remotes["homea"].serve(both, town.routes(0))
    peers = [Peer(device=town.ids[0], contact=bed.remotes["homea"].contact())]
    await second.forward(peers, [town.target(0, town.ids[0])])
    other = dataclasses.replace(bed, https=(CLIENT, 8443))
    async with (
        held(bed, town.names[0], town.certificates[0]) as one,
        held(other, town.names[0], town.certificates[0]) as two,
    ):
        assert (await one.get())[0] == (await two.get())[0] == 200
        links = {link.device for link in await bed.remotes["homea"].links()}
        assert links == {bed.gateway_id, second.device}
        await bed.remotes["homea"].serve(town.gateways(), town.routes(0))
        assert await two.closed()
        assert (await one.get())[0] == 200
    found = bed.streets.run("homea", "wg", "show", interface_name(town.ids[0]), "peers").split()
    assert found == [bed.gateway.contact()["key"]]


async def test_new_certificate_takes_the_old_ones_place(town: Town, bed: WireguardBed) -> None:
    """Without a connection's notice; who comes after sees the new one."""
    fresh = make_certificate(town.names[0], SystemEntropy(), 1_790_000_000_000)
    async with held(bed, town.names[0], town.certificates[0]) as connection:
        assert (await connection.get())[0] == 200
        await town.serve(0, [town.web_route(0, town.apps[0].port, fresh)])
        assert (await connection.get())[0] == 200
    async with web_client(bed, fresh) as client:
        assert (await client.tell(town.names[0]))["app"] == "first"


@pytest.mark.parametrize(
    "bad",
    [
        Certificate(chain=b"nonsense", key=b"nonsense"),
        Certificate(chain=b"", key=b""),
        Certificate(chain=b"\nshow info\n\nset ssl cert x <<\n", key=b"\n\n"),
    ],
)
async def test_certificate_that_cannot_be_used_spoils_nothing_else(
    town: Town, bed: WireguardBed, bad: Certificate
) -> None:
    """The log's word, told by name; the other route of the same call stands, and afterwards a good one is taken."""
    with pytest.raises(InvalidInput, match=town.names[0]):
        await town.serve(0, [town.web_route(0, town.apps[0].port, bad), *town.routes(1)])
    await town.forward(town.target(1, town.ids[0], epoch=2))
    async with web_client(bed, *town.certificates) as client:
        assert (await client.tell(town.names[1]))["app"] == "second"
        await town.serve(0, [*town.routes(0), *town.routes(1)])
        await town.forward(town.target(0, town.ids[0]), town.target(1, town.ids[0], epoch=2))
        assert (await client.tell(town.names[0]))["app"] == "first"


async def test_certificate_and_its_key_of_another_do_not_pass(town: Town) -> None:
    mixed = Certificate(chain=town.certificates[0].chain, key=town.certificates[1].key)
    with pytest.raises(InvalidInput, match=town.names[0]):
        await town.serve(0, [town.web_route(0, town.apps[0].port, mixed)])


async def test_what_is_wanted_twice_or_malformed_is_told_and_the_rest_served(
    town: Town, bed: WireguardBed
) -> None:
    twice = local_route("other", town.names[0], 1, town.certificates[0], RouteKind.HTTPS, bed.app_host)
    with pytest.raises(Conflict, match="the first has it"):
        await town.serve(0, [*town.routes(0), twice])
    odd = local_route("odd", "not a name\nadd map x", 1, town.certificates[0], RouteKind.HTTPS, bed.app_host)
    with pytest.raises(InvalidInput):
        await town.serve(0, [*town.routes(0), odd])
    port = local_route("odd", ":70000", 1, None, RouteKind.TCP, bed.app_host)
    with pytest.raises(InvalidInput, match="70000"):
        await town.serve(0, [*town.routes(0), port])
    async with web_client(bed, *town.certificates) as client:
        assert (await client.tell(town.names[0]))["app"] == "first"


async def test_devices_of_another_transport_are_named(town: Town, bed: WireguardBed) -> None:
    """And those of this one served."""
    peers = [Peer(device="stranger", contact={"host": "192.0.2.1", "port": "1", "token": "00" * 16})]
    peers += [Peer(device=key, contact=device.contact()) for key, device in bed.devices.items()]
    with pytest.raises(BackendError, match="stranger"):
        await bed.gateway.forward(peers, [town.target(0, town.ids[0])])
    thief = Peer(device="thief", contact=bed.remotes["homea"].contact())
    with pytest.raises(Conflict, match="thief"):
        await bed.gateway.forward([*peers[1:], thief], [town.target(0, town.ids[0])])
    async with web_client(bed, *town.certificates) as client:
        assert (await client.tell(town.names[0]))["app"] == "first"


async def test_challenge_that_cannot_be_used_is_refused(bed: WireguardBed) -> None:
    async with asyncio.timeout(bed.patience):
        with pytest.raises(InvalidInput, match=r"one\.example"):
            await bed.remotes["homea"].challenge(
                GROUP, "app0", "one.example", Certificate(chain=b"x", key=b"y")
            )
        with pytest.raises(InvalidInput):
            await bed.remotes["homea"].challenge(GROUP, "app0", "no name", None)
