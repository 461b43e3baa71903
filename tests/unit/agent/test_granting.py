"""What the guard is told of an app's runs follows everything that it is found of."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from fractal.agent.jobs import guarding
from fractal.testing.agents import bed


async def test_a_deadline_is_found_anew_when_anything_differs_that_it_hangs_on(tmp_path: Path) -> None:
    async with bed(tmp_path) as beds:
        await beds.start("attic")
        await beds.found("attic")
        await beds.install("attic")
        job = beds.job("attic")
        group, epoch = job.group, job.app.epoch

        glances: list[tuple[object, ...]] = []

        def told(last: guarding._Wish | None) -> guarding._Wish:
            glances.append(guarding._basis(group))
            return guarding._wish(job, last)

        # From here on nothing is awaited: the agent itself changes nothing in between.
        first = told(None)
        ((key, until),) = first.deadlines.items()
        assert until == job.right().deadline
        assert told(first) is first
        assert glances[-1] == glances[-2]

        assert group.journal.proof_sent is not None
        group.journal.proof_sent += 1.0
        proved = told(first)
        assert proved.deadlines == {key: job.right().deadline} != first.deadlines
        assert glances[-1] != glances[-2]

        before = job.facts.now
        job.facts.now = replace(before, released=epoch)
        assert told(proved).deadlines == {}
        assert glances[-1] != glances[-2]
        job.facts.now = before
        assert told(proved) == proved

        store = group.stores[job.app.store]
        known = store.listed[job.id]
        store.listed = {**store.listed, job.id: {**known, epoch + 1: known[epoch]}}
        over = told(proved)
        assert (over.deadlines, over.replaced) == ({}, (key,))
        assert glances[-1] != glances[-2]


async def test_an_owner_is_bound_by_a_policy_only_when_its_guard_is(tmp_path: Path) -> None:
    """The guard holds on to the latest deadline it was told, and the policy had it told one an hour ahead."""
    async with bed(tmp_path) as beds:
        await beds.start("attic")
        await beds.found("attic")
        await beds.install("attic")
        job = beds.job("attic")
        guard, clock = job.group.agent.guard, job.group.agent.clock

        async def granted() -> float:
            return (
                max((run.deadline for run in (await guard.status()).values()), default=0.0) - clock.boottime()
            )

        kept = await beds.call("attic", "app.policy", app="test", failover="manual", on_isolation="keep")
        assert "starts it in a new epoch" in kept["plan"][0]["what"]
        await beds.until(lambda: job.app.serving == 2)
        assert job.app.unproven
        assert await granted() > 1000
        assert len(await beds.starts("attic")) == 2, "the owner renewed its epoch"

        bound = await beds.call(
            "attic", "app.policy", app="test", failover="automatic", on_isolation="freeze"
        )
        assert "nobody takes it over before attic has read that" in bound["plan"][0]["what"]
        await beds.until(lambda: job.app.unproven == 0)
        assert await granted() <= job.terms.timers.proof / 1000
        await beds.until(lambda: all(not run.frozen for run in job.runs()))
        assert (job.app.epoch, len(await beds.starts("attic"))) == (2, 2), "it ran on"


async def test_an_idle_app_is_started_anew_for_the_policy_also_by_an_agent_that_stored_nothing_yet(
    tmp_path: Path,
) -> None:
    """Copying rounds come before it, and their number was only counted for other devices: it ticked on and on."""
    async with bed(tmp_path) as beds:
        await beds.start("attic")
        await beds.found("attic")
        await beds.install("attic")
        saver = beds.job("attic").saver
        await beds.until(lambda: saver.caught_up and beds.job("attic").facts.now.committed)
        saver.last_round = None  # as of an agent that was started beside the app
        await beds.call("attic", "app.policy", app="test", failover="manual", on_isolation="keep")
        await beds.until(lambda: beds.job("attic").app.serving == 2)
        assert beds.job("attic").app.unproven
