"""Catalog kind: lists and fetches manifests from somewhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import IO, Protocol, runtime_checkable

from fractal.api.backend import Backend, C, Offer
from fractal.api.building import ImageBuild


@dataclass(frozen=True, slots=True, kw_only=True)
class CatalogItem:
    """An app that can be installed."""

    name: str
    title: str
    summary: str = ""
    version: str = ""


class Catalog(Protocol):
    """A source of manifests. What it returns is untrusted text."""

    async def items(self) -> Sequence[CatalogItem]:
        """Everything on offer, sorted by name; entries that cannot be read are left out and logged."""

    async def manifest(self, name: str) -> str:
        """The manifest's text. Raises NotFound."""


@runtime_checkable
class SupportsFiles(Protocol):
    """Optional: a catalog whose manifests may name files beside them."""

    async def files(self, name: str, paths: Sequence[str]) -> Mapping[str, str]:
        """Texts of files of an app, by the relative paths that its manifest names. What is not there, leads elsewhere or is no text
        is left out."""


@runtime_checkable
class SupportsContexts(Protocol):
    """Optional: a catalog whose manifests may build images of folders beside them."""

    async def why_not(self, name: str, build: ImageBuild) -> str:
        """Why a build of an app has nothing to work on; "" if its context is there."""

    async def pack(self, name: str, build: ImageBuild, into: IO[bytes]) -> None:
        """Write the context as a tar archive, see `fractal.api.build_context`. Raises InvalidInput, BackendError."""


class CatalogOffer(Offer):
    """A `CatalogBackend` of any config type: what `fractal_catalogs` yields."""

    __slots__ = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class CatalogBackend(CatalogOffer, Backend[Catalog, C]):
    """Offers a `Catalog`."""
