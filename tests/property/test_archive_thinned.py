"""Random lives on the builtin snapshotter: stored, merged, let go, collected, restored, with restarts, and a clock that leaps."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path
from random import Random

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fractal.builtin.copy.config import CopyConfig
from fractal.builtin.copy.snapshotter import open_copy
from fractal.builtin.directory import open_directory
from fractal.builtin.directory_config import DirectoryConfig
from fractal.testing.context import real_context
from fractal.testing.thinned_life import HOURS, NAMES, Life, Step, random_steps

STEPS: st.SearchStrategy[list[Step]] = st.lists(
    st.one_of(
        st.tuples(st.just("write"), st.sampled_from(NAMES), st.integers(0, 60_000)),
        st.tuples(st.just("patch"), st.sampled_from(NAMES), st.integers(0, 50_000)),
        st.tuples(st.sampled_from(["delete", "link", "rename"]), st.sampled_from(NAMES), st.integers(0, 5)),
        st.tuples(st.just("save"), st.just(""), st.just(0)),
        st.tuples(st.just("save"), st.just(""), st.just(0)),
        st.tuples(st.just("hours"), st.just(""), st.sampled_from(HOURS)),
        st.tuples(st.sampled_from(["thin", "collect", "restart"]), st.just(""), st.just(0)),
        st.tuples(st.just("restore"), st.just(""), st.integers(0, 99)),
    ),
    max_size=40,
)


async def live(steps: list[Step], folder: Path) -> int:
    async with (
        real_context(folder / "one") as one,
        real_context(folder / "two") as two,
        open_copy(one, CopyConfig(path=folder / "volumes-1")) as here,
        open_copy(two, CopyConfig(path=folder / "volumes-2")) as there,
        open_directory(one, DirectoryConfig(path=folder / "store")) as store,
    ):
        life = Life(context=one, store=store, here=here, there=there, folder=folder)
        await life.live(steps)
        return life.thinned


@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(steps=STEPS)
def test_every_moment_that_is_listed_comes_back(steps: list[Step]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(live(steps, Path(folder)))


def test_a_long_life(tmp_path: Path) -> None:
    assert asyncio.run(live(random_steps(Random(7), 150), tmp_path)) > 5
