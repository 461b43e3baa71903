"""Tunnels by WireGuard from devices behind NAT out to gateways, for Fractal HomeServer."""
