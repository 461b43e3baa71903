"""One TOML file per device: `load` it."""

from fractal.config.loading import load, parse
from fractal.config.model import Chosen, DeviceConfig
from fractal.config.problems import ConfigError

__all__ = ["Chosen", "ConfigError", "DeviceConfig", "load", "parse"]
