"""What will come of a manifest, for whoever is about to install it. Pure."""

from __future__ import annotations

import posixpath
from typing import Any

from fractal.api.app import AppSpec, ServiceSpec
from fractal.manifest.compose import Checked
from fractal.manifest.databases import consistency, database
from fractal.manifest.document import Finding
from fractal.manifest.values import VISIBLE


def report(checked: Checked) -> dict[str, Any]:
    """Everything that somebody should know before installing, as plain values; nothing if something is refused."""
    spec = checked.spec
    if spec is None:
        return {}
    forbids = _forbids(checked)
    return {
        "name": spec.name,
        "services": [
            {"name": s.name, "image": s.image, "restart": s.restart, "health": _health(s)}
            for s in spec.services
        ],
        "builds": [
            {"image": image, "context": build.context, "dockerfile": "" if build.inline else build.dockerfile}
            for image, (build, _) in checked.builds.items()
        ],
        "data": [
            {"folder": volume, "used_by": _users(spec, volume)}
            for volume in spec.volumes
            if volume not in spec.ignored
        ],
        "excluded": [
            *(
                f"{volume} ({', '.join(_users(spec, volume)) or 'unused'}): empty after a move or a restore"
                for volume in spec.ignored
            ),
            *(
                f"{s.name}: {m.target} ({m.host} of the device)"
                for s in spec.services
                for m in s.mounts
                if m.host
            ),
            *(
                f"{s.name}: {m.target} ({m.needs.removeprefix('mount:') or 'memory'})"
                for s in spec.services
                for m in s.mounts
                if m.engine
            ),
            *(f"{s.name}: tmpfs {s.options['tmpfs']}" for s in spec.services if "tmpfs" in s.options),
            *(f"{f.key}: {f.text}" for f in checked.idle if ".volumes[" in f.key),
        ],
        "databases": [
            {"service": s.name, "kind": kind.name, "consistency": consistency(spec, s, kind)}
            for s in spec.services
            if (kind := database(s)) is not None
        ],
        "fields": [
            {
                "name": one.name,
                "type": one.type,
                "title": one.title,
                "required": one.required,
                "default": one.default,
                "options": list(one.options),
            }
            for one in checked.fields
        ],
        "generated_secrets": list(spec.generated_secrets),
        "given_secrets": list(spec.given_secrets),
        "ports": [f"{s.name}: {p.container or p.name}/{p.protocol}" for s in spec.services for p in s.ports],
        "web": f"{spec.web_service}: {spec.web_port}" if spec.web_service else "",
        "architectures": list(spec.architectures),
        "fails_over": not forbids,
        "forbids_failover": sorted(forbids),
        "forbidden_by": [
            {"what": what, "key": found.key, "line": found.line, "reason": found.text}
            for what, found in sorted(forbids.items())
        ],
    }


def reads(checked: Checked) -> list[str]:
    """Files and folders beside the manifest that go into the app, or into its images."""
    contexts = (f"{posixpath.normpath(build.context)}/" for build, _ in checked.builds.values())
    return [*checked.files, *dict.fromkeys(contexts)]


def reads_line(checked: Checked) -> dict[str, str]:
    """One line for them; none if there are none."""
    found = reads(checked)
    return {"reads beside it": ", ".join(found)} if found else {}


def lines(checked: Checked) -> dict[str, str]:
    """The same, one line for each matter that there is something to say of."""
    found = report(checked)
    if not found:
        return {}
    because = ", ".join(f"{f['what']} ({f['key']}, line {f['line']})" for f in found["forbidden_by"])
    over = "yes" if found["fails_over"] else f"no, because of {because}"
    said = {
        "runs": ", ".join(f"{s['name']} ({_started(checked, s)})" for s in found["services"]),
        "keeps": ", ".join(f"{d['folder']} ({', '.join(d['used_by']) or 'unused'})" for d in found["data"]),
        "databases": "; ".join(
            f"{d['service']}: {d['kind']}: {d['consistency']}" for d in found["databases"]
        ),
        "does not keep": "; ".join(found["excluded"]),
        "secrets made": ", ".join(found["generated_secrets"]),
        "secrets given": ", ".join(found["given_secrets"]),
        "ports": ", ".join(found["ports"]),
        "web": found["web"],
        "architectures": ", ".join(found["architectures"]) or "any",
        "asks for": ", ".join(f["name"] for f in found["fields"]),
        "empty variables": ", ".join(name for name, _ in checked.unset),
        "can fail over": over,
        **reads_line(checked),
    }
    return {name: text for name, text in said.items() if text}


def _forbids(checked: Checked) -> dict[str, Finding]:
    """What of a device it has or would have, by name: no other device can stand in for that."""
    wanted = [(o.removeprefix("--allow "), f) for o, f in checked.needs if o.startswith("--allow ")]
    return {name: found for name, found in (*checked.granted, *wanted) if not name.startswith(VISIBLE)}


def _health(service: ServiceSpec) -> str:
    """How it is seen to be healthy."""
    health = service.health
    if health is None:
        return "none" if "healthcheck.disable" in service.options else "the image's own check, if it has one"
    if health.test:
        return "a command in it"
    return (
        f"GET {health.http} on port {health.port}" if health.http else f"port {health.port or 'of its own'}"
    )


def _started(checked: Checked, service: dict[str, Any]) -> str:
    if service["image"] in checked.builds:
        build, first = checked.builds[service["image"]]
        return f"{service['image']}, or built of {build.context}" if first else f"built of {build.context}"
    if service["image"]:
        return str(service["image"])
    missing = any(option == f"--image {service['name']}=IMAGE" for option, _ in checked.needs)
    return "no image yet" if missing else "a process"


def idle_line(checked: Checked) -> dict[str, str]:
    """One line for the keys that are without effect here, each with its reason; none if there is no such key."""
    found = "; ".join(f"{f.key}: {f.text}" for f in checked.idle)
    return {"without effect here": found} if found else {}


def _users(spec: AppSpec, volume: str) -> list[str]:
    return [f"{s.name}:{m.target}" for s in spec.services for m in s.mounts if m.volume == volume]
