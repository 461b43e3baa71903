"""Snapshots by btrfs for Fractal HomeServer."""
