"""The programs that do the work, and the rights that they need."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from fractal.api.backend import Probe
from fractal.api.errors import BackendError, NotInstalled
from fractal_wireguard.config import WireguardConfig

PACKAGES = {
    "wg": "wireguard-tools",
    "ip": "iproute2",
    "nft": "nftables",
    "haproxy": "haproxy",
    "setpriv": "util-linux",
}
TUN = Path("/dev/net/tun")
_NET_ADMIN = 12


def check() -> None:
    """Raises NotInstalled or BackendError saying what is missing and what brings it."""
    # On a user's path /usr/sbin may be missing; the agent started by systemd has it.
    absent = [name for name in PACKAGES if shutil.which(name) is None]
    if absent:
        packages = " ".join(PACKAGES[name] for name in absent)
        raise NotInstalled(
            f"transport wireguard: {', '.join(absent)} not found: install {packages} (Debian's names)"
        )
    if not has_net_admin():
        raise BackendError(
            "transport wireguard: the right to configure networks (CAP_NET_ADMIN) is missing: run the agent as root"
        )


def check_user_space() -> None:
    """What wireguard-go needs. Raises NotInstalled, BackendError."""
    if shutil.which("wireguard-go") is None:
        raise NotInstalled(
            "transport wireguard: the kernel has no WireGuard and there is no wireguard-go: load the module "
            "(modprobe wireguard) or install wireguard-go (Debian's name)"
        )
    if not TUN.exists():
        raise BackendError(
            f"transport wireguard: {TUN} is missing, which wireguard-go needs: load the module tun, or let this machine have it"
        )


def has_net_admin() -> bool:
    """Whether this process holds CAP_NET_ADMIN."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("CapEff:"):
            return bool(int(line.split()[1], 16) >> _NET_ADMIN & 1)
    return os.geteuid() == 0


def probe(_config: WireguardConfig) -> Probe:
    """Whether the transport could be opened here, without changing anything."""
    try:
        check()
        if Path("/sys/module/wireguard").exists():
            return Probe(True, "the kernel's WireGuard, HAProxy, nftables")
        check_user_space()
    except BackendError as error:
        return Probe(False, str(error))
    return Probe(
        True, "wireguard-go (or the kernel's WireGuard, if its module can be loaded), HAProxy, nftables"
    )
