"""Images that a manifest builds: on the device where somebody installs or updates the app, before anything else is done.

The log knows their digests, and the app's store keeps them, as with any other image: no other device builds anything.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol, cast

from fractal.agent.agent import Agent
from fractal.agent.contexts import Contexts
from fractal.agent.control.plan import Action
from fractal.agent.control.progress import Progress
from fractal.agent.group import GroupAgent
from fractal.agent.journal import Stale
from fractal.api.building import ImageBuild, SupportsBuild
from fractal.api.errors import BackendError, Denied, InvalidInput
from fractal.api.runtime import SupportsImages
from fractal.archive.keyring import AppKeyring
from fractal.core.entries import AppImages
from fractal.core.model import App, AppKey, ArchivedImage, GroupState

ATTEMPTS = 5
"""At telling the log of images while the app changes."""


class HasSpec(Protocol):
    """A manifest that was read."""

    @property
    def spec(self) -> dict[str, object]:
        """As plain values."""


@dataclass(kw_only=True)
class Builds:
    """What is built for one command. `names` and `stored` are there once the actions were carried out."""

    agent: Agent
    group: GroupAgent
    wanted: Mapping[str, tuple[ImageBuild, bool]]
    """Image as the specification calls it -> how, and whether it is first looked for by its name."""
    contexts: Mapping[str, str]
    """`ImageBuild.name` -> id of its context."""
    names: dict[str, str] = field(default_factory=dict)
    """Image as the specification calls it -> what was built."""
    stored: list[ArchivedImage] = field(default_factory=list)
    read: Callable[[Mapping[str, str]], Awaitable[HasSpec]] | None = None
    """Reads the manifest with what was built."""

    def __post_init__(self) -> None:
        """Raises InvalidInput if this device builds nothing."""
        if self.wanted and not isinstance(self.agent.runtime, SupportsBuild):
            raise InvalidInput(
                f"runtime {self.agent.config.runtime.backend} of this device builds no images, and {', '.join(self.wanted)} "
                "would be built: run the command on a device with docker or podman, or build it elsewhere and name it by --image"
            )

    @property
    def arch(self) -> tuple[str, ...]:
        """For what machines it is built: this device's own; () if nothing is, or the manifest says for which."""
        own = self.group.state.devices[self.group.me].arch
        return (own,) if own and any(not build.platform for build, _ in self.wanted.values()) else ()

    def refuse_another_machine(self, device: str) -> None:
        """Raises Denied if what is built here is for other machines than the device (its id) that is to run it."""
        there, arch = self.group.state.devices.get(device), self.arch
        if there is not None and there.arch and arch and there.arch not in arch:
            raise Denied(
                f"{there.name} cannot run what is built here: its architecture {there.arch} is not {', '.join(arch)}; "
                "run the command there, or build it elsewhere and name it by --image"
            )

    def actions(self) -> list[Action]:
        """One for each image."""
        return [self._action(image, build, first) for image, (build, first) in self.wanted.items()]

    def _action(self, image: str, build: ImageBuild, first: bool) -> Action:
        async def make(progress: Progress) -> None:
            try:
                await carry_out(progress)
            except BaseException:
                for context in self.contexts.values():  # of what is not built any more
                    self._contexts().discard(context)
                raise

        async def carry_out(progress: Progress) -> None:
            runtime = cast("SupportsBuild", self.agent.runtime)
            if first and await runtime.find_image(image, build.platform):
                progress.say(f"{image} is here already, or was pulled: it is not built")
                self._contexts().discard(self.contexts.get(build.name, ""))
                return
            async with self._contexts().taken(self.contexts.get(build.name, "")) as (size, read):
                self.names[image] = await runtime.build_image(build, size, read(), progress.say)

        detail = {
            "context": build.context,
            "dockerfile": "in the manifest" if build.inline else build.dockerfile,
        }
        if first:
            detail["unless"] = f"{image} is on this device or in its registry"
        return Action(f"build {build.name} on this device", detail, make)

    async def spec(self) -> dict[str, object]:
        """The specification with what was built in it. Raises InvalidInput."""
        assert self.read is not None
        return (await self.read(self.names)).spec

    def _contexts(self) -> Contexts:
        return self.agent.contexts

    async def store(self, place: str, key: AppKey, progress: Progress) -> None:
        """Put what was built into the app's store, for a device that cannot have it otherwise. Raises BackendError."""
        runtime = cast("SupportsImages", self.agent.runtime)
        archive = await self.group.images(place)
        for name in dict.fromkeys(self.names.values()):
            progress.say(f"storing {name.rpartition('/')[2][:30]}")
            digest = await runtime.image_digest(name)
            image = ArchivedImage(
                name=name,
                digest=digest,
                arch=await runtime.image_architecture(name),
                object="",
                segments=(),
                sealed_key=b"",
                generation=0,
            )
            keyring = AppKeyring(generation=key.generation, public=key.public)
            self.stored.append(await archive.write(image, partial(runtime.save_image, digest), keyring))

    async def tell(self, app: str) -> None:
        """Tell the log of what was stored. Raises BackendError."""
        if not self.stored:
            return
        mine = {image.name for image in self.stored}
        for left in reversed(range(ATTEMPTS)):
            now = self.group.app(app)
            images = (*(i for i in now.images if i.name not in mine or i.replaced_ms), *self.stored)
            try:
                await self.group.journal.append(
                    AppImages(app=app, images=images), wanted=partial(_unchanged, now)
                )
                return
            except Stale as error:
                if not left:
                    raise BackendError(
                        f"the images of {app} changed meanwhile: try again", retryable=True
                    ) from error


def _unchanged(app: App, state: GroupState) -> bool:
    return state.apps[app.id].images == app.images
