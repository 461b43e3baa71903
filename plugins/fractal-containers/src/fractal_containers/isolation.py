"""What an app's containers are kept from, by a table of nftables on this device.

Every run has bridges of its own, and all bridges of a device begin alike (`labels.bridges`). What comes in by such a
bridge may go to the same bridge, to the engine's resolver, and, unless the bridge is closed, to the internet: not to this
device, to other apps or bridges, into tunnels, or to private networks. What comes from elsewhere reaches a container only as an answer, or where somebody
redirects to it on purpose.

The table's priority lets it have its say before the engine's and the distribution's own rules; what it lets pass is still
theirs to refuse. It is set as one transaction, as often as one likes, and stands while the engine restarts.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterable, Sequence

from fractal.api.context import Context
from fractal.api.errors import BackendError, Misconfigured
from fractal_containers.found import Network
from fractal_containers.labels import bridges

PRIVATE4 = (
    "0.0.0.0/8",
    "10.0.0.0/8",
    "100.64.0.0/10",
    "127.0.0.0/8",
    "169.254.0.0/16",
    "172.16.0.0/12",
    "192.0.0.0/24",
    "192.88.99.0/24",
    "192.168.0.0/16",
    "198.18.0.0/15",
    "224.0.0.0/4",
    "240.0.0.0/4",
)
"""What IANA's IPv4 Special-Purpose Address Registry (RFC 6890) lists as not globally reachable, with what is no longer so
(anycast of 6to4, RFC 7526), and multicast (RFC 5771). Documentation's addresses (RFC 5737) are left out: nobody has them, and
tests' internet is made of them."""
PRIVATE6 = (
    "::/8",
    "100::/63",
    "2001::/23",
    "2002::/16",
    "5f00::/16",
    "fc00::/7",
    "fe80::/9",
    "ff00::/8",
)
"""The same of the IPv6 registry. `::/8` holds loopback, IPv4 in IPv6, and what translators (64:ff9b::/96, 64:ff9b:1::/48) would
lead to the IPv4 addresses above; 2001::/23 and 2002::/16 are Teredo's and 6to4's, which do the same; 100::/63 is for
discarding; 5f00::/16 holds segment identifiers; fe80::/9 the link-local addresses and the former site-local ones."""
LOOK = 30.0
"""Seconds between looks whether the table is still there: a distribution's own firewall may clear everything."""
_RULES = """
add table inet {table}
add set inet {table} inside {{ type ifname . ifname; }}
add set inet {table} resolvers {{ type ifname . ipv4_addr; }}
add set inet {table} closed {{ type ifname; }}
add chain inet {table} outward
add chain inet {table} inward
add chain inet {table} here {{ type filter hook input priority -10; policy accept; }}
add chain inet {table} through {{ type filter hook forward priority -10; policy accept; }}
flush chain inet {table} here
flush chain inet {table} through
flush chain inet {table} outward
flush chain inet {table} inward
add rule inet {table} here iifname != "{ours}" accept
add rule inet {table} here ct state established,related accept
add rule inet {table} here meta l4proto {{ tcp, udp }} th dport 53 iifname . ip daddr @resolvers accept
add rule inet {table} here icmpv6 type {{ nd-neighbor-solicit, nd-neighbor-advert }} accept
add rule inet {table} here drop
add rule inet {table} through iifname . oifname @inside accept
add rule inet {table} through iifname "{ours}" goto outward
add rule inet {table} through oifname "{ours}" goto inward
add rule inet {table} outward oifname "fhs*" drop
add rule inet {table} outward ct state established,related accept
add rule inet {table} outward iifname @closed drop
{reach}
add rule inet {table} outward meta oifkind {{ "tun", "wireguard" }} drop
add rule inet {table} outward meta l4proto {{ tcp, udp }} th dport 53 accept
add rule inet {table} outward ip daddr {{ {private4} }} drop
add rule inet {table} outward ip6 daddr {{ {private6} }} drop
add rule inet {table} outward accept
add rule inet {table} inward ct state established,related accept
add rule inet {table} inward ct status dnat accept
add rule inet {table} inward drop
"""


