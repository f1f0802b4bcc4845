from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from dakera_cluster.model.ids import NodeId
from dakera_cluster.protocols.ring import Ring

names = st.sets(st.sampled_from([NodeId(f"node-{i}") for i in range(12)]), min_size=1)


@given(names, st.text(max_size=8))
def test_the_preference_names_every_node_once_whatever_order_they_came_in(nodes: set[NodeId], key: str) -> None:
    order = list(Ring(nodes).preference(key))
    assert sorted(order) == sorted(nodes)
    assert order == list(Ring(sorted(nodes, reverse=True)).preference(key))


@given(names, st.sampled_from([NodeId("extra-1"), NodeId("extra-2")]), st.text(max_size=8))
def test_a_new_node_does_not_change_the_order_of_the_others(nodes: set[NodeId], extra: NodeId, key: str) -> None:
    grown = [node for node in Ring({*nodes, extra}).preference(key) if node != extra]
    assert grown == list(Ring(nodes).preference(key))


def test_fewer_nodes_than_asked_for_give_them_all_and_none_give_none() -> None:
    assert len(Ring([NodeId("a"), NodeId("b")]).owners("k", 3)) == 2
    assert Ring([]).owners("k", 3) == ()
    assert list(Ring([]).preference("k")) == []


def test_hash_mode_and_points_are_pinned() -> None:
    """Placements are compared across releases: a change here would move shards in every cluster."""
    ring = Ring([NodeId(f"node-{i}") for i in range(5)])
    assert [ring.owners(f"shard-{i}", 3) for i in range(4)] == [
        ("node-1", "node-3", "node-4"),
        ("node-1", "node-2", "node-4"),
        ("node-0", "node-4", "node-3"),
        ("node-4", "node-1", "node-0"),
    ]


def test_primary_loads_are_about_even_and_a_fifth_node_takes_about_a_fifth() -> None:
    keys = [f"k{i}" for i in range(2_000)]
    four, five = Ring([NodeId(f"n{i}") for i in range(4)]), Ring([NodeId(f"n{i}") for i in range(5)])
    before, after = ([next(ring.preference(key)) for key in keys] for ring in (four, five))
    loads = [before.count(node) for node in four.nodes]
    assert max(loads) / min(loads) < 1.6
    moved = sum(a != b for a, b in zip(before, after, strict=True)) / len(keys)
    assert 0.14 < moved < 0.26
