"""The key of a fork and its secrets, from a device that reads the origin's for one that does not.

A device that manages an app without being trusted with its contents (a gateway, a laptop that hosts nothing) may fork it all the
same. It asks a device that holds the app's key. That one makes the key pair of the fork, seals its secret to the devices
that host it, and seals the app's secrets to it. The asker gets only what it cannot open, and writes the entry itself, in its own name:
what the log says was done by whoever did it, and is judged by that member's rights.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fractal.api.canonical import pack, unpack
from fractal.api.errors import BackendError, Corrupt, Denied, InvalidInput, NotFound, Unreachable
from fractal.api.plain import from_plain, to_plain
from fractal.core.fold_apps import CERTIFICATE
from fractal.core.model import App, AppKey, GroupState, Policy
from fractal.core.placement import may_trust
from fractal.crypto.keys import app_keypair, seal_to

if TYPE_CHECKING:
    from fractal.agent.group import GroupAgent
    from fractal.api.context import Entropy

QUESTION = "fork.key"
"""What is asked of the other device; no command of a person."""


@dataclass(frozen=True, slots=True)
class ForkKey:
    """The first generation of a fork's key, and the secrets that the fork starts with."""

    key: AppKey
    secrets: Mapping[str, bytes]
    """Sealed to it."""


def new_key(entropy: Entropy, state: GroupState, policy: Policy, member: str) -> AppKey:
    """The first generation of the key of an app of `member`, sealed to every device that the policy trusts."""
    public, secret = app_keypair(entropy)
    hosts = may_trust(state, policy.trust, policy.devices, member)
    return AppKey(
        generation=1,
        public=public,
        sealed={d: seal_to(state.devices[d].box_key, secret, entropy) for d in hosts},
    )


def sealed_secrets(entropy: Entropy, public: bytes, values: Mapping[str, str]) -> dict[str, bytes]:
    """Secrets sealed to an app's key."""
    return {name: seal_to(public, value.encode(), entropy) for name, value in values.items()}


async def fork_key(group: GroupAgent, origin: App) -> ForkKey:
    """For a fork by this device. Raises Unreachable if it takes another device and none answers, Denied, Corrupt."""
    member = group.state.devices[group.me].member
    carried = _carried(origin.secrets)
    try:
        # Without secrets there is nothing to read, and any device makes the key.
        return _made(group, origin, member) if carried else _empty(group, origin, member)
    except BackendError:
        pass  # this device does not hold the app's key
    holders = sorted(origin.keys[-1].sealed, key=lambda d: (d != origin.owner, d))
    refused: Unreachable | None = None
    for device in holders:
        if device == group.me or not group.online(device):
            continue
        try:
            answer = await group.remote.ask(device, QUESTION, {"app": origin.id})
        except Unreachable as error:
            refused = error
            continue
        wanted = may_trust(group.state, origin.policy.trust, origin.policy.devices, member)
        return _told(group.state.device_name(device), answer["result"], carried, wanted)
    if refused is not None:
        raise refused
    names = ", ".join(group.state.device_name(d) for d in holders if d != group.me)
    raise Unreachable(
        f"{origin.name} has secrets that this device cannot read, and no device that can is online: {names}"
    )


def answer_fork_key(group: GroupAgent, origin: App, asker: str) -> dict[str, object]:
    """For a fork by another device, whose right to fork was checked. Raises Denied, BackendError without the app's key.

    A fork belongs to who makes it, so its policy may trust other devices than the origin's: then this device does not let
    them have what the app's owner kept from them.
    """
    member = group.state.devices[asker].member
    policy = origin.policy
    hosts = set(may_trust(group.state, policy.trust, policy.devices, member))
    strangers = sorted(hosts - set(may_trust(group.state, policy.trust, policy.devices, origin.owner_member)))
    if strangers:
        names = ", ".join(group.state.device_name(d) for d in strangers)
        raise Denied(
            f"{origin.name} keeps its secrets to the devices of its owner: its fork would pass them on to {names}"
        )
    if not hosts:
        raise Denied(f"no device may host a fork of {origin.name}: change its policy first")
    made = _made(group, origin, member)
    group.logger.info("sealed the secrets of %s to a fork of %s", origin.name, group.state.device_name(asker))
    return {"key": to_plain(made.key), "secrets": {name: pack(value) for name, value in made.secrets.items()}}


def _carried(secrets: Collection[str]) -> frozenset[str]:
    # Certificates belong to names, not to data.
    return frozenset(name for name in secrets if not name.startswith(CERTIFICATE))


def _empty(group: GroupAgent, origin: App, member: str) -> ForkKey:
    return ForkKey(new_key(group.agent.entropy, group.state, origin.policy, member), {})


def _made(group: GroupAgent, origin: App, member: str) -> ForkKey:
    job = group.job(origin.id)
    if job is None:
        raise NotFound(f"{origin.name} is not known to this device's jobs yet; try again in a moment")
    opened = job.data.secrets()
    key = new_key(group.agent.entropy, group.state, origin.policy, member)
    values = {name: opened[name] for name in _carried(opened)}
    return ForkKey(key, sealed_secrets(group.agent.entropy, key.public, values))


def _told(
    device: str, answer: Mapping[str, Any], carried: Collection[str], hosts: Collection[str]
) -> ForkKey:
    """What another device answered, if it is the key of a fork. Raises Corrupt."""
    try:
        key = from_plain(AppKey, answer["key"])
        secrets = {str(name): unpack(value) for name, value in answer["secrets"].items()}
    except (InvalidInput, KeyError, TypeError, AttributeError) as error:
        raise Corrupt(f"{device} gave a key for the fork that makes no sense") from error
    if key.generation != 1 or set(key.sealed) != set(hosts) or set(secrets) != set(carried):
        raise Corrupt(f"{device} gave a key for another fork than the one asked for: try again")
    return ForkKey(key, secrets)
