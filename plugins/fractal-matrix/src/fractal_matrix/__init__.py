"""Matrix rooms as the ordered logs of Fractal HomeServer's groups."""
