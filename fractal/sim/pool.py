"""Seeds one after the other, or in several processes at once."""

from __future__ import annotations

import gc
import multiprocessing
import time
from collections.abc import Iterator
from dataclasses import replace

from fractal.sim.world import Result, collect, simulate, sweep

SEEDS_EACH = 100
"""Seeds after which a process is replaced by a new one, as what a killed agent leaves behind is never cleaned up."""
GARBAGE = 1_000_000
"""Objects that killed agents may leave behind before they are collected: a collection after each seed costs more than it frees."""
LIMIT = 1800.0
"""Seconds without any result after which processes are given up: one of them was killed, or hangs."""


class Run:
    """Runs one seed. Here, and not where the program begins: other processes find it by its module."""

    def __init__(self, only: tuple[int, ...] | None, *, timeline: bool) -> None:
        self.only = only
        self.timeline = timeline

    def __call__(self, seed: int) -> tuple[Result, float]:
        """What it gave, and the seconds of a processor that it took."""
        began = time.process_time()
        result = simulate(seed, only=self.only)
        if gc.get_count()[0] > GARBAGE:
            collect()
        if not (result.violations or self.timeline):
            # What nobody is going to print need not go from process to process.
            result = replace(result, timeline=())
        return result, time.process_time() - began


def results(run: Run, seeds: range, *, jobs: int, seconds: float) -> Iterator[tuple[Result, float]]:
    """Results in the order of their seeds, for at most so many seconds. Raises TimeoutError if processes give none."""
    end = time.monotonic() + seconds
    sweep()
    if jobs <= 1:
        _prepare()
        for seed in seeds:
            if time.monotonic() > end:
                return
            yield run(seed)
        return
    # Forked by a process that has imported everything and does nothing else: importing costs as much as two seeds.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    with context.Pool(jobs, _prepare, maxtasksperchild=SEEDS_EACH) as pool:
        coming = pool.imap(run, seeds)
        for seed in seeds:
            left = end - time.monotonic()
            if left <= 0:
                return
            try:
                yield coming.next(timeout=min(left, LIMIT))
            except multiprocessing.TimeoutError as error:
                if left <= LIMIT:
                    return
                raise TimeoutError(
                    f"seed {seed} gave nothing for {LIMIT:.0f} s: a process died, or hangs"
                ) from error


def _prepare() -> None:
    """What was imported is no garbage, and need not be looked at; whatever else becomes some is collected by `Run`."""
    gc.freeze()
    gc.disable()
