from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dakera_cluster.model.errors import CorruptionError
from dakera_cluster.model.ids import NodeId, ShardId
from dakera_cluster.model.shardmap import (
    Admission,
    DeltaMismatchError,
    Member,
    MemberState,
    ReplicaState,
    ShardMap,
    ShardState,
    admit,
    apply_delta,
    decode_delta,
    decode_map,
    diff,
    encode_delta,
    encode_map,
    majority,
)

NODES = [NodeId(name) for name in "abcde"]


@st.composite
def shard_states(draw: st.DrawFn) -> ShardState:
    order = draw(st.permutations(NODES))
    kept = draw(st.integers(1, 3))
    replicas, rest = tuple(order[:kept]), order[kept:]
    joining = tuple(rest[: draw(st.integers(0, 2))])
    leaving = replicas[: draw(st.integers(0, len(replicas) - (0 if joining else 1)))]
    return ShardState(draw(st.integers(1, 1 << 40)), replicas, joining, leaving)


@st.composite
def shard_maps(draw: st.DrawFn) -> ShardMap:
    members = tuple(Member(node, draw(st.integers(0, 9)), draw(st.sampled_from(["", "z1"]))) for node in NODES)
    return ShardMap(
        "c",
        draw(st.integers(0, 9)),
        draw(st.integers(0, 9)),
        3,
        members,
        tuple(draw(st.lists(shard_states(), min_size=1, max_size=6))),
    )


@given(shard_maps())
def test_a_map_survives_its_encoding_and_equal_maps_have_equal_bytes(shardmap: ShardMap) -> None:
    data = encode_map(shardmap)
    assert decode_map(data) == shardmap
    assert encode_map(decode_map(data)) == data


@given(shard_states())
def test_any_two_quorums_of_a_shard_intersect_in_the_old_set_and_in_the_new_one(state: ShardState) -> None:
    everyone = state.write_set
    quorums = [
        set(chosen)
        for size in range(len(everyone) + 1)
        for chosen in itertools.combinations(everyone, size)
        if state.has_quorum(chosen)
    ]
    assert set(everyone) in quorums
    for left, right in itertools.product(quorums, quorums):
        assert left & right & set(state.old_set)
        assert left & right & set(state.new_set)


@given(shard_states())
def test_predicates_of_a_node_agree_with_the_sets_of_the_shard(state: ShardState) -> None:
    for node in NODES:
        role = state.state_of(node)
        assert role.takes_writes == (node in state.write_set)
        assert role.serves_reads == (node in state.read_set)
        assert role.in_old_set == (node in state.old_set)
        assert role.in_new_set == (node in state.new_set)


def test_predicates_answer_for_every_replica_state() -> None:
    for role in ReplicaState:
        assert {role.takes_writes, role.serves_reads, role.in_old_set, role.in_new_set} <= {True, False}


@pytest.mark.parametrize(
    ("replicas", "joining", "leaving"),
    [("ab", "b", ""), ("ab", "", "c"), ("ab", "", "ab"), ("aa", "", ""), ("a", "bb", "")],
)
def test_an_impossible_shard_state_cannot_be_made(replicas: str, joining: str, leaving: str) -> None:
    with pytest.raises(ValueError, match=r"node|replica"):
        ShardState(1, *(tuple(NodeId(name) for name in group) for group in (replicas, joining, leaving)))


@pytest.mark.parametrize(("count", "least"), [(0, 0), (1, 1), (2, 2), (3, 2), (4, 3), (5, 3)])
def test_majority(count: int, least: int) -> None:
    assert majority(count) == least


@pytest.mark.parametrize(
    ("version", "node", "verdict"),
    [
        (4, "a", Admission.OUTDATED),
        (6, "a", Admission.BEHIND),
        (5, "a", Admission.SERVE),
        (5, "c", Admission.SERVE),
        (5, "d", Admission.NOT_HELD),
        (4, "d", Admission.OUTDATED),
    ],
)
def test_a_request_is_admitted_only_under_exactly_the_version_the_replica_knows(
    version: int, node: str, verdict: Admission
) -> None:
    mine = ShardState(5, (NodeId("a"), NodeId("b")), joining=(NodeId("c"),), leaving=(NodeId("b"),))
    assert admit(mine, NodeId(node), version) is verdict


def small_map(shards: int = 4) -> ShardMap:
    states = tuple(ShardState(1, (NodeId("a"), NodeId("b"), NodeId("c"))) for _ in range(shards))
    return ShardMap("c", 1, 1, 3, tuple(Member(node) for node in NODES[:3]), states)


def test_a_delta_carries_only_what_changed_and_rebuilds_the_new_map() -> None:
    old = small_map()
    joint = ShardState(2, old.shards[2].replicas, joining=(NodeId("d"),), leaving=(NodeId("a"),))
    new = old.replace(epoch=2, shards={ShardId(2): joint})
    delta = diff(old, new)
    assert delta.shards == {2: joint}
    assert delta.members is None
    assert apply_delta(old, decode_delta(encode_delta(delta))) == new
    grown = new.replace(epoch=2, members=(*new.members, Member(NodeId("d"), state=MemberState.DRAINING)))
    assert apply_delta(new, decode_delta(encode_delta(diff(new, grown)))) == grown


def test_a_delta_is_refused_by_any_map_but_its_own_base() -> None:
    old = small_map()
    new = old.replace(epoch=1)
    with pytest.raises(DeltaMismatchError):
        apply_delta(new, diff(old, new))
    with pytest.raises(DeltaMismatchError):
        diff(old, small_map(5))


def test_epochs_and_shard_versions_cannot_go_back() -> None:
    shardmap = small_map().replace(epoch=3)
    with pytest.raises(ValueError, match="epoch"):
        shardmap.replace(epoch=2)
    with pytest.raises(ValueError, match="does not grow"):
        shardmap.replace(epoch=3, shards={ShardId(0): shardmap.shards[0]})


def test_a_map_of_a_thousand_nodes_and_16384_shards_stays_small() -> None:
    nodes = [NodeId(f"node-{index}") for index in range(1000)]
    states = tuple(
        ShardState(1 + index, (nodes[index % 1000], nodes[(index * 7 + 1) % 1000], nodes[(index * 11 + 2) % 1000]))
        for index in range(16_384)
    )
    shardmap = ShardMap(
        "c", 1, 1, 3, tuple(Member(node, 1, f"z{index % 3}") for index, node in enumerate(nodes)), states
    )
    data = encode_map(shardmap)
    assert len(data) < 400_000
    assert decode_map(data) == shardmap


@settings(max_examples=300)
@given(st.binary(max_size=200), st.integers(0, 400))
def test_damaged_bytes_are_reported_as_corruption_or_still_make_a_valid_map(noise: bytes, cut: int) -> None:
    good = encode_map(small_map())
    for data in (noise, good[:cut], good[:cut] + noise + good[cut + 1 :]):
        try:
            decoded = decode_map(data)
        except CorruptionError:
            continue
        assert encode_map(decoded)


def test_a_map_of_a_future_format_is_refused_by_name() -> None:
    data = bytearray(encode_map(small_map()))
    assert data[1] == 1
    data[1] = 9
    with pytest.raises(CorruptionError, match="format 9"):
        decode_map(bytes(data))
