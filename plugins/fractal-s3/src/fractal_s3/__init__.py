"""A store behind S3 for Fractal HomeServer."""
