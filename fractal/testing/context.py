"""A real `Context` for one backend under test."""

from fractal.shell.context import real_context

__all__ = ["real_context"]
