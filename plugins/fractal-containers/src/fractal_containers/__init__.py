"""Runs apps in containers, whichever engine makes them. A library: `fractal-docker` and `fractal-podman` build on it."""
