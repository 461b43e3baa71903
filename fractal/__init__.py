"""Fractal HomeServer: run your apps on devices you own, alone or with friends."""

__version__ = "0.1.0"
API_VERSION = 1
"""Version of the plugin API (`fractal.api`). A record of another version is refused by name."""
