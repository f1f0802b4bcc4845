"""Seeds and the dead are dialled for ever, with back-off, until they are members again."""

from __future__ import annotations

import itertools
import math
from random import Random

from dakera_cluster.model.ids import NodeId
from dakera_cluster.protocols.healing import Redialler
from dakera_cluster.protocols.members import Address
from dakera_cluster.protocols.swim_config import SwimConfig

ME, X = NodeId("me"), NodeId("x")
SEED, OTHER = Address("10.0.0.1", 7946), Address("10.0.0.2", 7946)
CONFIG = SwimConfig(redial_min_ms=500.0, redial_max_ms=5000.0)


def dialler(*seeds: Address) -> Redialler:
    return Redialler(CONFIG, ME, seeds, Random(1), 0.0)


def dial_times(redialler: Redialler, until_ms: float, n: int = 3) -> list[float]:
    times = []
    while redialler.deadline_ms() <= until_ms:
        now_ms = redialler.deadline_ms()
        times += [now_ms] * len(redialler.pop_due(now_ms, n))
    return times


def test_a_silent_seed_is_dialled_for_ever_with_growing_and_bounded_gaps() -> None:
    times = dial_times(dialler(SEED), 3_600_000.0)
    gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
    assert times[0] == 0.0
    assert 375.0 <= gaps[0] <= 625.0
    assert gaps[0] < gaps[1] < gaps[2] < gaps[3]
    assert all(3750.0 <= gap <= 6250.0 for gap in gaps[5:])
    assert len(times) > 3_600_000 / 6250


def test_the_larger_the_cluster_the_rarer_each_member_dials() -> None:
    assert len(dial_times(dialler(SEED), 6e6, n=800)) * 20 < len(dial_times(dialler(SEED), 6e6, n=3))


def test_a_seed_that_is_a_present_member_is_left_alone_until_it_dies() -> None:
    redialler = dialler(SEED)
    redialler.pop_due(0.0, 1)
    redialler.came_back(X)
    redialler.answered(SEED, X, True)
    assert redialler.deadline_ms() == math.inf
    redialler.died(X, SEED, 10_000.0)
    assert 10_000.0 < redialler.deadline_ms() <= 10_625.0
    assert redialler.pop_due(11_000.0, 3) == [SEED]


def test_a_dead_member_is_dialled_at_its_last_address_until_it_comes_back() -> None:
    redialler = dialler()
    redialler.died(X, OTHER, 0.0)
    assert len(dial_times(redialler, 100_000.0)) > 15
    redialler.came_back(X)
    assert redialler.deadline_ms() == math.inf


def test_who_left_on_purpose_is_not_looked_for() -> None:
    redialler = dialler()
    redialler.died(X, OTHER, 0.0)
    redialler.left(X, 10.0)
    assert redialler.deadline_ms() == math.inf


def test_a_seed_address_is_dialled_again_after_its_node_left() -> None:
    redialler = dialler(SEED)
    redialler.pop_due(0.0, 1)
    redialler.answered(SEED, X, True)
    redialler.left(X, 1000.0)
    assert redialler.pop_due(2000.0, 1) == [SEED]


def test_our_own_address_among_the_seeds_is_dialled_only_while_we_are_alone() -> None:
    redialler = dialler(SEED)
    redialler.pop_due(0.0, 1)
    redialler.answered(SEED, ME, False)
    assert redialler.deadline_ms() < math.inf
    redialler.came_back(X)
    assert redialler.deadline_ms() == math.inf
    redialler.alone(5000.0)
    assert redialler.deadline_ms() < math.inf


def test_only_so_many_dead_are_remembered_the_latest_first() -> None:
    redialler = dialler()
    for index in range(CONFIG.redial_lost_max + 10):
        redialler.died(NodeId(f"n{index}"), Address(f"10.0.1.{index}", 1), 0.0)
    dialled = redialler.pop_due(1000.0, 3)
    assert len(dialled) == CONFIG.redial_lost_max
    assert Address("10.0.1.9", 1) not in dialled
    assert Address("10.0.1.10", 1) in dialled
