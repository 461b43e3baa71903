"""A store's settings on this device: what the group's log says, with what this device's own file adds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fractal.api.errors import InvalidInput
from fractal.config.convert import convert
from fractal.config.model import DeviceConfig
from fractal.config.problems import Key, dotted


def store_settings(config: DeviceConfig | None, name: str, kind: type, values: Mapping[str, str]) -> Any:
    """An instance of the store backend's config dataclass `kind` for the group's store called `name`.

    `values` are the strings in the log; `[store.NAME]` of the device's file wins over them. Raises InvalidInput naming
    every wrong key and where it comes from.
    """
    own = config.stores.get(name, {}) if config is not None else {}
    converted = convert(
        kind, {**values, **own}, base=config.path.parent if config is not None else None, texts=True
    )
    if not converted.problems:
        return converted.value
    texts = []
    for problem in converted.problems:
        place: Key = ("store", name, *problem.key)
        source = f"{config.path}: " if config is not None and problem.key and problem.key[0] in own else ""
        texts.append(f"{source}{dotted(place)}: {problem.message}")
    raise InvalidInput("; ".join(texts))
