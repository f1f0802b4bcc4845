from __future__ import annotations

import itertools
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dakera_cluster.model.ids import NodeId, ShardId
from dakera_cluster.model.shardmap import MemberState, ShardMap, ShardState, majority
from dakera_cluster.protocols.placement import loads
from dakera_cluster.protocols.rebalance import (
    LiveNode,
    Plan,
    ReadyReport,
    RebalanceConfig,
    Situation,
    Step,
    birth,
    electorate,
    has_majority,
    plan,
    set_member_state,
)
from dakera_cluster.protocols.transfer import reporters

CONFIG = RebalanceConfig(delay_ms=60_000, moves_per_node=4, moves_total=16)
ABSENT_LONG = 60_000.0


def nodes(*numbers: int) -> dict[NodeId, LiveNode]:
    return {NodeId(f"n{number}"): LiveNode(disk=number) for number in numbers}


def ready_of(shardmap: ShardMap, live: dict[NodeId, LiveNode]) -> set[ReadyReport]:
    return {
        ReadyReport(shard, shardmap.shards[shard].version, node)
        for shard in shardmap.joint_shards()
        for node in reporters(shardmap.shards[shard])
        if node in live
    }


def settle(
    shardmap: ShardMap, live: dict[NodeId, LiveNode], absent: dict[NodeId, float] | None = None, *, epoch: int = 1
) -> tuple[ShardMap, list[Plan]]:
    """Let every transfer succeed until the leader has nothing left to do."""
    plans = []
    for _ in range(500):
        found = plan(shardmap, epoch, Situation(live, absent or {}, ready_of(shardmap, live)), CONFIG)
        if found.next_map is None:
            return shardmap, plans
        check_step(shardmap, found)
        plans.append(found)
        shardmap = found.next_map
    raise AssertionError("the plan does not come to an end")


def check_step(before: ShardMap, found: Plan) -> None:
    after = found.next_map
    assert after is not None
    for shard, (old, new) in enumerate(zip(before.shards, after.shards, strict=True)):
        if old == new:
            assert ShardId(shard) not in found.steps
            continue
        match found.steps[ShardId(shard)]:
            case Step.STARTED:
                assert not old.is_joint
                assert new.replicas == old.replicas
                assert new.is_joint
                check_reads_find_writes(new)
            case Step.FINISHED:
                assert new == ShardState(old.version + 1, old.new_set)
            case Step.ABORTED:
                assert new == ShardState(old.version + 1, old.replicas)
    joining = Counter(node for state in after.shards for node in state.joining)
    assert all(count <= CONFIG.moves_per_node for count in joining.values())
    assert len(after.joint_shards()) <= CONFIG.moves_total


def check_reads_find_writes(state: ShardState) -> None:
    """Whatever majority of the old set holds a write, and the joining nodes that have everything: any majority of the new
    set meets them. (Where nobody joins, all that stay have confirmed that they have everything.)"""
    if not state.joining:
        return
    for written in itertools.combinations(state.old_set, majority(len(state.old_set))):
        have = {*written, *state.joining}
        for asked in itertools.combinations(state.new_set, majority(len(state.new_set))):
            assert have & set(asked)


def small(count: int = 3, shards: int = 16, rf: int = 3) -> ShardMap:
    return birth("c", 1, nodes(*range(count)), shards, rf)


def test_a_cluster_is_born_with_its_shards_spread_and_settled() -> None:
    shardmap = small(5, 64)
    assert set(loads(tuple(state.replicas for state in shardmap.shards)).values()) <= {38, 39}
    assert plan(shardmap, 1, Situation(nodes(*range(5)), {}), CONFIG).next_map is None


def test_a_cluster_of_one_grows_to_three_without_losing_a_holder() -> None:
    shardmap, _ = settle(small(1), nodes(0, 1, 2))
    assert all(len(state.replicas) == 3 for state in shardmap.shards)


def test_a_restart_within_the_delay_moves_nothing() -> None:
    shardmap = small(4)
    live = nodes(0, 1, 2)
    for absent in ({}, {NodeId("n3"): 59_999.0}):
        assert plan(shardmap, 1, Situation(live, absent), CONFIG).next_map is None


def test_after_the_delay_the_lost_nodes_shards_are_copied_elsewhere_and_it_is_forgotten() -> None:
    shardmap, plans = settle(small(4), nodes(0, 1, 2), {NodeId("n3"): ABSENT_LONG})
    assert all(len(state.replicas) == 3 and "n3" not in state.replicas for state in shardmap.shards)
    assert shardmap.member(NodeId("n3")) is None
    assert {step for found in plans for step in found.steps.values()} == {Step.STARTED, Step.FINISHED}


