"""The table of layers in the architecture page is what the modules import."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from .markdown import ROOT

PACKAGE = ROOT / "fractal"


def documented() -> dict[str, set[str]]:
    text = (ROOT / "docs" / "explanation" / "architecture.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `fractal/(\w+)(?:\.py)?` \|.*\| ([^|]*) \|$", text, flags=re.MULTILINE)
    return {layer: set(re.findall(r"`(\w+)`", imports)) for layer, imports in rows}


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        modules = [node.module] if isinstance(node, ast.ImportFrom) else []
        modules += [a.name for a in node.names] if isinstance(node, ast.Import) else []
        yield from (m.split(".")[1] for m in modules if m and m.startswith("fractal."))


def test_each_layer_imports_what_the_page_says_and_nothing_else() -> None:
    found: dict[str, set[str]] = defaultdict(set)
    for path in PACKAGE.rglob("*.py"):
        layer = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        found[layer] |= set(imports(path)) - {layer}
    assert len(documented()) >= 12
    for layer, allowed in documented().items():
        assert found[layer] <= allowed, layer


def test_the_guard_process_needs_the_standard_library_only() -> None:
    for path in (PACKAGE / "guard").glob("*.py"):
        if path.name not in ("client.py", "launch.py"):
            assert set(imports(path)) <= {"guard"}, path.name
