"""How far something that takes long has come."""

from collections.abc import Callable

Progress = Callable[[int, int], None]
"""Called with the bytes done and the bytes of all; all is 0 while it is not known."""
