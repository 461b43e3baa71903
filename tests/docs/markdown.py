"""What the documents consist of: headings, links, code. Enough of Markdown for our own pages."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
MADE = "<!-- Made by"
SKIP = "<!-- not run by the test"
_LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)")
_SPAN = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")


@dataclass(frozen=True)
class Block:
    """A block of code."""

    page: Path
    line: int
    language: str
    """After the fence; "" for one that is only indented."""
    text: str
    skipped: bool = False
    """Marked as not to be run."""

    @property
    def where(self) -> str:
        """For people."""
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def pages() -> list[Path]:
    """Every document of the project. Parts of made pages are looked at where they end up."""
    found = [*ROOT.glob("*.md")]
    for folder in ("docs", "contrib", "plugins"):
        found += [p for p in (ROOT / folder).rglob("*.md") if "reference-text" not in p.parts]
    return sorted(found)


def is_made(page: Path) -> bool:
    """Whether a program writes it."""
    return page.read_text(encoding="utf-8").startswith(MADE)


def blocks(page: Path) -> list[Block]:
    """Fenced and indented code, in order."""
    found: list[Block] = []
    fence, language, start, held, skip = False, "", 0, list[str](), False
    indented: list[str] = []
    before = ""
    lines = [*page.read_text(encoding="utf-8").splitlines(), ""]
    for number, line in enumerate(lines, 1):
        if (
            not fence
            and (line.startswith("    ") and (indented or not before.strip()))
            and not _listed(lines, number)
        ):
            indented.append(line[4:])
            before = line
            continue
        if indented and line.strip():
            found.append(Block(page, number - len(indented), "", "\n".join(indented)))
            indented = []
        elif indented:
            indented.append("")
        if line.startswith("```"):
            if fence:
                found.append(Block(page, start, language, "\n".join(held), skip))
                skip = False
            fence, language, start, held = not fence, line[3:].strip(), number + 1, []
        elif fence:
            held.append(line)
        elif line.startswith(SKIP):
            skip = True
        before = line
    if indented:
        found.append(Block(page, len(lines) - len(indented), "", "\n".join(indented)))
    assert not fence, f"{page}: a fence is not closed"
    return found


def _listed(lines: list[str], number: int) -> bool:
    """Whether an indented line goes on with an item of a list."""
    for line in reversed(lines[: number - 1]):
        if line and not line.startswith(" "):
            return bool(re.match(r"([-*]|\d+\.) ", line))
    return False


def prose(page: Path) -> str:
    """The text without blocks of code."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    return re.sub(r"^ {4}.*$", "", text, flags=re.MULTILINE)


def spans(page: Path) -> list[str]:
    """Inline code."""
    return _SPAN.findall(prose(page))


def links(page: Path) -> list[str]:
    """Targets of links."""
    return _LINK.findall(_SPAN.sub("", prose(page)))


def anchors(page: Path) -> set[str]:
    """What a link can point to in a page: its headings, as they are made into anchors."""
    found: set[str] = set()
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    for heading in re.findall(r"^#{1,6} (.+)$", text, flags=re.MULTILINE):
        slug = re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-")
        name, count = slug, 1
        while name in found:
            name, count = f"{slug}-{count}", count + 1
        found.add(name)
    return found
