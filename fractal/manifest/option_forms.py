"""The forms of keys that are passed on to runtimes, by Compose's schema: what can be no such value is refused with its line.

What a runtime makes of a value is its own to say. https://github.com/compose-spec/compose-spec/blob/main/schema/compose-spec.json
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from fractal.manifest.document import Items, Scalar, Table
from fractal.manifest.values import Where

_PORT = re.compile(r"\d{1,5}(-\d{1,5})?(/(tcp|udp|sctp))?")
_CAPABILITY = re.compile(r"(CAP_)?(?!CAP_)[A-Z][A-Z0-9_]{1,30}")
_HOST = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_.-]{0,251}[A-Za-z0-9_])?")
_ADDRESS = re.compile(r"[0-9A-Fa-f:.]{2,45}|host-gateway")
MAX_LIMIT = (1 << 63) - 1
ENGINES = ("com.docker.", "io.docker.", "org.dockerproject.", "io.podman.")
"""Begin the names of labels that engines and their tools set."""
NOT_ITS_OWN = "engines and their tools set such labels, to find containers of their own"


def formed(where: Where, key: str) -> None:
    """Say what is wrong with the form of a key, if anything is."""
    if key in FORMS:
        FORMS[key](where)


def _size(where: Where) -> None:
    where.size()


def _text(where: Where) -> None:
    where.text()


def _name(where: Where) -> None:
    if (text := where.text()) and not _HOST.fullmatch(text):
        where.wrong(f"{text[:60]!r} is not a host's name")


def _list(where: Where) -> None:
    for item in where.items():
        _whole_text(item)


def _whole_text(where: Where) -> None:
    """A text that makes no sense without the values in it."""
    if not where.incomplete():
        where.text()


def _capabilities(where: Where) -> None:
    """Engines take the prefix away, or put it there: what has it twice would be another one to them than to us."""
    for item in where.items():
        if not item.incomplete() and not _CAPABILITY.fullmatch(item.text().upper()):
            item.wrong(f"{item.text()[:40]!r} is not a capability such as NET_ADMIN")


def _ports(where: Where) -> None:
    for item in where.items():
        if not item.incomplete() and not _PORT.fullmatch(item.text()):
            item.wrong(
                f"{item.text()[:40]!r} is not a port inside, or a range of them: nothing is published by it"
            )


def _text_or_list(where: Where) -> None:
    (_list if isinstance(where.node, Items) else _whole_text)(where)


def _pairs(where: Where) -> None:
    """A list of texts, or a mapping to texts."""
    if isinstance(where.node, Items):
        for item in where.items():
            item.text()
        return
    for item in where.table().values():
        if not (isinstance(item.node, Scalar) and item.node.value is None):
            item.loose_text()


def _hosts(where: Where) -> None:
    for item, text in hosts(where):
        name, _, address = text.partition("=")
        if not _HOST.fullmatch(name) or not _ADDRESS.fullmatch(address):
            item.wrong(f"{text[:80]!r} is not a host's name with an address, or `host-gateway`")


def hosts(where: Where) -> list[tuple[Where, str]]:
    """`extra_hosts` as NAME=ADDRESS, each with its place. What waits for a value is left out."""
    found = []
    if isinstance(where.node, Items):
        for item in where.items():
            text = "" if item.incomplete() else item.text()
            cut = min((i for i in map(text.find, "=:") if i > 0), default=len(text))
            found += [(item, f"{text[:cut]}={text[cut + 1 :].strip('[]')}")] if text else []
        return found
    for name, item in where.table().items():
        for one in item.items() if isinstance(item.node, Items) else [item]:
            if not one.incomplete():
                found.append((one, f"{name}={one.text().strip('[]')}"))
    return found


def _whole(low: int, high: int) -> Callable[[Where], None]:
    def read(where: Where) -> None:
        where.integer(low, high)

    return read


def _limits(where: Where) -> None:
    for item in where.table().values():
        if not isinstance(item.node, Table):
            item.integer(-1, MAX_LIMIT)
            continue
        both = item.table(frozenset({"soft", "hard"}))
        if len(both) < 2:
            item.wrong("expected a number, or `soft` and `hard`")
        for one in both.values():
            one.integer(-1, MAX_LIMIT)


def limits(where: Where) -> dict[str, int | dict[str, int]]:
    """`ulimits` as numbers, in whatever form they are said."""
    return {
        name: item.integer(-1, MAX_LIMIT)
        if isinstance(item.node, Scalar)
        else {key: one.integer(-1, MAX_LIMIT) for key, one in item.table().items()}
        for name, item in where.table().items()
    }


def several(where: Where) -> str | list[str]:
    """A text, or a list of them without empty ones."""
    if not isinstance(where.node, Items):
        return where.text()
    return [text for item in where.items() if (text := item.text())]


def labels(where: Where) -> dict[str, str]:
    """`labels` without those that are the engine's own to set."""
    found = {}
    pairs = (
        [(item, *item.text().partition("=")[::2]) for item in where.items()]
        if isinstance(where.node, Items)
        else [(item, name, _label(item)) for name, item in where.table().items()]
    )
    for item, name, text in pairs:
        if name.startswith(ENGINES):
            item.idle(NOT_ITS_OWN)
        else:
            found[name] = text
    return found


def _label(where: Where) -> str:
    return "" if isinstance(where.node, Scalar) and where.node.value is None else where.loose_text()


FORMS: Mapping[str, Callable[[Where], None]] = {
    **dict.fromkeys(("shm_size", "mem_reservation"), _size),
    "hostname": _name,
    "platform": _text,
    **dict.fromkeys(("dns_opt", "group_add"), _list),
    **dict.fromkeys(("cap_add", "cap_drop"), _capabilities),
    "expose": _ports,
    **dict.fromkeys(("tmpfs", "dns", "dns_search"), _text_or_list),
    **dict.fromkeys(("labels", "sysctls"), _pairs),
    "extra_hosts": _hosts,
    "cpu_shares": _whole(0, 262144),
    "oom_score_adj": _whole(-1000, 1000),
    "ulimits": _limits,
}
"""Of those that nothing else looks into."""
