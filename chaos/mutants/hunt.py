"""Plant a mutant and run seeds until the simulator notices. Called by ``python -m chaos mutants`` and by tests/chaos."""

from __future__ import annotations

from typing import NamedTuple

from chaos.mutants.catalogue import SEEDS_MAX, Mutant
from chaos.sim.world import run_seed


class Catch(NamedTuple):
    """How a mutant was caught: after how many seeds, and what the checker said."""

    seeds: int
    seed: int
    verdict: str


def hunt(mutant: Mutant, *, first_seed: int = 0, seeds: int = SEEDS_MAX) -> Catch | None:
    """None when the mutant survived all seeds. A crash of the code under test counts as caught: it is loud."""
    with mutant.planted():
        for tried, seed in enumerate(range(first_seed, first_seed + seeds), start=1):
            try:
                _, violation = run_seed(seed)
            except Exception as error:
                return Catch(tried, seed, f"{type(error).__name__}: {error}")
            if violation is not None:
                return Catch(tried, seed, str(violation).split(" (at ")[0])
    return None
