"""Runs apps in Podman containers."""
