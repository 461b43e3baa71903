"""What an app was started with, against what the log has now: how an update is noticed, whenever and wherever it came."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import TYPE_CHECKING

from fractal.api.app import AppSpec
from fractal.api.canonical import encode
from fractal.api.errors import FractalError
from fractal.api.plain import to_plain
from fractal.api.runtime import Health
from fractal.manifest.plain import from_plain_spec

if TYPE_CHECKING:
    from fractal.agent.app_job import AppJob

UPDATE_PATIENCE = 30.0
"""Seconds after which an app that is not healthy with its new manifest is worth a word."""


def digest_of(value: Mapping[str, object]) -> str:
    """Tells apart what an app is started with."""
    return hashlib.blake2b(encode(to_plain(value)), digest_size=8, person=b"fhs-spec").hexdigest()


class ManifestUse:
    """Belongs to one app's job. Durable is only the digest of what the root's epoch was last started with."""

    def __init__(self, job: AppJob) -> None:
        self._job = job
        self._spec: tuple[object, AppSpec] | None = None
        self._digest: tuple[object, object, str] | None = None
        self._told: tuple[object, str] | None = None

    @property
    def spec(self) -> AppSpec:
        """The app's services, as the log has them."""
        plain = self._job.app.spec
        if self._spec is None or self._spec[0] is not plain:
            self._spec = (plain, from_plain_spec(plain))
        return self._spec[1]

    def digest(self) -> str:
        """What a start depends on, in short: the specification and the secrets that its services see. Raises BackendError."""
        app = self._job.app
        if self._digest is None or self._digest[0] is not app.spec or self._digest[1] is not app.secrets:
            used = {name for service in self.spec.services for name in service.secrets}
            seen = {name: value for name, value in self._job.data.secrets().items() if name in used}
            self._digest = (app.spec, app.secrets, digest_of({"spec": app.spec, "secrets": seen}))
        return self._digest[2]

    @property
    def outdated(self) -> bool:
        """Whether the present run was started with something else than the log has now."""
        try:
            return bool(self._job.runs()) and self._job.facts.now.spec not in ("", self.digest())
        except FractalError:
            # It runs with what it has; a start would say what is wrong. Whoever manages the app wrote that, so nothing of it
            # may stop the device's beats.
            return False

    def told(self) -> str:
        """For the others: the digest of the log's specification if that is what runs, else ""."""
        if not self._job.health() or self.outdated:
            return ""
        spec = self._job.app.spec
        if self._told is None or self._told[0] is not spec:
            self._told = (spec, digest_of(spec))
        return self._told[1]

    async def note_start(self) -> None:
        """Note what is about to be started. Before it is something else than last time, the data becomes a snapshot."""
        facts = self._job.facts
        before, now = facts.now.spec, self.digest()
        if before and before != now:
            await self._job.saver.tick()
            facts.change(spec=now, updated_ms=self._job.group.agent.clock.wall_ms())
        elif before != now:
            facts.change(spec=now)

    def note_health(self) -> None:
        """An update is over when the app is healthy with it."""
        if not self._job.facts.now.updated_ms:
            return
        run = self._job.health()
        if run is not None and run.health is Health.HEALTHY and not self.outdated:
            self._job.facts.change(updated_ms=0)

    def problem(self) -> str:
        """Why people should look after a new manifest; "" while there is hope, and when all is well."""
        since = self._job.facts.now.updated_ms
        if not since or not self._job.owns:
            return ""
        waited = (self._job.group.agent.clock.wall_ms() - since) / 1000
        run = self._job.health()
        if (run is None or run.health is Health.STARTING) and waited < UPDATE_PATIENCE:
            return ""
        return (
            "not healthy with its new manifest: `homeserver app update` with the old one undoes it, "
            "`homeserver app restore` its data"
        )
