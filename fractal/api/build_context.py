"""Packing a folder as the context of a build, with what its `.dockerignore` leaves out left out.

Whoever wrote the manifest may have made the folder too: nothing outside it gets in, by no name and by no link, and what is
there is bounded. The patterns are those of https://docs.docker.com/build/concepts/context/#dockerignore-files
"""

from __future__ import annotations

import io
import os
import posixpath
import re
import stat
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

from fractal.api.building import INLINE, ImageBuild
from fractal.api.errors import InvalidInput

MAX_BYTES = 512 << 20
MAX_FILES = 100_000
MAX_DEPTH = 64
MAX_IGNORE = 1 << 16
"""Bytes of a `.dockerignore`."""
LONGEST = 3
"""Of the largest entries, how many an error names."""
MAX_PATTERNS = 1000
MAX_STARS = 8
"""Of a pattern; more would take long to look for."""
_SPECIAL = re.compile(r"[\\\[\]^&~|]")
_OPEN = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


@dataclass(frozen=True, slots=True)
class Packed:
    """What a context came to."""

    files: int
    bytes: int
    """Of the tar archive."""


@dataclass(frozen=True, slots=True)
class _Entry:
    """Something that gets into the context."""

    path: str
    found: os.stat_result
    link: str = ""


def pack(manifest_folder: Path, build: ImageBuild, into: IO[bytes]) -> Packed:
    """Write the context of `build`, which is below `manifest_folder`, as a tar archive.

    Raises InvalidInput naming what is missing, leads out of the folder, or is too large.
    """
    where = f"build context {build.context}"
    handle = _enter(manifest_folder, build.context, where)
    try:
        ignored = _ignored(handle, build, where)
        entries = list(_listed(handle, ignored, where))
        _bounded(entries, where)
        if not build.inline and not any(
            e.path == build.file and stat.S_ISREG(e.found.st_mode) for e in entries
        ):
            raise InvalidInput(f"{where}: holds no Dockerfile {build.file}; name it by `dockerfile`")
        with tarfile.open(fileobj=into, mode="w", format=tarfile.PAX_FORMAT) as tar:
            for entry in entries:
                _add(tar, handle, entry, where)
            if build.inline:
                text = build.inline.encode()
                inline = tarfile.TarInfo(INLINE)
                inline.size = len(text)
                tar.addfile(inline, io.BytesIO(text))
            end = tar.offset + 2 * tarfile.BLOCKSIZE
        # Without the zeros that follow an archive's end: an engine that stops reading there hangs up on whoever sends more, and
        # what it said last is lost.
        into.truncate(end)
        into.seek(end)
    except OSError as error:
        raise InvalidInput(f"{where}: {error.filename or ''}: {error.strerror}") from error
    finally:
        os.close(handle)
    return Packed(len(entries), into.tell())


def why_not(manifest_folder: Path, build: ImageBuild) -> str:
    """Why a build has nothing to work on beside the manifest; "" if its context and its Dockerfile are there. Packs nothing."""
    where = f"build context {build.context}"
    try:
        handle = _enter(manifest_folder, build.context, where)
        try:
            if not build.inline:
                os.close(_below(handle, build.file))
        finally:
            os.close(handle)
    except InvalidInput as error:
        return str(error)
    except OSError:
        return f"{where}: holds no Dockerfile {build.file}"
    return ""


def _enter(folder: Path, context: str, where: str) -> int:
    """The folder, opened step by step: no step is a link."""
    parts = [part for part in context.split("/") if part not in ("", ".")]
    if ".." in parts or context.startswith(("/", "~")) or "\0" in context:
        raise InvalidInput(f"{where}: leads out of the manifest's folder")
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for part in parts:
            above, handle = handle, os.open(part, _OPEN | os.O_DIRECTORY, dir_fd=handle)
            os.close(above)
    except OSError as error:
        os.close(handle)
        raise InvalidInput(f"{where}: is no folder beside the manifest, or a link") from error
    return handle


def _below(handle: int, path: str) -> int:
    """A file below an opened folder, opened step by step. Raises OSError."""
    at = os.dup(handle)
    try:
        parts = PurePosixPath(path).parts
        for number, part in enumerate(parts, 1):
            more = os.O_DIRECTORY if number < len(parts) else 0
            above, at = at, os.open(part, _OPEN | more, dir_fd=at)
            os.close(above)
    except OSError:
        os.close(at)
        raise
    return at