class Isolation:
    """The table of one device."""

    def __init__(self, context: Context, reach: Sequence[str]) -> None:
        self._context = context
        self._prefix = bridges(context.device)
        self._reach = list(_reach(reach))
        self._looked = -LOOK  # at once: the table may have been cleared while no agent looked

    @property
    def table(self) -> str:
        """Its name, in the family `inet`."""
        return self._prefix

    async def ensure(self, networks: Iterable[Network]) -> None:
        """Set the table, with these networks among those that it knows. Raises BackendError; nothing is set by halves."""
        script = rules(self._prefix, self._reach, networks)
        try:
            await self._context.run(["nft", "-f", "-"], stdin=script.encode("ascii"))
        except BackendError as error:
            raise BackendError(
                f"apps cannot be kept apart: {error}; may the agent change the firewall (CAP_NET_ADMIN)?",
                retryable=True,
            ) from error

    async def keep(self, networks: Sequence[Network]) -> None:
        """From time to time, set it anew if somebody cleared it while runs have these networks."""
        now = self._context.clock.boottime()
        if not networks or now - self._looked < LOOK:
            return
        self._looked = now
        found = await self._context.run(["nft", "list", "table", "inet", self.table], check=False)
        if found.returncode:
            self._context.logger.warning("table inet %s is gone; setting it anew", self.table)
            await self.ensure(networks)

    async def forget(self, network: Network, *, last: bool) -> None:
        """What was set for a network that is gone; everything, if it was the `last`. Nothing to do if it is not there."""
        script = f"delete table inet {self.table}\n" if last else f"delete {_inside(self.table, network)}\n"
        await self._context.run(["nft", "-f", "-"], stdin=script.encode("ascii"), check=False)
        more = [_resolver(self.table, network)] if network.resolver else []
        more += [_closed(self.table, network)] if network.closed else []
        for element in more if not last else ():
            script = f"delete {element}\n"
            await self._context.run(["nft", "-f", "-"], stdin=script.encode("ascii"), check=False)

    def sees(self, network: Network) -> bool:
        """Whether the bridge of a container that runs is where the table is."""
        return network.bridge in {name for _, name in socket.if_nameindex()}


def rules(prefix: str, reach: Sequence[str], networks: Iterable[Network]) -> str:
    """The transaction that sets the table of the device whose bridges begin with `prefix`."""
    text = _RULES.format(
        table=prefix,
        ours=f"{prefix}*",
        reach="\n".join(f"add rule inet {prefix} outward {there} accept" for there in reach),
        private4=", ".join(PRIVATE4),
        private6=", ".join(PRIVATE6),
    )
    for network in networks:
        if not network.bridge:
            continue
        text += f"add {_inside(prefix, network)}\n"
        if network.resolver:
            text += f"add {_resolver(prefix, network)}\n"
        if network.closed:
            text += f"add {_closed(prefix, network)}\n"
    return text


def _inside(table: str, network: Network) -> str:
    return f'element inet {table} inside {{ "{network.bridge}" . "{network.bridge}" }}'


def _closed(table: str, network: Network) -> str:
    return f'element inet {table} closed {{ "{network.bridge}" }}'


def _resolver(table: str, network: Network) -> str:
    return f'element inet {table} resolvers {{ "{network.bridge}" . {network.resolver} }}'


def _reach(given: Sequence[str]) -> Iterable[str]:
    for text in given:
        try:
            network = ipaddress.ip_network(text)
        except ValueError as error:
            raise Misconfigured(
                "reach", f"{text!r} is not a network such as 192.168.1.0/24: {error}"
            ) from error
        yield f"{'ip' if network.version == 4 else 'ip6'} daddr {network}"
