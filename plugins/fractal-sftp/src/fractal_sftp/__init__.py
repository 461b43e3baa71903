"""A store behind SFTP for Fractal HomeServer."""
