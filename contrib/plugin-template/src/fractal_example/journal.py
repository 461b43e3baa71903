"""Where events go: one line each on standard error."""

from __future__ import annotations

import sys

from fractal.api.events import Event


def note(event: Event) -> None:
    """Write one line."""
    sys.stderr.write(f"{event.kind}: {event.text}\n")