def test_a_dead_holder_nobody_can_replace_is_kept() -> None:
    shardmap = small(3)
    assert plan(shardmap, 1, Situation(nodes(0, 1), {NodeId("n2"): 1e9}), CONFIG).next_map is None


def test_a_dead_holder_removed_by_an_operator_is_dropped_even_then() -> None:
    ordered = set_member_state(small(3), 1, NodeId("n2"), MemberState.REMOVED)
    shardmap, plans = settle(ordered, nodes(0, 1), {NodeId("n2"): 1e9})
    assert all(set(state.replicas) == {"n0", "n1"} for state in shardmap.shards)
    joint = next(state for state in plans[0].next_map.shards if state.is_joint)
    assert set(reporters(joint)) == {"n0", "n1"}, "those that stay prove that they have everything"


@pytest.mark.parametrize(("before", "after"), [(3, 4), (4, 5), (5, 6)])
def test_a_joining_node_gets_its_share_and_only_it_gets_anything(before: int, after: int) -> None:
    old = small(before, 64)
    new, plans = settle(old, nodes(*range(after)))
    newcomer = f"n{after - 1}"
    gained = [shard for shard in range(64) if newcomer in new.shards[shard].replicas]
    assert abs(len(gained) - 64 * 3 / after) <= 1
    changed = [shard for shard in range(64) if set(new.shards[shard].replicas) != set(old.shards[shard].replicas)]
    assert changed == gained
    assert all(new.shards[shard].version == old.shards[shard].version + 2 * (shard in gained) for shard in range(64))
    assert max(len(found.next_map.joint_shards()) for found in plans) == CONFIG.moves_per_node


def test_a_node_is_drained_and_keeps_serving_until_its_last_shard_is_elsewhere() -> None:
    drained = set_member_state(small(4), 1, NodeId("n0"), MemberState.DRAINING)
    shardmap, plans = settle(drained, nodes(0, 1, 2, 3))
    assert shardmap.holds(NodeId("n0")) == ()
    for found in plans:
        for shard, step in found.steps.items():
            if step is Step.STARTED and "n0" in found.next_map.shards[shard].leaving:
                assert found.next_map.shards[shard].joining
    back, _ = settle(set_member_state(shardmap, 1, NodeId("n0"), MemberState.ACTIVE), nodes(0, 1, 2, 3))
    assert len(back.holds(NodeId("n0"))) == 12


def test_the_only_node_of_a_cluster_cannot_be_drained_away() -> None:
    drained = set_member_state(small(1), 1, NodeId("n0"), MemberState.DRAINING)
    assert plan(drained, 1, Situation(nodes(0), {}), CONFIG).next_map is None


def test_a_move_is_finished_only_when_every_joining_node_is_ready_under_this_version() -> None:
    live = nodes(0, 1, 2)
    joint = plan(small(1, shards=1), 1, Situation(live, {}), CONFIG).next_map
    assert joint is not None
    state = joint.shards[0]
    assert set(state.joining) == {"n1", "n2"}
    reports = [ReadyReport(ShardId(0), state.version, node) for node in state.joining]
    stale = {ReadyReport(report.shard, report.version - 1, report.node) for report in reports}
    for ready in (set(), {reports[0]}, stale):
        assert plan(joint, 1, Situation(live, {}, ready), CONFIG).next_map is None
    done = plan(joint, 1, Situation(live, {}, set(reports)), CONFIG)
    assert done.steps == {ShardId(0): Step.FINISHED}


def test_a_move_to_a_node_that_is_gone_is_aborted_after_the_delay_and_begun_anew_elsewhere() -> None:
    grown = plan(small(3), 1, Situation(nodes(0, 1, 2, 3), {}), CONFIG).next_map
    assert grown is not None
    (shard, *_) = grown.joint_shards()
    waiting = plan(grown, 1, Situation(nodes(0, 1, 2), {NodeId("n3"): 1.0}), CONFIG)
    assert waiting.next_map is None
    aborted = plan(grown, 1, Situation(nodes(0, 1, 2, 4), {NodeId("n3"): ABSENT_LONG}), CONFIG)
    assert aborted.steps[shard] is Step.ABORTED
    after, _ = settle(grown, nodes(0, 1, 2, 4), {NodeId("n3"): ABSENT_LONG})
    assert len(after.holds(NodeId("n4"))) == 12
    assert after.member(NodeId("n3")) is None


