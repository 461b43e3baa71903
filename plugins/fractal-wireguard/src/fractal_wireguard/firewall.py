"""Packet filter and port forwarding: one nftables table of our own, replaced whole and only when it changed."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from fractal.api.context import Context
from fractal_wireguard.addresses import CHALLENGE_PORT, ENTRY_PORT, HEARTBEAT_PORT, NETWORK


@dataclass(frozen=True, slots=True, order=True)
class Port:
    """A public port that is passed on, packet by packet, or one at which such packets arrive."""

    kind: str
    """`tcp` or `udp`."""
    port: int
    address: str
    """Of the app, IPv4."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """Everything that the table depends on."""

    gateways: frozenset[str] = frozenset()
    """IPv6 and IPv4 addresses of gateways that this device uses."""
    arriving: frozenset[Port] = frozenset()
    """Ports that this device serves for its gateways."""
    leading: frozenset[Port] = frozenset()
    """Public ports of this gateway."""
    held: frozenset[str] = frozenset()
    """Addresses of apps that are changing hands: nothing new is begun towards them."""
    leaving: frozenset[str] = frozenset()
    """IPv6 addresses of apps that are about to stop here: what is under way may finish, nothing new is let in."""
    apps: frozenset[str] = field(default_factory=frozenset)
    """Addresses of apps that this device holds."""


class Firewall:
    """The table named after the interface."""

    def __init__(self, context: Context, interface: str, segment: int) -> None:
        self._context = context
        self._interface = interface
        self._name = table_name(interface)
        self._segment = segment
        self._file = context.runtime_dir / "rules.nft"
        self._applied = ""

    async def apply(self, rules: Rules) -> None:
        """Make exactly these rules stand, at one instant. Raises BackendError."""
        text = table(self._interface, self._segment, rules)
        if text == self._applied:
            return
        self._applied = ""
        await self._set(text)
        if rules.leading:
            self._forward()
        self._applied = text

    async def keep(self) -> None:
        """Set the table anew if somebody cleared it, as a distribution's own firewall does when it is loaded. Raises BackendError."""
        if not self._applied:
            return
        found = await self._context.run(["nft", "list", "table", "inet", self._name], timeout=10, check=False)
        if found.returncode:
            self._context.logger.warning("table inet %s is gone; setting it anew", self._name)
            await self._set(self._applied)

    async def _set(self, text: str) -> None:
        self._file.write_text(text)
        await self._context.run(["nft", "-f", str(self._file)], timeout=10)

    async def close(self) -> None:
        """Take the table away."""
        await self._context.run(["nft", "delete", "table", "inet", self._name], timeout=10, check=False)

    def _forward(self) -> None:
        path = Path("/proc/sys/net/ipv4/ip_forward")
        if path.read_text().strip() == "0":
            path.write_text("1")
            self._context.logger.info(
                "transport wireguard: switched net.ipv4.ip_forward on, for TCP and UDP routes"
            )


def table_name(interface: str) -> str:
    """Of the table of one interface, in the family `inet`."""
    return f"fractal_{interface}"


def table(interface: str, segment: int, rules: Rules) -> str:
    """The table's text. `add` and `delete` before it make the replacement one transaction that works the first time too."""
    name = table_name(interface)
    body = [
        *_sets(rules),
        *_input(interface),
        *_output(interface),
        *_forward(interface, segment),
        *_nat(interface, rules.leading),
    ]
    inner = "\n".join(f"  {line}" for line in body)
    return f"add table inet {name}\ndelete table inet {name}\ntable inet {name} {{\n{inner}\n}}\n"


def _sets(rules: Rules) -> Iterable[str]:
    yield _set("gateways", "ipv6_addr", (a for a in rules.gateways if ":" in a))
    yield _set("gateways4", "ipv4_addr", (a for a in rules.gateways if ":" not in a))
    yield _set("held", "ipv6_addr", (a for a in rules.held if ":" in a))
    yield _set("held4", "ipv4_addr", (a for a in rules.held if ":" not in a))
    yield _set("leaving", "ipv6_addr", rules.leaving)
    yield _set("apps", "ipv6_addr", (a for a in rules.apps if ":" in a))
    yield _set("apps4", "ipv4_addr", (a for a in rules.apps if ":" not in a))
    triple = "ipv4_addr . inet_proto . inet_service"
    yield _set("arriving", triple, (f"{p.address} . {p.kind} . {p.port}" for p in rules.arriving))
    yield _set("leading", triple, (f"{p.address} . {p.kind} . {p.port}" for p in rules.leading))


