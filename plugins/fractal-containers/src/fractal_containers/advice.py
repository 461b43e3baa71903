"""What somebody can do about an engine's error, told by its words. Pure."""

from __future__ import annotations

import re

_OLD = re.compile(
    r"client version \S+ is too new|maximum supported API version|given version is not supported",
    re.IGNORECASE,
)
_FULL = re.compile(r"no space left on device|disk quota exceeded|ENOSPC", re.IGNORECASE)
_CROWDED = re.compile(
    r"address pools have been fully subnetted|non-overlapping IPv4 address pool|could not find free subnet",
    re.IGNORECASE,
)
_POOLS = {
    "docker": "`default-address-pools` in daemon.json",
    "podman": "`default_subnet_pools` in containers.conf",
}
_GONE = "does the engine run?"
_UNITS = {"docker": "docker", "podman": "podman.socket"}


def advised(message: str, engine: str, oldest: str) -> str:
    """An error's message with what to do about it, if its cause is a known one; `oldest` is the oldest version that is supported."""
    if _FULL.search(message):
        return (
            f"{message}; the disk on which {engine} keeps images and containers is full: free some of it "
            f"(`{engine} system df` shows what takes it), and it is tried again"
        )
    if _CROWDED.search(message):
        return f"{message}; the networks of the apps here take all addresses that {engine} has: give it more by {_POOLS.get(engine, 'its pools')}"
    if _OLD.search(message):
        return f"{message}; this {engine} does not fit: {oldest} or later is needed"
    if message.endswith(_GONE):
        return f"{message} `systemctl status {_UNITS.get(engine, engine)}` says; apps go on as soon as it answers"
    return message
