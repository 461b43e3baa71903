"""`{port.NAME}`, `{data.VOLUME}`, `{secret.NAME}`, `{file.NAME}`, `{python}`, `{run}` in argv, env and files."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from fractal.api.app import ServiceSpec

PLACEHOLDER = re.compile(r"\{(?:(port|data|secret|file)\.([A-Za-z0-9_.-]+)|(python|run))\}")


def names(text: str) -> Iterator[str]:
    """Every placeholder in a text, as `port.web` or `run`."""
    for match in PLACEHOLDER.finditer(text):
        yield match[0][1:-1]


def texts(service: ServiceSpec) -> Iterator[tuple[str, str]]:
    """(key, text) of everything in a process service in which placeholders are replaced."""
    assert service.process is not None
    for index, text in enumerate(service.process.argv):
        yield f"process.argv[{index}]", text
    for name, text in service.process.files.items():
        yield f"process.files.{name}", text
    for name, text in service.env.items():
        yield f"environment.{name}", text
    if service.health is not None:
        for index, text in enumerate(service.health.test):
            yield f"healthcheck.test[{index}]", text


def fill(text: str, values: Mapping[str, str]) -> str:
    """Replace every placeholder. Other braces stay as they are. Raises KeyError for one without a value."""
    return PLACEHOLDER.sub(lambda match: values[match[0][1:-1]], text)
