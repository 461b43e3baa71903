"""Single parts: what others have published, what programs answer, rights, files, the kernel's WireGuard where there is one."""

from __future__ import annotations

import base64
import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from fractal_wireguard.addresses import (
    NETWORK,
    interface_name,
    of_app,
    of_device,
    read_contact,
    write_contact,
)
from fractal_wireguard.config import WireguardConfig
from fractal_wireguard.firewall import Firewall, Port, Rules, table
from fractal_wireguard.gateway import _meeting
from fractal_wireguard.haproxy import parse_sessions
from fractal_wireguard.keys import own_key
from fractal_wireguard.link import TunnelLink, Wanted
from fractal_wireguard.testing import Streets, streets
from hypothesis import given
from hypothesis import strategies as st

from fractal.api.errors import BackendError, Misconfigured
from fractal.api.transport import RouteKind, Target
from fractal.shell.entropy import SystemEntropy
from fractal.testing.context import real_context

KEY = base64.b64encode(bytes(range(32))).decode()


@given(st.dictionaries(st.sampled_from(["key", "endpoint", "other"]), st.text() | st.just(KEY)))
def test_any_published_contact_is_read_or_refused(plain: dict[str, str]) -> None:
    """Whatever a device of the group writes must not reach a program's arguments unchecked."""
    try:
        contact = read_contact("d", plain)
    except BackendError:
        return
    assert len(base64.b64decode(contact.key, validate=True)) == 32
    assert not contact.host.startswith("-") and contact.port < 65536


@pytest.mark.parametrize(
    ("advertise", "endpoint"),
    [
        ("door.example.org", "door.example.org:51820"),
        ("door.example.org:4500", "door.example.org:4500"),
        ("192.0.2.1", "192.0.2.1:51820"),
        ("[2001:db8::1]", "[2001:db8::1]:51820"),
        ("[2001:db8::1]:99", "[2001:db8::1]:99"),
    ],
)
def test_contact_is_written_as_it_is_read(advertise: str, endpoint: str) -> None:
    config = WireguardConfig(advertise=advertise)
    plain = write_contact(KEY, config.advertise, config.udp_port)
    assert plain == {"key": KEY, "endpoint": endpoint}
    contact = read_contact("d", plain)
    assert contact.host and f"{contact.host}:{contact.port}" == endpoint.replace("[", "").replace("]", "")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("advertise", "a b"),
        ("advertise", "2001:db8::1"),
        ("interface", "-x"),
        ("interface", "a" * 16),
        ("port", 70000),
        ("mtu", 1200),
        ("mtu", 9000),
        ("segment", 1300),
        ("hold", 0.0),
    ],
)
def test_settings_that_cannot_work_are_named(key: str, value: object) -> None:
    with pytest.raises(Misconfigured, match=key):
        WireguardConfig(**{key: value})  # type: ignore[arg-type]


def test_addresses_are_told_apart_and_stay_in_their_network() -> None:
    import ipaddress

    found = {of_device(str(n)).v6 for n in range(500)} | {of_app(str(n), "a").v6 for n in range(500)}
    assert len(found) == 1000
    assert all(ipaddress.IPv6Address(text) in NETWORK for text in found)
    assert of_app("ab", "c") != of_app("a", "bc")
    assert len(interface_name("d" * 64)) <= 15


def test_two_apps_with_one_ipv4_address_are_told() -> None:
    """24 bits meet sooner or later; TLS uses the other address, which does not."""
    seen: dict[str, str] = {}
    number = 0
    while (app := str(number)) not in seen and (first := seen.setdefault(of_app("g", app).v4, app)) == app:
        number += 1
    assert of_app("g", first).v6 != of_app("g", app).v6
    targets = [
        Target(group="g", app=one, name=name, kind=kind, device="d")
        for one in (first, app)
        for name, kind in ((f":{len(one)}", RouteKind.TCP), (f"{one}.example", RouteKind.HTTPS))
    ]
    (problem,) = _meeting([("g", first), ("g", app)], ["d"], targets)
    assert app in str(problem) and of_app("g", app).v4 in str(problem)
    assert not _meeting([("g", first)], ["d"], targets[:2])


async def test_key_is_made_once_for_its_owner_only_and_refused_when_damaged(tmp_path: Path) -> None:
    path = tmp_path / "private.key"
    public = own_key(path, SystemEntropy())
    assert path.stat().st_mode & 0o777 == 0o600
    assert own_key(path, SystemEntropy()) == public != path.read_text().strip()
    said = subprocess.run(
        ["wg", "pubkey"], input=path.read_bytes(), capture_output=True, check=True, timeout=10
    )
    assert said.stdout.decode().strip() == public
    path.write_text("nonsense")
    with pytest.raises(BackendError, match=r"private\.key"):
        own_key(path, SystemEntropy())


