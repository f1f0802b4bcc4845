"""``python -m chaos``: prove the cluster's promises.

    sim       run seeded simulations of whole clusters       --seed S [--trace] | --seeds N [--first S] [--jobs J]
    mutants   re-plant known bugs and see them caught         [--seeds N] [--only NAME ...]
    live      real processes, real faults, checked histories  [--nemesis A,B] [--duration S] [--seed S] [--nodes N]
    figures   measure what is promised of failovers           [--only A,B]

Exit status 0: every promise held (every mutant was caught). A failing seed prints the one command that replays it.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from typing import NamedTuple

from chaos.live import cli as live
from chaos.mutants.catalogue import MUTANTS, SEEDS_MAX
from chaos.mutants.hunt import Catch, hunt
from chaos.sim.world import run_seed


class _Ran(NamedTuple):
    seed: int
    violation: str | None
    digest: str
    counts: Counter[str]


def _run_one(seed: int) -> _Ran:
    world, violation = run_seed(seed)
    return _Ran(seed, None if violation is None else str(violation), world.digest, world.checkers.counts)


def _sim(options: argparse.Namespace) -> int:
    if options.seed is not None:
        world, violation = run_seed(options.seed, keep_trace=options.trace)
        for line in world.lines or ():
            print(line)
        print(f"seed {options.seed}: {violation or 'every promise held'}; trace {world.digest[:16]}")
        return 1 if violation else 0
    seeds = range(options.first, options.first + options.seeds)
    failed, counts = 0, Counter[str]()
    with ProcessPoolExecutor(options.jobs) as pool:
        for ran in pool.map(_run_one, seeds, chunksize=4):
            counts.update(ran.counts)
            if ran.violation is not None:
                failed += 1
                print(f"seed {ran.seed}: {ran.violation}", flush=True)
    print(f"{len(seeds)} seeds, {failed} failed")
    for name, count in sorted(counts.items()):
        print(f"  {name:24} {count:10,}")
    return 1 if failed else 0


def _hunt_one(task: tuple[int, int]) -> Catch | None:
    index, seeds = task
    return hunt(MUTANTS[index], seeds=seeds)


def _mutants(options: argparse.Namespace) -> int:
    chosen = [index for index, mutant in enumerate(MUTANTS) if not options.only or mutant.name in options.only]
    survivors = 0
    print(f"{'mutant':28} {'seeds':>5}  what the checker said")
    with ProcessPoolExecutor(options.jobs) as pool:
        catches = pool.map(_hunt_one, [(index, options.seeds) for index in chosen])
        for index, catch in zip(chosen, catches, strict=True):
            survivors += catch is None
            told = f"{catch.seeds:5}  {catch.verdict[:110]}" if catch else f"{'-':>5}  SURVIVED {options.seeds} seeds"
            print(f"{MUTANTS[index].name:28} {told}", flush=True)
    print(f"{len(chosen)} mutants, {survivors} survived")
    return 1 if survivors else 0


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m chaos", description="Prove the cluster's promises.")
    commands = parser.add_subparsers(dest="command", required=True)
    sim = commands.add_parser("sim", help="seeded simulations of whole clusters")
    sim.add_argument("--seed", type=int, help="run this one seed")
    sim.add_argument("--trace", action="store_true", help="print its trace")
    sim.add_argument("--seeds", type=int, default=100, help="how many seeds to run (default 100)")
    sim.add_argument("--first", type=int, default=0, help="first seed (default 0)")
    sim.add_argument("--jobs", type=int, default=2, help="processes (default 2)")
    sim.set_defaults(run=_sim)
    mutants = commands.add_parser("mutants", help="re-plant known bugs")
    mutants.add_argument("--seeds", type=int, default=SEEDS_MAX, help=f"seeds per mutant (default {SEEDS_MAX})")
    mutants.add_argument("--only", nargs="*", metavar="NAME", help="these mutants")
    mutants.add_argument("--jobs", type=int, default=2, help="processes (default 2)")
    mutants.set_defaults(run=_mutants)
    live.add_commands(commands)
    options = parser.parse_args(arguments)
    status: int = options.run(options)
    return status


if __name__ == "__main__":
    sys.exit(main())