def _listed(handle: int, ignored: Ignored, where: str, above: str = "", depth: int = 0) -> Iterator[_Entry]:
    """All that is not left out, in the order of names. Raises InvalidInput."""
    if depth > MAX_DEPTH:
        raise InvalidInput(f"{where}: {above}: folders in folders, more than {MAX_DEPTH} deep")
    for name in sorted(os.listdir(handle)):
        path = f"{above}{name}"
        found = os.stat(name, dir_fd=handle, follow_symlinks=False)
        folder = stat.S_ISDIR(found.st_mode)
        if out := ignored.matches(path):
            if not folder or not ignored.may_take_back(path):
                continue
        elif stat.S_ISLNK(found.st_mode):
            yield _Entry(path, found, _inside(path, os.readlink(name, dir_fd=handle), where))
        elif folder or stat.S_ISREG(found.st_mode):
            yield _Entry(path, found)
        elif not stat.S_ISSOCK(found.st_mode):
            raise InvalidInput(
                f"{where}: {path}: neither a file nor a folder nor a link; leave it out by .dockerignore"
            )
        if folder:
            below = os.open(name, _OPEN | os.O_DIRECTORY, dir_fd=handle)
            try:
                inner = list(_listed(below, ignored, where, f"{path}/", depth + 1))
            finally:
                os.close(below)
            if out and inner:
                yield _Entry(path, found)
            yield from inner


def _inside(path: str, target: str, where: str) -> str:
    """A link's target. Raises InvalidInput if it leads out of the context."""
    at = list(PurePosixPath(path).parts[:-1])
    for part in PurePosixPath(target).parts:
        if part != "..":
            at.append(part)
        elif at:
            at.pop()
        else:
            break
    else:
        if not target.startswith("/"):
            return target
    raise InvalidInput(
        f"{where}: {path} is a link to {target[:80]!r}, which leads out of it; put the file itself there, or leave it out by "
        ".dockerignore"
    )


def _bounded(entries: Sequence[_Entry], where: str) -> None:
    size = sum(e.found.st_size for e in entries if stat.S_ISREG(e.found.st_mode))
    if size <= MAX_BYTES and len(entries) <= MAX_FILES:
        return
    below: dict[str, int] = {}
    for entry in entries:
        if stat.S_ISREG(entry.found.st_mode):
            top = entry.path.partition("/")[0]
            below[top] = below.get(top, 0) + entry.found.st_size
    largest = sorted(below.items(), key=lambda item: -item[1])[:LONGEST]
    named = ", ".join(f"{name} {size / 2**20:.1f} MiB" for name, size in largest)
    raise InvalidInput(
        f"{where}: {size / 2**20:.1f} MiB in {len(entries)} files, and at most {MAX_BYTES >> 20} MiB in {MAX_FILES} are taken "
        f"(most of it: {named}); leave out by .dockerignore what the build does not need"
    )


def _add(tar: tarfile.TarFile, handle: int, entry: _Entry, where: str) -> None:
    """Without owners, as `docker build` sends them: nothing of this machine's users is anybody's business."""
    info = tarfile.TarInfo(entry.path)
    info.mode, info.mtime = stat.S_IMODE(entry.found.st_mode), int(entry.found.st_mtime)
    if entry.link:
        info.type, info.linkname = tarfile.SYMTYPE, entry.link
        tar.addfile(info)
    elif stat.S_ISDIR(entry.found.st_mode):
        info.type = tarfile.DIRTYPE
        tar.addfile(info)
    else:
        with os.fdopen(_below(handle, entry.path), "rb") as file:
            # A link or a pipe in its place since is not opened; a file that grows would tear the archive.
            found = os.fstat(file.fileno())
            if not stat.S_ISREG(found.st_mode) or found.st_size != entry.found.st_size:
                raise InvalidInput(f"{where}: {entry.path}: changed while it was read; try again")
            info.size = found.st_size
            tar.addfile(info, file)


# -- what is left out


