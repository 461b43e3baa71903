"""Streams of one file system that others can replay. Snapshotters in plugins may import it, beside `fractal.api`."""
