"""Variables that stand for an app's public name: our own, and those of Coolify's files. Pure.

There, `SERVICE_URL_FORGEJO_3000` without a value in a service's environment also says that a route leads to that service's port 3000.
https://coolify.io/docs/knowledge-base/docker/compose#coolify-s-magic-environment-variables
"""

from __future__ import annotations

import re

HOST, URL = "HOMESERVER_HOST", "HOMESERVER_URL"
_MAGIC = re.compile(r"SERVICE_(FQDN|URL)_([A-Z0-9_]{1,60}?)(?:_([0-9]{2,5}))?")


def value(variable: str, host: str) -> str | None:
    """What the variable stands for in an app with that public name; None if it is another variable, or no name is known."""
    if not host:
        return None
    if variable in (HOST, URL):
        return host if variable == HOST else f"https://{host}"
    match = _MAGIC.fullmatch(variable)
    if match is None:
        return None
    return host if match[1] == "FQDN" else f"https://{host}"


def stands(variable: str) -> bool:
    """Whether the variable is one that follows from the public name."""
    return variable in (HOST, URL) or _MAGIC.fullmatch(variable) is not None


def entrance(variable: str) -> str | None:
    """The port that a route is to lead to by a variable's name, "" if it does not say which; None if it is another variable."""
    match = _MAGIC.fullmatch(variable)
    return None if match is None else match[3] or ""