@dataclass(frozen=True, slots=True)
class Ignored:
    """Patterns of a `.dockerignore`, in order: the last one that fits a path decides."""

    patterns: tuple[tuple[re.Pattern[str], bool], ...]
    """(what fits, whether it is taken back)."""
    kept: frozenset[str] = frozenset()
    """What the build needs whatever the patterns say."""

    def may_take_back(self, folder: str) -> bool:
        """Whether something below a folder that is left out may be taken after all."""
        return any(path.startswith(f"{folder}/") for path in self.kept) or any(b for _, b in self.patterns)

    def matches(self, path: str) -> bool:
        """Whether a path, or a folder above it, is left out."""
        out = False
        for pattern, back in self.patterns:
            if out == back and pattern.fullmatch(path):
                out = not back
        return out and path not in self.kept


def ignoring(text: str, kept: Sequence[str] = (), where: str = ".dockerignore") -> Ignored:
    """The patterns of a `.dockerignore`. Raises InvalidInput for one that is not looked for: what it was to keep out, such as a
    file of secrets, would get in unseen."""
    found: list[tuple[re.Pattern[str], bool]] = []
    for number, line in enumerate(text.lstrip("\ufeff").splitlines(), 1):
        line = line if line.startswith("#") else line.strip()
        back = line.startswith("!")
        path = line.removeprefix("!").strip()
        words = [p for p in posixpath.normpath(path).split("/") if p not in ("", ".")] if path else []
        if line.startswith("#") or not words or words[0] == "..":
            continue
        words = [w for w, before in zip(words, ["", *words], strict=False) if (w, before) != ("**", "**")]
        if len(found) == MAX_PATTERNS or "/".join(words).count("*") > MAX_STARS:
            raise InvalidInput(
                f"{where}:{number}: at most {MAX_PATTERNS} patterns with up to {MAX_STARS} stars each are looked for"
            )
        with_below = f"(?s:{_pattern(words)})(?:/.*)?"
        try:
            found.append((re.compile(with_below, re.DOTALL), back))
        except re.error as error:
            raise InvalidInput(f"{where}:{number}: {line[:80]!r} is no pattern: {error}") from error
    return Ignored(tuple(found), frozenset(kept))


def _pattern(words: Sequence[str]) -> str:
    """Of Go's filepath.Match, and `**` for any number of folders."""
    regex = ""
    for number, word in enumerate(words):
        last = number == len(words) - 1
        if word == "**":
            regex += ".*" if last else "(?:[^/]*/)*"
            continue
        regex += _word(word) + ("" if last else "/")
    return regex


def _word(word: str) -> str:
    regex, at = "", 0
    while at < len(word):
        c = word[at]
        at += 1
        if c == "*":
            while word[at : at + 1] == "*":
                at += 1
            regex += "[^/]*"
        elif c == "?":
            regex += "[^/]"
        elif c == "[" and (end := word.find("]", at + 1)) > 0:
            inner = word[at:end]
            negated = "^" if inner.startswith("^") else ""
            escaped = _SPECIAL.sub(r"\\\g<0>", inner.removeprefix("^"))
            regex += f"[{negated}{escaped}]"
            at = end + 1
        elif c == "\\" and at < len(word):
            regex += re.escape(word[at])
            at += 1
        else:
            regex += re.escape(c)
    return regex


def _ignored(handle: int, build: ImageBuild, where: str) -> Ignored:
    """`DOCKERFILE.dockerignore` goes before `.dockerignore`; neither of what the builder reads is ever left out."""
    names = (f"{build.file}.dockerignore", ".dockerignore")
    for name in names:
        try:
            with os.fdopen(_below(handle, name), "rb") as file:
                data = file.read(MAX_IGNORE + 1) if stat.S_ISREG(os.fstat(file.fileno()).st_mode) else b""
        except FileNotFoundError:
            continue
        except OSError as error:
            raise InvalidInput(f"{where}: {name}: {error.strerror}") from error
        if len(data) > MAX_IGNORE:
            raise InvalidInput(f"{where}: {name} is larger than {MAX_IGNORE} bytes")
        return ignoring(data.decode("utf-8", "replace"), [build.file], f"{where}: {name}")
    return Ignored(())
