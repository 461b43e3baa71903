"""Certificates for the names of an app: its owner gets one for each, and a new one in time.

A certificate belongs to the app, not to the device. Chain, key and the account at the authority are secrets of the app, sealed
to its key in the log, so the next owner has them before any traffic comes. docs/explanation/decisions/0012-authorities.md
"""

from __future__ import annotations

import asyncio
import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from fractal.agent.jobs.upkeep import change_secrets
from fractal.agent.journal import Stale
from fractal.api.authority import Issued
from fractal.api.certificates import begins_ms, expires_ms
from fractal.api.errors import BackendError, FractalError, NotSupported
from fractal.api.transport import Certificate, RouteKind, SupportsChallenge
from fractal.core.model import App, DeviceRole
from fractal.crypto.keys import seal_to

if TYPE_CHECKING:
    from fractal.agent.group import GroupAgent

LOOK = 2.0
"""Seconds between two looks whether a certificate is missing or old."""
SETTLE = 4.0
"""Seconds for which an app must have been served before an authority is sent to it: gateways follow the log."""
ISSUE_LIMIT = 180.0
"""Seconds that getting one certificate may take."""
PAUSES = (15.0, 120.0, 900.0, 3600.0, 6 * 3600.0)
"""Seconds before the next try after the first, second, ... failure: public authorities count failures by the hour."""
OWN = "self-signed"
"""Identity of certificates that no authority vouches for. One with a better one never goes back to these."""
ACCOUNT = "tls.account"


@dataclass(slots=True)
class Certifying:
    """What one group's job remembers; lost with the agent, then found out again."""

    trouble: dict[str, str] = field(default_factory=dict)
    """Name -> why it has no good certificate."""
    issued: dict[str, Issued] = field(default_factory=dict, repr=False)
    """Name -> what the authority gave and the log has not got yet."""
    _failures: dict[str, int] = field(default_factory=dict)
    _not_before: dict[str, float] = field(default_factory=dict)
    _serving: dict[str, tuple[int, float]] = field(default_factory=dict)
    """App -> epoch that is served, and since when (boottime) this device has seen that."""
    _renewals: dict[bytes, int] = field(default_factory=dict)
    """Hash of a chain -> wall_ms at which it is to be renewed."""

    def served_for(self, app: App, now: float) -> float:
        """Seconds since which the present owner's app has been seen to be served; -1 if it is not."""
        if app.serving != app.epoch or app.release is not None:
            self._serving.pop(app.id, None)
            return -1.0
        epoch, since = self._serving.setdefault(app.id, (app.epoch, now))
        if epoch != app.epoch:
            self._serving[app.id] = (app.epoch, now)
            since = now
        return now - since

    def waits(self, name: str, now: float) -> bool:
        """Whether an earlier failure keeps it from being tried now."""
        return now < self._not_before.get(name, 0.0)

    def failed(self, name: str, why: str, now: float) -> None:
        """Try again after a while that grows. What fails before that was no try: secrets that cannot be read yet, say."""
        self.trouble[name] = why
        if self.waits(name, now):
            return
        count = self._failures.get(name, 0)
        self._failures[name] = count + 1
        self._not_before[name] = now + PAUSES[min(count, len(PAUSES) - 1)]

    def succeeded(self, name: str) -> None:
        """All is well with it."""
        for known in (self._failures, self._not_before, self.trouble):
            known.pop(name, None)

    def renewal_ms(self, chain: str) -> int:
        """When two thirds of its life are over; 0 for what is no certificate."""
        digest = hashlib.sha256(chain.encode()).digest()
        if digest not in self._renewals:
            self._renewals[digest] = _renewal_ms(chain)
        return self._renewals[digest]


async def certify(group: GroupAgent) -> None:
    """Look for ever at the names of the apps that this device owns."""
    clock = group.agent.clock
    while True:
        if not (group.blind or group.state.left or group.agent.stopping):
            for app in [a for a in group.state.apps.values() if a.owner == group.me and not a.removed]:
                await _look_after(group, app)
        await clock.sleep(LOOK)


async def _look_after(group: GroupAgent, app: App) -> None:
    known, clock, authority = group.certifying, group.agent.clock, group.agent.authority
    served = known.served_for(app, clock.boottime())
    ready = not authority.needs_traffic or (served >= SETTLE and _has_gateway(group))
    names = [
        r.name for r in group.state.routes.values() if r.app == app.id and r.kind == RouteKind.HTTPS.value
    ]
    for name in sorted(names):
        try:
            wanted = _wanted(group, app, name)
            if not wanted:
                known.succeeded(name)
            elif not ready:
                known.trouble[name] = (
                    "it is asked for once the app is healthy and a gateway leads the name here"
                )
            elif not known.waits(name, clock.boottime()):
                await _issue(group, app, name)
                known.succeeded(name)
        except Stale:
            continue  # the app's secrets changed meanwhile: looked at anew
        except (FractalError, TimeoutError) as error:
            why = str(error) or f"{authority.identity} did not issue it within {ISSUE_LIMIT:g} s"
            if known.trouble.get(name) != why:
                group.logger.warning("certificate for %s: %s", name, why)
            known.failed(name, why, clock.boottime())


def _has_gateway(group: GroupAgent) -> bool:
    return any(DeviceRole.GATEWAY in d.roles and not d.removed for d in group.state.devices.values())


def _wanted(group: GroupAgent, app: App, name: str) -> bool:
    """Whether the name needs a certificate from this device's authority."""
    job = group.jobs.get(app.id)
    if job is None:
        return False
    secrets = job.data.secrets()
    chain, by = secrets.get(f"tls.{name}.chain", ""), secrets.get(f"tls.{name}.by", OWN)
    if not chain or not secrets.get(f"tls.{name}.key"):
        return True
    own = group.agent.authority.identity
    if own == OWN and by != OWN:
        return False  # another device renews it; this one can only make worse ones
    return (by == OWN and own != OWN) or group.agent.clock.wall_ms() >= group.certifying.renewal_ms(chain)


async def _issue(group: GroupAgent, app: App, name: str) -> None:
    agent, job = group.agent, group.jobs[app.id]
    transport = agent.transport

    async def answer(proof: Certificate | None) -> None:
        if not isinstance(transport, SupportsChallenge):
            raise NotSupported(f"transport {agent.config.transport.backend} lets no authority look")
        await transport.challenge(group.id, app.id, name, proof)

    account, known = job.data.secrets().get(ACCOUNT, "").encode(), group.certifying.issued
    if name not in known:
        async with asyncio.timeout(ISSUE_LIMIT):
            # Kept until it stands in the log: authorities count what they issue.
            known[name] = await agent.authority.issue(name, account, answer)
    issued = known[name]
    if not _renewal_ms(issued.certificate.chain.decode("ascii", "replace")):
        del known[name]
        raise BackendError(f"{agent.authority.identity}: what it issued for {name} is no certificate")
    app = group.app(app.id)
    values = {
        f"tls.{name}.chain": issued.certificate.chain,
        f"tls.{name}.key": issued.certificate.key,
        f"tls.{name}.by": agent.authority.identity.encode(),
    }
    if issued.account and issued.account != account:
        values[ACCOUNT] = issued.account
    sealed = {n: seal_to(app.keys[-1].public, value, agent.entropy) for n, value in values.items()}
    await change_secrets(group, app, {**app.secrets, **sealed})
    del known[name]
    group.logger.info("%s has a certificate for %s by %s", app.name, name, agent.authority.identity)


def _renewal_ms(chain: str) -> int:
    begin, end = begins_ms(chain), expires_ms(chain)
    return begin + (end - begin) * 2 // 3
