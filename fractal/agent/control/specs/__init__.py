"""Every command of the control API, declared: names, parameters, results."""

from __future__ import annotations

from collections.abc import Mapping

from fractal.agent.control.contract import Spec
from fractal.agent.control.specs import app, people, places, snapshot, status

SPECS: Mapping[str, Spec] = {
    spec.name: spec for module in (status, app, snapshot, people, places) for spec in module.SPECS
}
