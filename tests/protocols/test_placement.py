from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dakera_cluster.model.ids import NodeId
from dakera_cluster.protocols.placement import Placement, Target, loads, moved, place

EMPTY = [()] * 64


def targets(count: int, zones: int = 0) -> list[Target]:
    return [Target(NodeId(f"node-{i}"), f"z{i % zones}" if zones else "") for i in range(count)]


def spread(placement: Placement) -> int:
    found = loads(placement)
    return max(found.values()) - min(found.values())


@st.composite
def situations(draw: st.DrawFn) -> tuple[list[tuple[NodeId, ...]], list[Target], int]:
    names = [NodeId(f"n{i}") for i in range(8)]
    zones = draw(st.integers(1, 4))
    living = draw(st.sets(st.sampled_from(names), min_size=1))
    current = draw(
        st.lists(st.lists(st.sampled_from(names), max_size=5, unique=True).map(tuple), min_size=1, max_size=24)
    )
    return current, [Target(node, f"z{names.index(node) % zones}") for node in sorted(living)], draw(st.integers(1, 4))


@given(situations())
@settings(max_examples=300, deadline=None)
def test_every_shard_gets_enough_distinct_live_holders_and_a_second_look_changes_nothing(
    situation: tuple[list[tuple[NodeId, ...]], list[Target], int],
) -> None:
    current, nodes, rf = situation
    result = place(current, nodes, rf)
    living = {target.node for target in nodes}
    for holders in result:
        assert len(set(holders)) == len(holders) == min(rf, len(nodes))
        assert set(holders) <= living
    assert place(result, nodes, rf) == result
    assert place(current, list(reversed(nodes)), rf) == result


@given(situations())
@settings(max_examples=200, deadline=None)
def test_a_shard_uses_as_many_zones_as_it_can(situation: tuple[list[tuple[NodeId, ...]], list[Target], int]) -> None:
    current, nodes, rf = situation
    zone = {target.node: target.zone for target in nodes}
    for holders in place(current, nodes, rf):
        assert len({zone[node] for node in holders}) == min(len(holders), len(set(zone.values())))


@given(situations())
@settings(max_examples=200, deadline=None)
def test_without_zones_loads_differ_by_at_most_one(
    situation: tuple[list[tuple[NodeId, ...]], list[Target], int],
) -> None:
    current, nodes, rf = situation
    result = place(current, [Target(target.node) for target in nodes], rf)
    found = loads(result)
    counts = [found[target.node] for target in nodes]
    assert max(counts) - min(counts) <= 1


@pytest.mark.parametrize("count", [3, 4, 5, 9, 16])
def test_a_joining_node_takes_its_share_and_nobody_else_takes_anything(count: int) -> None:
    before = place(EMPTY, targets(count), 3)
    after = place(before, targets(count + 1), 3)
    newcomer = NodeId(f"node-{count}")
    share = 64 * 3 / (count + 1)
    gains = moved(before, after)
    assert all(taken == (newcomer,) for taken in gains.values())
    assert abs(len(gains) - share) <= 1
    assert spread(after) <= 1


@pytest.mark.parametrize("count", [4, 5, 9])
def test_a_leaving_node_moves_only_what_it_held(count: int) -> None:
    before = place(EMPTY, targets(count), 3)
    after = place(before, targets(count - 1), 3)
    lost = {shard for shard, holders in enumerate(before) if f"node-{count - 1}" in holders}
    gains = moved(before, after)
    assert lost <= set(gains)
    assert sum(len(taken) for taken in gains.values()) <= len(lost) + count
    assert spread(after) <= 1


def test_a_lost_zone_is_replaced_from_the_others_and_comes_back() -> None:
    nodes = targets(9, zones=3)
    before = place(EMPTY, nodes, 3)
    without = [target for target in nodes if target.zone != "z0"]
    during = place(before, without, 3)
    assert all(len(holders) == 3 for holders in during)
    after = place(during, nodes, 3)
    zone = {target.node: target.zone for target in nodes}
    assert all({zone[node] for node in holders} == {"z0", "z1", "z2"} for holders in after)


def test_fewer_nodes_than_the_replication_factor_hold_everything() -> None:
    assert all(set(holders) == {"node-0", "node-1"} for holders in place(EMPTY, targets(2), 3))
    assert place(EMPTY, [], 3) == tuple(() for _ in EMPTY)


def test_kept_holders_keep_their_rank_so_that_the_first_replica_stays_the_first() -> None:
    before = place(EMPTY, targets(3), 3)
    after = place(before, targets(4), 3)
    for old, new in zip(before, after, strict=True):
        assert [node for node in new if node in old] == [node for node in old if node in new]


def test_a_thousand_nodes_and_16384_shards_stay_level() -> None:
    nodes = targets(1000, zones=5)
    before = place([()] * 16_384, nodes, 3)
    after = place(before, [*nodes, Target(NodeId("node-1000"), "z0")], 3)
    assert spread(before) <= 2
    assert 40 <= sum(len(taken) for taken in moved(before, after).values()) <= 60


@pytest.mark.parametrize("zones", [0, 10])
def test_when_a_rack_leaves_nothing_moves_but_what_it_held(zones: int) -> None:
    nodes = targets(60, zones)
    before = place([()] * 600, nodes, 3)
    gone = {target.node for target in targets(60, 10) if target.zone == "z3"}
    after = place(before, [target for target in nodes if target.node not in gone], 3)
    fetched = sum(len(new) for new in moved(before, after).values())
    assert fetched == sum(node in gone for holders in before for node in holders)
    assert spread(after) <= 1


def test_a_zone_of_half_the_size_is_levelled_within_itself() -> None:
    nodes = [Target(NodeId(f"node-{i}"), "abcab"[i % 5]) for i in range(50)]
    found = loads(place([()] * 400, nodes, 3))
    by_zone = {zone: [found[t.node] for t in nodes if t.zone == zone] for zone in "abc"}
    assert all(sum(counts) == 400 and max(counts) - min(counts) <= 1 for counts in by_zone.values())
