"""What will come of a manifest, for whoever is about to install it. Pure."""

from __future__ import annotations

from typing import Any

from fractal.api.app import AppSpec
from fractal.manifest.compose import Checked
from fractal.manifest.databases import consistency, database


def report(checked: Checked) -> dict[str, Any]:
    """Everything that somebody should know before installing, as plain values; nothing if something is refused."""
    spec = checked.spec
    if spec is None:
        return {}
    forbids = [option.removeprefix("--allow ") for option, _ in checked.needs if _ties(option)]
    forbids += [name for name in spec.allowed if _ties(f"--allow {name}")]
    return {
        "name": spec.name,
        "services": [{"name": s.name, "image": s.image, "restart": s.restart} for s in spec.services],
        "data": [{"folder": volume, "used_by": _users(spec, volume)} for volume in spec.volumes],
        "excluded": [
            *(
                f"{s.name}: {m.target} ({m.host} of the device)"
                for s in spec.services
                for m in s.mounts
                if m.host
            ),
            *(f"{s.name}: tmpfs {s.options['tmpfs']}" for s in spec.services if "tmpfs" in s.options),
            *(f"{f.key}: {f.text}" for f in checked.idle if ".volumes[" in f.key),
        ],
        "databases": [
            {"service": s.name, "kind": kind.name, "consistency": consistency(spec, s, kind)}
            for s in spec.services
            if (kind := database(s)) is not None
        ],
        "generated_secrets": list(spec.generated_secrets),
        "given_secrets": list(spec.given_secrets),
        "ports": [f"{s.name}: {p.container}/{p.protocol}" for s in spec.services for p in s.ports],
        "web": f"{spec.web_service}: {spec.web_port}" if spec.web_service else "",
        "architectures": list(spec.architectures),
        "fails_over": not forbids,
        "forbids_failover": sorted(set(forbids)),
    }


def lines(checked: Checked) -> dict[str, str]:
    """The same, one line for each matter that there is something to say of."""
    found = report(checked)
    if not found:
        return {}
    over = "yes" if found["fails_over"] else f"no, because of {', '.join(found['forbids_failover'])}"
    said = {
        "runs": ", ".join(f"{s['name']} ({s['image'] or 'a process'})" for s in found["services"]),
        "keeps": ", ".join(f"{d['folder']} ({', '.join(d['used_by']) or 'unused'})" for d in found["data"]),
        "databases": "; ".join(
            f"{d['service']}: {d['kind']}: {d['consistency']}" for d in found["databases"]
        ),
        "does not keep": "; ".join(found["excluded"]),
        "secrets made": ", ".join(found["generated_secrets"]),
        "secrets given": ", ".join(found["given_secrets"]),
        "ports": ", ".join(found["ports"]),
        "web": found["web"],
        "architectures": ", ".join(found["architectures"]),
        "empty variables": ", ".join(name for name, _ in checked.unset),
        "can fail over": over,
    }
    return {name: text for name, text in said.items() if text}


def _ties(option: str) -> bool:
    return option.startswith("--allow ") and not option.startswith("--allow visible-secret:")


def _users(spec: AppSpec, volume: str) -> list[str]:
    return [f"{s.name}:{m.target}" for s in spec.services for m in s.mounts if m.volume == volume]
