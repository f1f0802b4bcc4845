"""Round robin, helpers, and probes run for others."""

from __future__ import annotations

import math
from random import Random

from hypothesis import given
from hypothesis import strategies as st

from dakera_cluster.model.ids import NodeId
from dakera_cluster.protocols.members import Address
from dakera_cluster.protocols.probing import ProbeOrder, Relay, Relays

ASKER = Address("10.0.0.9", 7946)


def order(n: int, seed: int = 1) -> ProbeOrder:
    result = ProbeOrder(Random(seed))
    result.add_all([NodeId(f"n{i}") for i in range(n)])
    return result


def test_every_member_is_probed_once_per_pass_in_a_new_order_each_time() -> None:
    probes = order(20)
    passes = [[probes.next() for _ in range(20)] for _ in range(5)]
    for one in passes:
        assert len(set(one)) == 20
    assert len({tuple(one) for one in passes}) == 5


def test_nobody_to_probe() -> None:
    assert order(0).next() is None


@given(st.integers(0, 2**32), st.lists(st.integers(0, 6), max_size=60))
def test_joins_and_removals_in_mid_pass_skip_nobody_who_stays(seed: int, steps: list[int]) -> None:
    probes = order(6, seed)
    stays = {NodeId(f"n{i}") for i in range(3)}
    extra = [NodeId(f"n{i}") for i in range(3, 6)]
    since: dict[NodeId | None, int] = dict.fromkeys(stays, 0)
    size = 6
    for step in steps:
        if step == 0:
            extra.append(NodeId(f"x{len(extra)}-{size}-{len(steps)}-{step}-{sum(since.values())}"))
            probes.add(extra[-1])
            size += 1
        elif step == 1 and extra:
            probes.remove(extra.pop(0))
            size -= 1
        else:
            probed = probes.next()
            for node in since:
                since[node] = 0 if node == probed else since[node] + 1
                # Two passes, each at most as long as everybody who ever was in it.
                assert since[node] <= 2 * (6 + steps.count(0))
    assert len(probes) == size


def test_a_newcomer_gets_any_place_in_the_pass() -> None:
    places = set()
    for seed in range(200):
        probes = order(4, seed)
        probes.next()
        probes.add(NodeId("new"))
        rest = [probes.next() for _ in range(4)]
        places.add(rest.index(NodeId("new")) if NodeId("new") in rest[: len(probes) - 1] else "next pass")
    assert {0, 1, 2, 3} <= places


def test_samples_are_distinct_wanted_and_as_many_as_there_are() -> None:
    probes = order(50)
    for count in (1, 3, 49):
        chosen = probes.sample(count, lambda node: node != "n7")
        assert len(set(chosen)) == count
        assert "n7" not in chosen
    assert sorted(probes.sample(3, lambda node: node in ("n1", "n2"))) == ["n1", "n2"]
    assert order(1).sample(3, lambda node: True) == ["n0"]


def test_samples_are_uniform() -> None:
    probes = order(10)
    counts: dict[str, int] = {}
    for _ in range(5000):
        for node in probes.sample(3, lambda node: True):
            counts[node] = counts.get(node, 0) + 1
    assert min(counts.values()) > 1300
    assert max(counts.values()) < 1700


def relay(target: str, nack_ms: float) -> Relay:
    return Relay(ASKER, NodeId("asker"), 7, NodeId(target), nack_ms, nack_ms + 1000)


def test_a_relay_is_nacked_once_and_its_late_ack_still_counts() -> None:
    relays = Relays()
    relays.add(1, relay("x", 200.0))
    relays.add(2, relay("y", 210.0))
    assert relays.deadline_ms() == 200.0
    assert relays.pop_unanswered(199.0) is None
    nacked = relays.pop_unanswered(205.0)
    assert nacked is not None and nacked.target == "x"
    assert relays.deadline_ms() == 210.0
    assert relays.answered(1, NodeId("x")) is nacked
    assert relays.answered(1, NodeId("x")) is None
    assert relays.answered(2, NodeId("impostor")) is None
    assert relays.answered(2, NodeId("y")) is not None
    assert relays.deadline_ms() == math.inf


def test_expired_relays_are_forgotten() -> None:
    relays = Relays()
    relays.add(1, relay("x", 200.0))
    relays.add(2, relay("y", 900.0))
    relays.expire(1300.0)
    assert len(relays) == 1
    assert relays.answered(1, NodeId("x")) is None
    assert relays.deadline_ms() == 900.0
