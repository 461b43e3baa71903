"""`build` of a Compose service: what is to be built, if the file brings its context. Pure.

The words are those of https://github.com/compose-spec/compose-spec/blob/main/build.md
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Mapping
from dataclasses import replace

from fractal.api.building import BUILT, ImageBuild
from fractal.manifest.document import Items, Problems, Scalar
from fractal.manifest.rules import SECRET_USE
from fractal.manifest.values import Where

KEYS = frozenset(
    {
        *("context", "dockerfile", "dockerfile_inline", "args", "labels", "target", "network", "no_cache"),
        *("pull", "extra_hosts", "shm_size"),
    }
)
NOT_HERE = {
    "ssh": "keys of whoever builds get into no build; give what it fetches a place in the context",
    "secrets": "the engine's API takes none",
    "privileged": "what runs in a build may do what any container may",
    "entitlements": "what runs in a build may do what any container may",
    "additional_contexts": "one context is taken; put what it needs into that folder",
    "ulimits": "what runs in a build has the engine's own limits",
}
"""Keys with which nothing is built here, so that an image is needed -> why."""
IDLE = {
    **dict.fromkeys(("cache_from", "cache_to", "no_cache_filter"), "the engine's own cache is taken"),
    **dict.fromkeys(("provenance", "sbom"), "nobody is told of it: the image stays in the app's own store"),
    "isolation": "it is for Windows",
    "tags": "it is known by its digest",
    "platforms": "it is built for the machine that builds it",
}
HOST = "what runs in a build has the engine's own network, by which it reaches the internet"
NETWORKS = {"default": "", "bridge": "", "": "", "none": "none"}
PULLED = frozenset({"always", "missing", "if_not_present", "never", "daily", "weekly"})
"""Policies with which an image that has a name is not built; so is it with `every_12h`."""
UNBUILT = "unbuilt"
"""Tag of an image that has no name and is not built yet."""
_REMOTE = re.compile(r"(https?|git|ssh|oci-layout|docker-image|service)://|git@|github\.com/|service:")
_NAME = re.compile(r"[^\0-\x20\x7f]{1,200}")


def unbuilt(service: str) -> str:
    """What the image of a service is called in a specification until it is built."""
    slug = re.sub(r"[^a-z0-9]+", "-", service.lower()).strip("-") or "image"
    return f"{BUILT}/{slug}:{UNBUILT}"


def reading(where: Where, service: str, image: str, platform: str) -> tuple[ImageBuild | None, str]:
    """What `build` asks for, and "" if it can be built; else why not. Where an `image` stands in for it nothing of it is wrong."""
    brings = where.given.brings
    if brings is None:
        return None, "its context is not brought along"
    ahead = replace(where, problems=Problems(""))
    _read(ahead, image or service, platform, [])
    if image and ahead.problems.refused:
        found = ahead.problems.refused[0]
        return None, f"{found.key.rpartition('.')[2]}: {found.text}"
    elsewhere: list[str] = []
    build = _read(where, image or service, platform, elsewhere)
    if build is not None and elsewhere:
        return None, elsewhere[0]
    return build, brings(build) if build is not None else ""


def _read(where: Where, name: str, platform: str, elsewhere: list[str]) -> ImageBuild | None:
    """What `build` says; to `elsewhere` goes what it takes from where nothing is taken along."""
    if isinstance(where.node, Scalar):
        if where.incomplete():
            return None
        table = {"context": where}
    else:
        table = where.table(KEYS | NOT_HERE.keys() | IDLE.keys(), extensions=True)
    for key, item in table.items():
        if key in NOT_HERE and _says(item):
            item.idle(f"it cannot be built here: {NOT_HERE[key]}")
            elsewhere.append(f"`{key}` is not supported: {NOT_HERE[key]}")
        elif key in IDLE:
            item.idle(IDLE[key])
    before = len(where.problems.refused)
    build = ImageBuild(
        name=name,
        context=_context(table["context"], elsewhere) if "context" in table else ".",
        dockerfile=_dockerfile(table["dockerfile"], elsewhere) if "dockerfile" in table else "Dockerfile",
        inline=table["dockerfile_inline"].resolved_clear(_text(table["dockerfile_inline"]))
        if "dockerfile_inline" in table
        else "",
        args=_pairs(table.get("args"), "="),
        labels=_pairs(table.get("labels"), "="),
        hosts=_pairs(table.get("extra_hosts"), "=:"),
        target=table["target"].name(_NAME, "a stage's name") if "target" in table else "",
        network=_network(table["network"]) if "network" in table else "",
        platform=platform,
        shm_size=table["shm_size"].size() if "shm_size" in table else 0,
        fresh=table["no_cache"].flag() if "no_cache" in table else False,
        pull=table["pull"].flag() if "pull" in table else False,
    )
    if "dockerfile" in table and "dockerfile_inline" in table:
        table["dockerfile"].wrong("and `dockerfile_inline`: only one of them can be taken")
    return None if len(where.problems.refused) > before else build


def _says(where: Where) -> bool:
    """Whether a key asks for something: `privileged: false` and an empty list do not."""
    if isinstance(where.node, Scalar):
        return where.node.value not in (None, False)
    return bool(where.node.items if isinstance(where.node, Items) else where.node.entries)


def _text(where: Where) -> str:
    if isinstance(where.node, Scalar) and isinstance(where.node.value, str):
        return where.node.text
    where.wrong("expected text")
    return ""


def _context(where: Where, elsewhere: list[str]) -> str:
    if where.incomplete():
        return "."
    text = where.text()
    if _REMOTE.match(text) or _leads_out(text):
        elsewhere.append(f"{text[:80]!r} is not in the manifest's folder")
    return posixpath.normpath(text or ".")


def _dockerfile(where: Where, elsewhere: list[str]) -> str:
    if where.incomplete():
        return "Dockerfile"
    text = where.text()
    if _leads_out(text):
        elsewhere.append(f"the Dockerfile {text[:80]!r} is not in the context")
    return posixpath.normpath(text or "Dockerfile")


def _leads_out(path: str) -> bool:
    return path.startswith(("/", "~")) or "\\" in path or ".." in path.split("/")


def _network(where: Where) -> str:
    if where.loose_text() == "host":
        where.idle(HOST)
        return ""
    return where.choice(NETWORKS)


def _pairs(where: Where | None, between: str) -> dict[str, str]:
    """A mapping, or a list of NAME=VALUE; a name alone has the variable's value, and is left out without one."""
    found: dict[str, str] = {}
    if where is None:
        return found
    if isinstance(where.node, Items):
        for item in where.items():
            text = item.loose_text()
            at = min((i for i in map(text.find, between) if i > 0), default=-1)
            _pair(item, text[:at] if at > 0 else text, text[at + 1 :] if at > 0 else None, found)
    else:
        for name, item in where.table().items():
            empty = isinstance(item.node, Scalar) and item.node.value is None
            _pair(item, name, None if empty else item.loose_text(), found)
    return found


def _pair(where: Where, name: str, value: str | None, found: dict[str, str]) -> None:
    if not _NAME.fullmatch(name):
        where.wrong(f"{name[:80]!r} cannot be a name")
    elif value is None and not where.known(name):
        return
    elif SECRET_USE.search(value := where.resolved_clear(f"${{{name}}}") if value is None else value):
        where.wrong("a secret that is made would stay in the image; give it when it runs, by `environment`")
    else:
        found[name] = value


def policy(table: Mapping[str, Where]) -> str:
    """`pull_policy` as far as it decides about building: `build`, `pull`, or "" for what Compose does by itself."""
    text = table["pull_policy"].loose_text() if "pull_policy" in table else ""
    if text == "build":
        return "build"
    return "pull" if text in PULLED or text.startswith("every_") else ""
