"""A certificate by a real authority that looks through a gateway which cannot read."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import pytest
from acme import challenges
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from fractal_acme.authority import AcmeAuthority, open_acme
from fractal_acme.config import AcmeConfig
from fractal_acme.proof import IDENTIFIER, Challenge, proof
from fractal_acme.testing import Pebble

from fractal.api.errors import BackendError, Misconfigured
from fractal.api.transport import Certificate, LocalRoute, Peer, RouteKind, SupportsChallenge, Target
from fractal.shell.entropy import SystemEntropy
from fractal.testing.context import real_context
from fractal.testing.transport_parts import GROUP, Bed, web_app

NAME = "calendar.example.test"


async def lead(bed: Bed, name: str = NAME) -> SupportsChallenge:
    """The gateway leads the name to the first device, which serves nothing yet."""
    device, other = bed.devices
    peers = [Peer(device=d, contact=t.contact()) for d, t in bed.devices.items()]
    target = Target(
        group=GROUP,
        app="app0",
        name=name,
        kind=RouteKind.HTTPS,
        device=device,
        contact=bed.devices[device].contact(),
        epoch=1,
    )
    await bed.gateway.forward(peers, [target])
    gateway = Peer(device=bed.gateway_id, contact=bed.gateway.contact())
    for transport in bed.devices.values():
        await transport.serve([gateway], [])
    found = bed.devices[device]
    assert isinstance(found, SupportsChallenge) and other != device
    return found


def answering(
    transport: SupportsChallenge, seen: list[Certificate | None]
) -> Callable[[Certificate | None], Awaitable[None]]:
    async def answer(shown: Certificate | None) -> None:
        seen.append(shown)
        await transport.challenge(GROUP, "app0", NAME, shown)

    return answer


async def test_a_certificate_is_issued_through_the_gateway_and_serves(
    bed: Bed, ca: Pebble, authority: AcmeAuthority
) -> None:
    transport, seen = await lead(bed), list[Certificate | None]()
    issued = await authority.issue(NAME, b"", answering(transport, seen))
    assert len(seen) == 2 and seen[0] is not None and seen[1] is None
    leaf = x509.load_pem_x509_certificate(issued.certificate.chain)
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == [NAME]
    key = serialization.load_pem_private_key(issued.certificate.key, None)
    assert key.public_key() == leaf.public_key()

    # A client that trusts the authority, and nobody else, gets as far as the app.
    async with web_app("first") as app:
        route = LocalRoute(
            group=GROUP,
            app="app0",
            name=NAME,
            kind=RouteKind.HTTPS,
            host="127.0.0.1",
            port=app.port,
            certificate=issued.certificate,
        )
        device = next(iter(bed.devices.values()))
        await device.serve([Peer(device=bed.gateway_id, contact=bed.gateway.contact())], [route])
        trust = ssl.create_default_context(cadata=ca.roots().decode())
        reader, writer = await asyncio.open_connection(*bed.https, ssl=trust, server_hostname=NAME)
        writer.write(f"GET / HTTP/1.1\r\nHost: {NAME}\r\nConnection: close\r\n\r\n".encode())
        assert b'"app": "first"' in await reader.read()
        writer.close()


async def test_the_account_is_used_again_and_is_not_the_certificates_key(
    bed: Bed, authority: AcmeAuthority
) -> None:
    transport = await lead(bed)
    first = await authority.issue(NAME, b"", answering(transport, []))
    again = await authority.issue(NAME, first.account, answering(transport, []))
    assert again.account == first.account
    assert len({first.account, first.certificate.key, again.certificate.key}) == 3


async def test_a_name_that_leads_elsewhere_is_not_certified_and_nothing_is_left_answered(
    bed: Bed, authority: AcmeAuthority
) -> None:
    transport, seen = await lead(bed, "other.example.test"), list[Certificate | None]()
    with pytest.raises(BackendError, match=NAME) as failed:
        await authority.issue(NAME, b"", answering(transport, seen))
    assert failed.value.retryable and seen[-1] is None
    assert "PRIVATE KEY" not in str(failed.value)


async def test_a_proof_is_as_the_standard_wants_it() -> None:
    import hashlib

    from josepy.b64 import b64encode
    from josepy.jwk import JWKEC

    from fractal.api.certificates import new_key

    account = JWKEC(key=new_key(SystemEntropy()))
    challenge = challenges.Challenge.from_json(
        {"type": "tls-alpn-01", "token": "evaGxfADs6pSRb2LAv9IZf17Dt3juxGJ-PCt92wr-oA"}
    )
    assert isinstance(challenge, Challenge)
    shown = x509.load_pem_x509_certificate(
        proof(challenge, account, NAME, SystemEntropy(), 1_790_000_000_000).chain
    )
    found = shown.extensions.get_extension_for_oid(x509.ObjectIdentifier(IDENTIFIER))
    thumb = b64encode(account.thumbprint()).decode()
    wanted = hashlib.sha256(f"evaGxfADs6pSRb2LAv9IZf17Dt3juxGJ-PCt92wr-oA.{thumb}".encode()).digest()
    assert found.critical and found.value.public_bytes() == b"\x04\x20" + wanted


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"accept_terms": False}, "accept_terms"),
        ({"ca_file": None}, "cannot be reached"),
        ({"directory": "https://localhost:1/dir"}, "cannot be reached"),
    ],
    ids=["terms", "a server that is not trusted", "nobody there"],
)
async def test_what_is_configured_wrongly_is_said(
    bed: Bed, ca: Pebble, tmp_path: Path, wrong: dict[str, object], message: str
) -> None:
    good = AcmeConfig(directory=ca.directory, ca_file=ca.ca_file, accept_terms=True)
    config = replace(good, **wrong)  # type: ignore[arg-type]
    transport = await lead(bed)
    async with real_context(tmp_path / "wrong") as context, open_acme(context, config) as authority:
        with pytest.raises(BackendError, match=message):
            await authority.issue(NAME, b"", answering(transport, []))


async def test_an_account_that_cannot_be_read_is_no_reason_to_make_another(
    bed: Bed, authority: AcmeAuthority
) -> None:
    with pytest.raises(BackendError, match="account key cannot be read") as failed:
        await authority.issue(NAME, b"rubbish", answering(await lead(bed), []))
    assert "rubbish" not in str(failed.value)


@pytest.mark.parametrize(
    "config", [{"directory": "http://plain.example/dir"}, {"ca_file": Path("/nowhere.pem")}]
)
async def test_settings_that_cannot_work_are_refused_at_start(
    config: dict[str, object], tmp_path: Path
) -> None:
    async with real_context(tmp_path) as context:
        with pytest.raises(Misconfigured):
            async with open_acme(context, AcmeConfig(**config)):  # type: ignore[arg-type]
                pass
