"""A plugin for Fractal HomeServer."""
