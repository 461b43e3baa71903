"""Where this device's configuration and control socket are, found without loading the configuration as a whole."""

from __future__ import annotations

import os
from pathlib import Path

from fractal.api.errors import Misconfigured, NotFound

SYSTEM_CONFIG = Path("/etc/homeserver/config.toml")


def locate_config(given: str | None) -> Path:
    """The file given, else the system's, else the user's. Raises NotFound."""
    if given:
        return Path(given)
    places = [SYSTEM_CONFIG, user_config()]
    for place in places:
        if place.is_file():
            return place
    raise NotFound(
        f"no configuration at {' or '.join(map(str, places))}: make one with `homeserver config init`, or name it with --config FILE"
    )


def user_config() -> Path:
    """Where a user's own configuration is."""
    base = os.environ.get("XDG_CONFIG_HOME") or Path("~/.config").expanduser()
    return Path(base) / "homeserver" / "config.toml"


def control_socket(given: str | None) -> Path:
    """Socket of the agent that the configuration describes. Raises NotFound, Misconfigured."""
    import tomllib

    path = locate_config(given)
    try:
        with path.open("rb") as file:
            device = tomllib.load(file).get("device", {})
    except FileNotFoundError as error:
        raise NotFound(f"no configuration at {path}: make one with `homeserver config init`") from error
    except (OSError, ValueError) as error:
        raise Misconfigured(str(path), f"{error}: see `homeserver config check`") from error
    return runtime_dir(path, device if isinstance(device, dict) else {}) / "control.sock"


def runtime_dir(config: Path, device: dict[str, object]) -> Path:
    """`device.runtime_dir`, else `run` below `device.state_dir`; relative paths start at the configuration's folder.

    As `fractal.config` has it, which is too heavy to load here. Raises Misconfigured.
    """
    for name, below in (("runtime_dir", ""), ("state_dir", "run")):
        value = device.get(name)
        if isinstance(value, str) and value:
            try:
                return config.parent / Path(value).expanduser() / below
            except RuntimeError as error:
                raise Misconfigured(
                    f"device.{name}", f"{value!r} in {config}: no such home folder"
                ) from error
    return Path("/var/lib/homeserver/run")
