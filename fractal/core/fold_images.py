"""The fold of entries about an app's container images."""

from __future__ import annotations

import re
from dataclasses import replace

from fractal.core.entries import AppImages
from fractal.core.fold_rules import KEY_SIZE, Turn, live_app, require, require_id, with_app
from fractal.core.model import App, ArchivedImage, GroupState
from fractal.core.placement import images_of

MAX_IMAGES = 100
"""Of an app: those that it runs and earlier ones."""
MAX_IMAGE_NAME = 400

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}\Z")
_ARCH = re.compile(r"[a-z0-9_]{0,20}\Z")


def app_images(turn: Turn, entry: AppImages) -> GroupState:
    """By the device that owns the app, which runs them, or by who manages it.

    What a name was found to be stays: an owner that does not manage the app may bring images for names that have none, and
    seal the keys of others anew, but never put another image in the place of one.
    """
    app = live_app(turn.state, entry.app)
    manages = turn.manages(app)
    require(manages or app.owner == turn.device.id, "only the device that owns the app may bring its images")
    require(len(entry.images) <= MAX_IMAGES, f"an app has at most {MAX_IMAGES} images")
    for image in entry.images:
        _require_image(app, image)
    app_then = replace(app, images=entry.images)
    current = [i.name for i in entry.images if not i.replaced_ms]
    require(len(current) == len(set(current)), "an image is named twice")
    if not manages:
        _require_same(app, app_then)
    return with_app(turn.state, app_then)


def _require_image(app: App, image: ArchivedImage) -> None:
    good = 0 < len(image.name) <= MAX_IMAGE_NAME and image.name.isprintable()
    require(good, f"an image's name has 1 to {MAX_IMAGE_NAME} printable characters")
    require(_DIGEST.match(image.digest) is not None, "an image's digest is sha256: and 64 hex digits")
    require(_ARCH.match(image.arch) is not None, "an architecture is as `uname -m` gives it")
    require_id(image.object, "image object")
    require(bool(image.segments), f"image {image.name} has no segments")
    sound = all(s.size > 0 and len(s.hash) == KEY_SIZE for s in image.segments)
    require(sound, f"image {image.name} has an impossible segment")
    require(any(k.generation == image.generation for k in app.keys), "the app has no key of that generation")


def _require_same(before: App, after: App) -> None:
    named = images_of(before.spec)
    for name, image in before.pinned_images.items():
        found = after.pinned_images.get(name)
        require(found is not None or name not in named, f"image {name} is still wanted")
        require(found is None or found.digest == image.digest, f"image {name} is another one")
