"""The simulator itself: deterministic, eventful, and able to see what it is there to see."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter

import pytest

from chaos.__main__ import main
from chaos.mutants.catalogue import MUTANTS
from chaos.mutants.hunt import hunt
from chaos.sim.checkers import BrokenPromiseError, Checkers
from chaos.sim.clients import Kind, Operation, Outcome
from chaos.sim.world import World, run_seed

QUICK_SEEDS = range(12)
CI_SEEDS = range(500)


def digest_in_another_process(seed: int, hash_seed: str) -> str:
    code = f"from chaos.sim.world import run_seed; print(run_seed({seed})[0].digest)"
    environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
    return subprocess.run(
        [sys.executable, "-c", code], env=environment, check=True, capture_output=True, text=True, timeout=120
    ).stdout.strip()


def test_the_same_seed_gives_the_same_trace_in_any_process_and_another_seed_another() -> None:
    traces = {digest_in_another_process(3, hash_seed) for hash_seed in ("0", "1")}
    assert traces == {run_seed(3)[0].digest}
    assert run_seed(4)[0].digest not in traces


def test_every_promise_holds_over_a_few_seeds_in_which_much_happens() -> None:
    counts: Counter[str] = Counter()
    for seed in QUICK_SEEDS:
        world, violation = run_seed(seed)
        assert violation is None, violation
        counts.update(world.checkers.counts)
    for what in ("elections", "crashes", "maps adopted", "shard changes", "tombstones collected", "strong reads"):
        assert counts[what] > 10, f"hardly any {what}: such a run proves little"


@pytest.mark.slow
def test_every_promise_holds_over_500_seeds() -> None:
    assert main(["sim", "--seeds", str(len(CI_SEEDS)), "--jobs", "2"]) == 0


@pytest.mark.slow
def test_every_mutant_is_caught() -> None:
    assert main(["mutants", "--jobs", "2"]) == 0


@pytest.mark.parametrize("name", ["no re-stamp", "impatient challenger", "digest skips a bucket", "last arrival wins"])
def test_a_planted_bug_is_caught_and_uprooted_again(name: str) -> None:
    (mutant,) = [mutant for mutant in MUTANTS if mutant.name == name]
    assert hunt(mutant, seeds=20) is not None
    assert run_seed(0)[1] is None


def test_mutants_have_distinct_names_and_there_are_enough_of_them() -> None:
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS) >= 15


# -- the history checker, on histories written by hand


def write(number: int, kind: Kind, start: float, end: float, outcome: Outcome = Outcome.OK) -> Operation:
    return Operation(number, kind, 0, number, "n0", start, end, outcome)


def read(number: int, seen: dict[str, int] | None, start: float, end: float) -> Operation:
    return Operation(number, Kind.STRONG_READ, 0, number, "n0", start, end, Outcome.OK, seen=seen)


@pytest.fixture(scope="module")
def checkers() -> Checkers:
    return World(0).checkers


@pytest.mark.parametrize(
    ("complaint", "history"),
    [
        ("saw no row after put 1", [write(1, Kind.PUT, 0, 1), read(2, None, 2, 3)]),
        ("saw write 1 after put 2", [write(1, Kind.PUT, 0, 1), write(2, Kind.PUT, 2, 3), read(3, {"v": 1}, 4, 5)]),
        ("resurrection", [write(1, Kind.PUT, 0, 1), write(2, Kind.DELETE, 2, 3), read(3, {"v": 1}, 4, 5)]),
        ("nobody had written", [read(1, {"v": 9}, 0, 1)]),
        ("certainly failed", [write(1, Kind.PUT, 0, 1, Outcome.FAILED), read(2, {"v": 1}, 2, 3)]),
        ("to life", [write(1, Kind.PATCH, 0, 1), read(2, {"p": 1}, 2, 3)]),
        ("showed no patch", [write(1, Kind.PUT, 0, 1), write(2, Kind.PATCH, 2, 3), read(3, {"v": 1}, 4, 5)]),
        (
            "saw write 1 after put 2 was settled",
            [
                write(1, Kind.PUT, 0, 1),
                write(2, Kind.PUT, 2, 9, Outcome.UNSURE),
                read(3, {"v": 2}, 3, 4),
                read(4, {"v": 1}, 5, 6),
            ],
        ),
        (
            "showed patch 2",
            [
                write(1, Kind.PUT, 0, 1),
                write(2, Kind.PATCH, 2, 3),
                write(3, Kind.PATCH, 4, 5),
                read(4, {"v": 1, "p": 2}, 6, 7),
            ],
        ),
    ],
)
def test_a_broken_history_is_seen(checkers: Checkers, complaint: str, history: list[Operation]) -> None:
    with pytest.raises(BrokenPromiseError, match=complaint):
        checkers.check_history(history)


@pytest.mark.parametrize(
    "history",
    [
        [write(1, Kind.PUT, 0, 1), write(2, Kind.PUT, 0, 3), read(3, {"v": 1}, 4, 5)],
        [write(1, Kind.PUT, 0, 5), read(2, None, 1, 2)],
        [write(1, Kind.PUT, 0, 1), write(2, Kind.DELETE, 2, 9, Outcome.UNSURE), read(3, None, 99, 100)],
        [write(1, Kind.PUT, 0, 1, Outcome.UNSURE), write(2, Kind.DELETE, 2, 3), read(3, {"v": 1}, 4, 5)],
        [write(1, Kind.PUT, 0, 1), write(2, Kind.DELETE, 2, 3), write(3, Kind.PATCH, 4, 5), read(4, None, 6, 7)],
        [write(1, Kind.PUT, 0, 1), write(2, Kind.PATCH, 2, 3), write(3, Kind.PUT, 2, 3), read(4, {"v": 3}, 6, 7)],
    ],
)
def test_a_history_with_an_explanation_passes(checkers: Checkers, history: list[Operation]) -> None:
    checkers.check_history(history)
