"""Figures of failovers, from handmade records: what is computed must be what happened."""

from __future__ import annotations

from chaos.live.failover import detection_ms, failovers, percentile, succession_ms, unserved
from chaos.live.history import Attempt, Kind, Operation, Outcome
from chaos.live.nemesis import Event
from chaos.live.watch import Sighting

KILLED = Event("kill", ("node-1",), 1_000.0, 9_000.0, "")


def sight(node: str, at: float, leader: str | None, epoch: int, states: dict[str, tuple[str, float]]) -> Sighting:
    return Sighting(node, 1, at, at + 10, leader, epoch, False, epoch, 1, states)


SIGHTINGS = [
    sight("node-2", 900, "node-1", 1, {"node-1": ("alive", 800)}),
    sight("node-2", 2_000, "node-1", 1, {"node-1": ("suspect", 100)}),
    sight("node-3", 4_500, "node-1", 1, {"node-1": ("dead", 300)}),
    sight("node-2", 4_600, "node-1", 1, {"node-1": ("dead", 900)}),
    sight("node-2", 7_000, "node-2", 2, {"node-1": ("dead", 3_300)}),
]


def operation(
    number: int, at: float, took: float, *nodes: str, kind: Kind = Kind.STORE, status: int = 200
) -> Operation:
    ok = Outcome.OK if status == 200 else Outcome.FAILED
    attempts = [Attempt(node, at, at + took, Outcome.FAILED, 0) for node in nodes[:-1]]
    attempts.append(Attempt(nodes[-1], at, at + took, ok, status))
    return Operation(number, kind, "agent-0/m", 0, attempts, ok)


def test_detection_is_when_the_first_of_the_others_believed_it() -> None:
    assert detection_ms(KILLED, SIGHTINGS) == 4_600 - 900 - 1_000


def test_a_death_from_before_the_fault_is_no_detection() -> None:
    old = [sight("node-2", 1_200, "node-2", 1, {"node-1": ("dead", 500)})]
    assert detection_ms(KILLED, old) is None


def test_succession_is_when_a_leader_of_a_later_epoch_is_named() -> None:
    assert succession_ms(KILLED, SIGHTINGS) == 7_010 - 1_000
    assert succession_ms(Event("kill", ("node-3",), 1_000.0, 9_000.0, ""), SIGHTINGS) is None


def test_a_refusal_of_the_request_is_an_answer_and_an_unreachable_cluster_is_not() -> None:
    assert not unserved(operation(1, 0, 5, "node-2"))
    assert not unserved(operation(1, 0, 5, "node-2", status=404))
    assert unserved(operation(1, 0, 5, "node-2", status=503))
    assert unserved(operation(1, 0, 5, "node-2", status=0))


def test_what_clients_felt_is_counted_in_the_window_after_the_fault() -> None:
    history = [
        operation(1, 500, 7_000, "node-2"),
        operation(2, 1_100, 40, "node-1", "node-2"),
        operation(3, 1_200, 60, "node-2"),
        operation(4, 1_300, 20, "node-3", kind=Kind.RECALL),
        operation(5, 1_400, 20, "node-1", "node-2", status=503),
    ]
    (found,) = failovers([KILLED], SIGHTINGS, history)
    assert (found.operations, found.retried, found.failed) == (4, 2, 1)
    assert (found.write_p99_ms, found.recall_p99_ms) == (60, 20)


def test_waiting_for_a_node_that_hangs_is_not_the_clusters_latency() -> None:
    paused = Event("pause", ("node-1",), 1_000.0, 9_000.0, "")
    history = [operation(1, 1_100, 6_000, "node-1", "node-2"), operation(2, 1_200, 30, "node-2")]
    (found,) = failovers([paused], SIGHTINGS, history)
    assert found.write_p99_ms == 30
    assert found.retried == 1


def test_the_nearest_rank_percentile() -> None:
    assert percentile([], 0.5) is None
    assert percentile([3.0, 1.0, 2.0], 0.5) == 2.0
    assert percentile([float(n) for n in range(1, 101)], 0.99) == 99.0
