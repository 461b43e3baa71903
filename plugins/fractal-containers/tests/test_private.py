"""The addresses that no app reaches, held against IANA's special-purpose address registries."""

from __future__ import annotations

import ipaddress
import os
import shutil
import subprocess

import pytest
from fractal_containers.isolation import PRIVATE4, PRIVATE6, rules

NOT_REACHABLE = [
    "0.0.0.0/8",
    "10.0.0.0/8",
    "100.64.0.0/10",
    "127.0.0.0/8",
    "169.254.0.0/16",
    "172.16.0.0/12",
    "192.0.0.0/24",
    "192.0.0.0/29",
    "192.0.0.8/32",
    "192.0.0.170/31",
    "192.168.0.0/16",
    "198.18.0.0/15",
    "240.0.0.0/4",
    "255.255.255.255/32",
    "::1/128",
    "::/128",
    "::ffff:0:0/96",
    "64:ff9b:1::/48",
    "100::/64",
    "100:0:0:1::/64",
    "2001::/23",
    "2001:2::/48",
    "5f00::/16",
    "fc00::/7",
    "fe80::/10",
]
"""Both registries' lines that say "globally reachable: false", but for the addresses of documentation."""
LEADS_BACK = [
    "64:ff9b::/96",
    "2001::/32",
    "2002::/16",
    "192.88.99.0/24",
    "fec0::/10",
    "224.0.0.0/4",
    "ff00::/8",
]
"""Reachable or not by definition, these lead to addresses of the first list, or to more than one receiver."""
REACHABLE = [
    "1.1.1.1",
    "9.255.255.255",
    "11.0.0.0",
    "100.63.255.255",
    "100.128.0.0",
    "126.255.255.255",
    "128.0.0.0",
    "169.253.255.255",
    "172.15.255.255",
    "172.32.0.0",
    "191.255.255.255",
    "192.0.1.0",
    "192.167.255.255",
    "192.169.0.0",
    "198.17.255.255",
    "198.20.0.0",
    "223.255.255.255",
    "2000::",
    "2001:200::",
    "2003::",
    "2606:4700:4700::1111",
    "2a00:1450:4001::1",
    "3ffe::1",
]
"""Neighbours of what is private, and others on the internet."""
Network = ipaddress.IPv4Network | ipaddress.IPv6Network


def private(version: int) -> list[Network]:
    """What the firewall is given."""
    return [ipaddress.ip_network(text) for text in (PRIVATE4 if version == 4 else PRIVATE6)]


def within(inner: Network, outer: Network) -> bool:
    return inner.version == outer.version and inner[0] in outer and inner[-1] in outer


@pytest.mark.parametrize("text", NOT_REACHABLE + LEADS_BACK)
def test_what_is_not_globally_reachable_is_private(text: str) -> None:
    wanted = ipaddress.ip_network(text)
    assert any(within(wanted, network) for network in private(wanted.version))


@pytest.mark.parametrize("text", REACHABLE)
def test_the_internet_is_not(text: str) -> None:
    address = ipaddress.ip_address(text)
    assert not any(address in network for network in private(address.version))


@pytest.mark.parametrize("version", [4, 6])
def test_the_lists_are_sets(version: int) -> None:
    """nftables refuses a set with elements that overlap, and the whole table with it."""
    networks = private(version)
    pairs = [(a, b) for n, a in enumerate(networks) for b in networks[n + 1 :]]
    assert not [pair for pair in pairs if within(pair[0], pair[1]) or within(pair[1], pair[0])]
    text = rules("fhstest", [], [])
    assert all(str(network) in text for network in networks)


def test_nftables_takes_them() -> None:
    """Checked by the tool itself, changing nothing."""
    if os.geteuid() != 0 or shutil.which("nft") is None:
        reason = "nftables (Debian: nftables) answers root only"
        pytest.fail(reason) if os.environ.get("CI") == "true" else pytest.skip(reason)
    text = rules("fhstest", [], []).encode()
    tried = subprocess.run(["nft", "-cf", "-"], input=text, capture_output=True, timeout=20, check=False)
    assert tried.returncode == 0, tried.stderr.decode()
