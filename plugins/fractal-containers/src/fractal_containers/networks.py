"""The networks of a run: one for all services, or those that the app's file names. Pure."""

from __future__ import annotations

from fractal.api.app import AppRun
from fractal_containers.found import Network
from fractal_containers.labels import CLOSED, NETWORK, bridge_name, network_names, run_labels, run_name
from fractal_containers.options import Options, settings


def joined(options: Options) -> tuple[tuple[str, bool], ...]:
    """Networks of a service: (name in the app's file, whether it has no way out); "" is the one that all share."""
    return () if options.modal else options.networks or (("", False),)


def wanted_networks(device: str, run: AppRun, allowed: frozenset[str]) -> dict[str, Network]:
    """The networks of a run, by their names in the app's file. None if no service has one."""
    labels, found = run_labels(device, run), dict[str, Network]()
    for spec in run.spec.services:
        for name, closed in joined(settings(spec.options, allowed)):
            if not name:
                called, bridge = f"fhs-{run_name(device, run.key)}", bridge_name(device, run.key)
                found[name] = Network(name=called, labels=labels, bridge=bridge)
                continue
            called, bridge = network_names(device, run.key, name, closed=closed)
            marked = labels | {NETWORK: name} | ({CLOSED: "yes"} if closed else {})
            found[name] = Network(name=called, labels=marked, bridge=bridge)
    return found
