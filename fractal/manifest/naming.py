"""By which names the services of an app find each other: their own, and others that the file gives them. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

from fractal.api import canonical
from fractal.api.app import ServiceSpec
from fractal.manifest.document import Problems

NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9_.-]{0,251}[A-Za-z0-9_])?")
MAX_ALIASES = 32
"""Of a service."""


def with_aliases(
    services: Sequence[ServiceSpec], asked: Mapping[str, Sequence[tuple[int, str, str]]], problems: Problems
) -> list[ServiceSpec]:
    """The services with `asked` names: service -> (line, key, name). An app has one network, so each is known to all of them."""
    names = {one.name for one in services}
    taken: dict[str, str] = {}
    found = []
    for one in services:
        own: list[str] = []
        for line, key, name in asked.get(one.name, ()):
            owner = taken.setdefault(name, one.name)
            if not NAME.fullmatch(name):
                if key.endswith("container_name"):
                    continue  # nobody finds it by that then, as in Compose
                problems.add(line, key, f"{name[:80]!r} cannot be a name in a network")
            elif (name in names and name != one.name) or owner != one.name:
                if not key.endswith("container_name"):  # without effect anyway
                    problems.add(line, key, f"{name[:80]!r} is another service's name")
            elif name != one.name and name not in own:
                own.append(name)
        if len(own) > MAX_ALIASES:
            problems.add(1, f"services.{one.name}.networks", f"more than {MAX_ALIASES} names")
        text = canonical.encode({"": own})[4:-1].decode()
        found.append(replace(one, options={**one.options, "aliases": text}) if own else one)
    return found
