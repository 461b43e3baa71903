"""An agent of the next minor version: says so, writes an entry of a kind and a field in another that older ones do not know."""

import sys

if sys.orig_argv[-2:] == ["agent", "run"]:
    from dataclasses import dataclass, make_dataclass

    import fractal

    fractal.__version__ = "0.2.0"

    from fractal.core import entries

    @dataclass(frozen=True, slots=True, kw_only=True)
    class PantryOpened:
        """Something that only the next version has."""

        shelf: str

    entries.KINDS = {**entries.KINDS, "pantry.opened": PantryOpened}
    old = entries.Serving
    entries.Serving = make_dataclass(
        "Serving", [("mood", str, "cheerful")], bases=(old,), frozen=True, kw_only=True
    )
    entries.KINDS["lease.serving"] = entries.Serving

    from fractal.core import fold_lease, log

    log._HANDLERS = {**log._HANDLERS, PantryOpened: lambda turn, entry: turn.state}
    log._HANDLERS[entries.Serving] = fold_lease.serving

    from fractal.agent.jobs import upkeep

    publish = upkeep._publish
    opened = set()

    async def publish_and_open(group):
        await publish(group)
        if group.id not in opened:
            opened.add(group.id)
            await group.journal.append(PantryOpened(shelf="top"))

    upkeep._publish = publish_and_open
