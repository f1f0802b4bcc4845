"""How long a suspicion lasts: Lifeguard's formula, the rule for small clusters, deaths by hearsay, and last words."""

from __future__ import annotations

import math

import pytest

from dakera_cluster.model.ids import NodeId
from dakera_cluster.protocols.suspicion import Suspicion, Suspicions
from dakera_cluster.protocols.swim_config import Feature, SwimConfig

X = NodeId("x")


def suspicion(expected: int = 2, node: NodeId = X, asks: int = 0, now_ms: float = 1000.0) -> Suspicion:
    return Suspicion(
        node, NodeId("a"), now_ms, min_ms=2000.0, max_ms=12000.0, expected=expected, asks=asks, ask_gap_ms=250.0
    )


def test_each_independent_accuser_shortens_the_wait_along_the_logarithm() -> None:
    running = suspicion(expected=3)
    assert running.deadline_ms == 13000.0
    for count, accuser in enumerate(("b", "c", "d"), start=1):
        assert running.confirm(NodeId(accuser))
        wanted = 12000.0 - math.log(count + 1) / math.log(4) * 10000.0
        assert running.deadline_ms == pytest.approx(1000.0 + wanted)
    assert running.deadline_ms == pytest.approx(3000.0)
    assert not running.confirm(NodeId("e"))


def test_the_first_accuser_and_repetitions_confirm_nothing() -> None:
    running = suspicion()
    assert not running.confirm(NodeId("a"))
    assert running.confirm(NodeId("b"))
    assert not running.confirm(NodeId("b"))
    assert running.confirmations == 1


def test_without_expected_confirmations_the_shortest_time_holds_at_once() -> None:
    running = suspicion(expected=0)
    assert running.deadline_ms == 3000.0
    assert not running.confirm(NodeId("b"))


def test_a_reported_death_counts_as_all_confirmations_once() -> None:
    running = suspicion()
    assert running.condemn()
    assert running.deadline_ms == 3000.0
    assert not running.condemn()
    assert not running.confirm(NodeId("b"))


@pytest.mark.parametrize(
    ("n", "expected"), [(1, 0), (2, 0), (3, 0), (4, 2), (5, 2), (1000, 2)], ids=lambda value: str(value)
)
def test_small_clusters_wait_for_nobody(n: int, expected: int) -> None:
    assert SwimConfig().expected_confirmations(n) == expected
    assert SwimConfig(features=Feature.SWIM).expected_confirmations(n) == 0


def test_suspicion_times_by_cluster_size() -> None:
    config = SwimConfig()
    assert config.suspicion_min_ms(3) == 2000.0
    assert config.suspicion_min_ms(10) == 2000.0
    assert config.suspicion_min_ms(1000) == pytest.approx(6000.0)
    assert config.suspicion_max_ms(1000) == pytest.approx(36000.0)


def test_stolen_time_is_given_back_to_every_suspicion() -> None:
    table = Suspicions()
    table.start(suspicion(expected=0, node=NodeId("x")))
    table.start(suspicion(expected=0, node=NodeId("y"), now_ms=1500.0))
    table.credit(700.0)
    assert table.deadline_ms() == 3700.0
    assert table.next_due(3699.0) is None
    due = table.next_due(3700.0)
    assert due is not None and due.node == "x"
    table.stop(due.node)
    assert table.deadline_ms() == 4200.0


def test_the_earliest_is_due_first_even_after_confirmations_reordered_them() -> None:
    table = Suspicions()
    first, second = suspicion(node=NodeId("x")), suspicion(node=NodeId("y"), now_ms=1001.0)
    table.start(first)
    table.start(second)
    second.confirm(NodeId("b"))
    second.confirm(NodeId("c"))
    table.reschedule(second)
    assert table.deadline_ms() == pytest.approx(3001.0)
    table.stop(NodeId("y"))
    assert table.deadline_ms() == 13000.0
    table.stop(NodeId("x"))
    assert table.deadline_ms() == math.inf
    assert len(table) == 0


def test_last_words_are_asked_before_the_end_without_moving_it() -> None:
    running = suspicion(expected=0, asks=2)
    assert running.due_ms == 2500.0
    assert running.ask(2500.0)
    assert running.due_ms == 2750.0
    assert running.ask(2750.0)
    assert running.due_ms == running.deadline_ms == 3000.0
    assert not running.ask(3000.0)


def test_a_wait_that_confirmations_cut_short_still_leaves_time_to_answer() -> None:
    running = suspicion(expected=2, asks=2)
    running.confirm(NodeId("b"))
    running.confirm(NodeId("c"))
    assert running.ask(8000.0)
    assert running.deadline_ms == 8500.0
    assert running.due_ms == 8250.0