def _set(name: str, kind: str, elements: Iterable[str]) -> str:
    listed = ", ".join(sorted(elements))
    return f"set {name} {{ type {kind}; {f'elements = {{ {listed} }}; ' if listed else ''}}}"


def _input(interface: str) -> Iterable[str]:
    """From the tunnel: gateways reach what is served for them, everybody the heartbeat. From elsewhere: nobody reaches an app's address."""
    yield "chain input {"
    yield "  type filter hook input priority filter; policy accept;"
    yield f'  iifname {{ "{interface}", "lo" }} goto tunnel'
    yield "  ip6 daddr @apps drop"
    yield "  ip daddr @apps4 drop"
    yield '  iifname "hs*" return'  # of another agent on this machine
    yield f"  ip6 daddr {NETWORK} drop"
    yield f"  tcp dport {{ {ENTRY_PORT}, {CHALLENGE_PORT} }} fib daddr type local meta nfproto ipv6 drop"
    yield "}"
    yield "chain tunnel {"
    # Dropped, not refused: the gateway tries again, until another device has the address.
    yield "  ip6 daddr @leaving tcp flags & (syn | ack) == syn drop"
    yield '  iifname "lo" accept'
    yield "  ct state established,related accept"
    yield f"  ip6 daddr {NETWORK} udp dport {HEARTBEAT_PORT} accept"
    yield f"  ip6 saddr @gateways tcp dport {{ {ENTRY_PORT}, {CHALLENGE_PORT} }} accept"
    yield "  ip saddr @gateways4 ip daddr . meta l4proto . th dport @arriving accept"
    yield "  icmpv6 type { echo-request, packet-too-big, time-exceeded, parameter-problem } accept"
    yield "  icmp type { echo-request, destination-unreachable, time-exceeded } accept"
    yield "  drop"
    yield "}"


def _output(interface: str) -> Iterable[str]:
    yield "chain output {"
    yield "  type filter hook output priority filter; policy accept;"
    yield f'  oifname "{interface}" ip6 daddr @held tcp flags & (syn | ack) == syn drop'
    yield '  oifname "lo" ip6 daddr @held tcp flags & (syn | ack) == syn drop'
    yield "}"


def _forward(interface: str, segment: int) -> Iterable[str]:
    """Only what was let in at a public port, and its answers. From tunnel to tunnel: nothing, whatever `ip_forward` says."""
    yield "chain forward {"
    yield "  type filter hook forward priority filter; policy accept;"
    yield f'  iifname "{interface}" oifname "{interface}" drop'
    yield f'  iifname "{interface}" goto outward'
    yield f'  oifname "{interface}" goto inward'
    yield "}"
    yield "chain outward {"
    yield f"  tcp flags syn tcp option maxseg size > {segment} tcp option maxseg size set {segment}"
    yield "  ct state established,related ct status dnat accept"
    yield "  drop"
    yield "}"
    yield "chain inward {"
    yield f"  tcp flags syn tcp option maxseg size > {segment} tcp option maxseg size set {segment}"
    yield "  ct status dnat ct state new ip daddr @held4 drop"
    yield "  ct status dnat ip daddr . meta l4proto . th dport @leading accept"
    yield "  ct status dnat meta l4proto tcp reject with tcp reset"
    yield "  drop"
    yield "}"


def _nat(interface: str, leading: Iterable[Port]) -> Iterable[str]:
    yield "chain prerouting {"
    yield "  type nat hook prerouting priority dstnat; policy accept;"
    for port in sorted(leading):
        yield (
            f'  iifname != "{interface}" fib daddr type local meta nfproto ipv4 {port.kind} dport {port.port} '
            f"dnat ip to {port.address}"
        )
    yield "}"
    yield "chain postrouting {"
    yield "  type nat hook postrouting priority srcnat; policy accept;"
    # Devices let nothing in but the gateway's own address.
    yield f'  oifname "{interface}" ct status dnat meta nfproto ipv4 masquerade'
    yield "}"