SESSIONS = """\
0x561745240110: [27/Nov/2026:00:37:04.654094] id=2 proto=unix_stream source=unix:1
  frontend=GLOBAL (id=0 mode=tcp), listener=? (id=1) addr=unix:1
  server=<NONE> (id=-1)
0x7f298c027520: [27/Nov/2026:00:37:04.350477] id=1 proto=tcpv4 source=127.0.0.1:40146
  flags=0x4a, conn_retries=0, conn_exp=<NEVER> conn_et=0x000 srv_conn=0x56174517e650, pend_pos=(nil) waiting=0 epoch=0
  frontend=tls (id=2 mode=tcp), listener=? (id=1) addr=127.0.0.1:18443
  backend=home (id=3 mode=tcp) addr=::1:47970
  server=app (id=1) addr=fd68::7:47443
  scf=0x7f298c0274b0 flags=0x00000000 state=EST endp=CONN,0x7f298c0273c0,0x028c0001 sub=1
  scb=0x7f298c027a30 flags=0x00000001 state=EST endp=CONN,0x7f298c02ffc0,0x028c0001 sub=1
"""


def test_sessions_are_read() -> None:
    first, second = parse_sessions(SESSIONS)
    assert (first.frontend, first.established) == ("GLOBAL", False)
    assert (second.id, second.frontend) == ("0x7f298c027520", "tls")
    assert (second.source, second.came_to) == ("127.0.0.1:40146", "127.0.0.1")
    assert (second.leads_to, second.established) == ("fd68::7", True)


@given(st.text() | st.text(alphabet="0x f\n=:[]source frontend addr"))
def test_any_answer_is_read(text: str) -> None:
    parse_sessions(text)


@pytest.fixture(scope="module")
def somewhere() -> Iterator[Streets]:
    if os.geteuid() != 0:
        pytest.fail("needs root") if os.environ.get("CI") == "true" else pytest.skip("needs root")
    with streets() as made:
        yield made


def test_rules_are_taken_empty_and_full(somewhere: Streets, tmp_path: Path) -> None:
    app, gateway = of_app("g", "a"), of_device("g")
    full = Rules(
        gateways=frozenset({gateway.v4, gateway.v6}),
        arriving=frozenset({Port("udp", 53, app.v4)}),
        leading=frozenset({Port("tcp", 25, app.v4), Port("udp", 53, app.v4)}),
        held=frozenset({app.v4, app.v6}),
        apps=frozenset({app.v4, app.v6}),
    )
    for rules in (Rules(), full, full, Rules()):
        file = tmp_path / "rules"
        file.write_text(table("hstest", 1172, rules))
        somewhere.run("homea", "nft", "-f", str(file))


async def test_rules_that_somebody_cleared_are_set_anew(somewhere: Streets, tmp_path: Path) -> None:
    """As by `systemctl reload nftables`, whose file begins with `flush ruleset`."""
    full = Rules(gateways=frozenset({of_device("g").v6}), apps=frozenset({of_app("g", "a").v6}))
    with somewhere.inside("homea"):
        async with real_context(tmp_path) as context:
            firewall = Firewall(context, "hskeep", 1172)
            await firewall.keep()
            assert "fractal_hskeep" not in somewhere.run("homea", "nft", "list", "tables")
            await firewall.apply(full)
            before = somewhere.run("homea", "nft", "list", "table", "inet", "fractal_hskeep")
            assert of_device("g").v6 in before
            somewhere.run("homea", "nft", "flush", "ruleset")
            await firewall.keep()
            assert somewhere.run("homea", "nft", "list", "table", "inet", "fractal_hskeep") == before
            await firewall.close()
            assert "fractal_hskeep" not in somewhere.run("homea", "nft", "list", "tables")


def test_missing_right_is_named() -> None:
    """As in a container that was given none."""
    if os.geteuid() != 0:
        pytest.skip("root may write everything")
    code = "from fractal_wireguard.tools import probe; from fractal_wireguard.config import *; print(probe(WireguardConfig()))"
    argv = ["setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin", sys.executable, "-c", code]
    said = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=True).stdout
    assert "ready=False" in said and "CAP_NET_ADMIN" in said and "root" in said


async def test_kernel_does_what_wireguard_go_does(somewhere: Streets, tmp_path: Path) -> None:
    """Where the kernel has the module; everything but the making of the interface is the same code."""
    made = subprocess.run(
        ["ip", "-n", somewhere.names["homea"], "link", "add", "dev", "hstrial", "type", "wireguard"],
        capture_output=True,
        check=False,
        timeout=30,
    )
    if made.returncode != 0:
        pytest.skip("no WireGuard in this kernel")
    somewhere.ip("homea", "link delete dev hstrial\n")
    with somewhere.inside("homea"):
        async with real_context(tmp_path, device="kernel") as context:
            path = context.state_dir / "private.key"
            own = of_device("kernel")
            public = own_key(path, context.entropy)
            link = TunnelLink(context, WireguardConfig(), interface_name("kernel"), own, path)

            async def again() -> None:
                pytest.fail("only wireguard-go is started again")

            await link.open(41414, again)
            try:
                assert link.in_kernel
                await link.apply({KEY: Wanted(allowed=frozenset({f"{own.v6}/128"}), keepalive=25)})
                found = await link.peers()
                assert found[KEY].allowed == {f"{own.v6}/128"}
                again_link = TunnelLink(context, WireguardConfig(), interface_name("kernel"), own, path)
                await again_link.open(41414, again)
                assert await again_link.peers() == found, (
                    "an agent that starts again finds its tunnels as they were"
                )
                assert public
            finally:
                await link.close()
    with contextlib.suppress(RuntimeError):
        assert interface_name("kernel") not in somewhere.run("homea", "ip", "link")