def test_no_move_starts_while_a_shards_majority_is_away() -> None:
    shardmap = small(5, 16)
    away = {NodeId("n0"), NodeId("n1")}
    found = plan(shardmap, 1, Situation(nodes(2, 3, 4), dict.fromkeys(away, ABSENT_LONG)), CONFIG)
    for shard in found.steps:
        assert len(away & set(shardmap.shards[shard].replicas)) < 2
    stuck = {shard for shard, state in enumerate(shardmap.shards) if len(away & set(state.replicas)) == 2}
    assert stuck
    assert stuck <= {move.shard for move in found.pending}


def test_shards_with_dead_holders_go_before_those_that_only_need_levelling() -> None:
    config = RebalanceConfig(delay_ms=60_000, moves_per_node=100, moves_total=3)
    found = plan(small(4, 64), 1, Situation(nodes(0, 1, 2, 4), {NodeId("n3"): ABSENT_LONG}), config)
    assert len(found.steps) == 3
    for shard in found.steps:
        assert "n3" in found.next_map.shards[shard].leaving


def test_a_pause_starts_nothing_and_still_finishes_what_is_under_way() -> None:
    live = nodes(0, 1, 2, 3)
    joint = plan(small(3), 1, Situation(live, {}), CONFIG).next_map
    found = plan(joint, 1, Situation(live, {}, ready_of(joint, live), paused=True), CONFIG)
    assert set(found.steps.values()) == {Step.FINISHED}
    assert found.pending


def test_a_new_leader_stamps_the_map_first_and_goes_on_from_the_map_alone() -> None:
    live = nodes(0, 1, 2, 3)
    joint = plan(small(3), 1, Situation(live, {}), CONFIG).next_map
    stamped = plan(joint, 5, Situation(live, {}), CONFIG)
    assert stamped.steps == {}
    assert (stamped.next_map.epoch, stamped.next_map.version) == (5, joint.version + 1)
    assert settle(stamped.next_map, live, epoch=5)[0].shards == settle(joint, live)[0].shards


def test_a_plan_is_a_function_of_what_is_known() -> None:
    live = nodes(0, 1, 2, 3)
    backwards = dict(reversed(live.items()))
    assert plan(small(3), 1, Situation(live, {}), CONFIG) == plan(small(3), 1, Situation(backwards, {}), CONFIG)


def test_a_majority_of_the_members_counts_not_of_those_that_were_removed() -> None:
    shardmap = set_member_state(small(3), 1, NodeId("n2"), MemberState.REMOVED)
    assert electorate(shardmap) == ("n0", "n1")
    assert has_majority(small(3), {NodeId("n0"), NodeId("n1")})
    assert not has_majority(small(3), {NodeId("n0")})
    assert not has_majority(small(3), {NodeId("n0"), NodeId("x"), NodeId("y")})


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_whatever_happens_every_step_is_safe_and_when_it_ends_the_plan_comes_to_rest(data: st.DataObject) -> None:
    rf = data.draw(st.integers(1, 5))
    shardmap = birth("c", 1, nodes(*range(data.draw(st.integers(1, 5)))), 8, rf)
    epoch = 1
    live = nodes(0)
    for _ in range(data.draw(st.integers(1, 8))):
        live = nodes(*data.draw(st.sets(st.integers(0, 6), min_size=1)))
        absent = {
            member.node: data.draw(st.sampled_from([0.0, ABSENT_LONG]))
            for member in shardmap.members
            if member.node not in live
        }
        if data.draw(st.booleans()):
            node = data.draw(st.sampled_from(shardmap.members)).node
            shardmap = set_member_state(shardmap, epoch, node, data.draw(st.sampled_from(MemberState)))
        epoch += data.draw(st.integers(0, 1))
        ready = {report for report in ready_of(shardmap, live) if data.draw(st.booleans())}
        found = plan(shardmap, epoch, Situation(live, absent, ready), CONFIG)
        if found.next_map is not None:
            check_step(shardmap, found)
            if data.draw(st.booleans()):  # the leader may die before it is written
                shardmap = found.next_map
    for member in shardmap.members:
        shardmap = set_member_state(shardmap, epoch, member.node, MemberState.ACTIVE)
    everybody = nodes(*range(7))
    rested, _ = settle(shardmap, everybody, epoch=epoch)
    assert all(len(state.replicas) == min(rf, 7) and not state.is_joint for state in rested.shards)
    found_loads = loads(tuple(state.replicas for state in rested.shards))
    assert max(found_loads.values()) - min(found_loads[node] for node in everybody) <= 1
