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
MAX_LIMIT = (1 << 63) - 1


def formed(where: Where, key: str) -> None:
    """Say what is wrong with the form of a key, if anything is."""
    if key in FORMS:
        FORMS[key](where)


def _size(where: Where) -> None:
    where.size()


def _text(where: Where) -> None:
    where.text()


def _list(where: Where) -> None:
    for item in where.items():
        item.text()


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
    (_list if isinstance(where.node, Items) else _text)(where)


def _pairs(where: Where) -> None:
    """A list of texts, or a mapping to texts; extra_hosts may have several of them for a name."""
    if isinstance(where.node, Items):
        _list(where)
        return
    for item in where.table().values():
        if isinstance(item.node, Items):
            _list(item)
        elif not (isinstance(item.node, Scalar) and item.node.value is None):
            item.loose_text()


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


FORMS: Mapping[str, Callable[[Where], None]] = {
    **dict.fromkeys(("shm_size", "mem_reservation"), _size),
    **dict.fromkeys(("hostname", "platform"), _text),
    **dict.fromkeys(("dns_opt", "group_add"), _list),
    **dict.fromkeys(("cap_add", "cap_drop"), _capabilities),
    "expose": _ports,
    **dict.fromkeys(("tmpfs", "dns", "dns_search"), _text_or_list),
    **dict.fromkeys(("labels", "extra_hosts", "sysctls"), _pairs),
    "cpu_shares": _whole(0, 262144),
    "oom_score_adj": _whole(-1000, 1000),
    "ulimits": _limits,
}
"""Of those that nothing else looks into."""
