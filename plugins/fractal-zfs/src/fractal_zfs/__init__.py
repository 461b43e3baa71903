"""Snapshots by ZFS for Fractal HomeServer."""
