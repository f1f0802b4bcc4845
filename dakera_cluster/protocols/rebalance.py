"""The leader's plan: from the map as it is, and the nodes as they are, to the next map.

A pure function, run by the leader whenever something changed and every few seconds. It keeps no memory: what is under way
stands in the map (joint shards, draining members), what is finished is told again by those who finished it (`transfer`
reports READY until the map changes). So a leader may crash at any step, and another one, or none for a while, changes nothing
but the time it takes. The map is written by compare-and-swap; a plan that loses the race is made anew from the map that won.

::

    shard          condition                                       next
    stable         its holders are as desired                      stable
    stable         others are desired, throttle allows,            joint: joining = desired - held,
                   a majority of its holders is alive              leaving = held - desired, less the kept ones [1]
    joint          every reporter is READY under this version      stable: the new set
    joint          a joining node may not hold shards any more     stable: the old set (aborted)
    joint          otherwise                                       joint: wait

    [1] A dead holder is given up only when a live one takes its place, or when an operator removed it: a shard of three with
        one dead is no worse off than a shard of two, and the dead one may come back with its rows.

A node that has been away for less than ``delay_ms`` still counts: a restart moves nothing. Moves are throttled per joining
node and in all; shards with dead or draining holders go first.

Duties of the caller: only the leader plans, under its epoch, on the map it just read from the bucket; ``absent_ms`` is
measured by this leader's own clock since it first saw the node gone (so a new leader waits anew); keep READY reports only for
versions that stand in the map. Called by ``cluster.leader``; dry runs by the admin API.
"""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Collection, Mapping

import msgspec

from dakera_cluster.model.ids import NodeId, ShardId
from dakera_cluster.model.shardmap import Member, MemberState, ShardMap, ShardState, majority
from dakera_cluster.protocols.placement import Placement, Target, place
from dakera_cluster.protocols.transfer import BIRTH_VERSION, reporters


class RebalanceConfig(msgspec.Struct, frozen=True, kw_only=True):
    delay_ms: float = 60_000.0
    """``DAKERA_REBALANCE_DELAY_SECS``: a node gone for less keeps its shards."""
    moves_per_node: int = 4
    """Shards that one node fetches at once."""
    moves_total: int = 64


class LiveNode(msgspec.Struct, frozen=True):
    """A node that membership calls alive: what it says of itself."""

    disk: int = 0
    zone: str = ""


class ReadyReport(msgspec.Struct, frozen=True):
    """``node`` is READY for ``shard`` under shard version ``version``."""

    shard: ShardId
    version: int
    node: NodeId


class Situation(msgspec.Struct, frozen=True):
    """What the leader knows when it plans."""

    live: Mapping[NodeId, LiveNode]
    absent_ms: Mapping[NodeId, float]
    """How long a member that is not alive has been away; one that is not named was missed only now."""
    ready: Collection[ReadyReport] = frozenset()
    paused: bool = False
    """Maintenance: finish and abort what is under way, start nothing."""


class Step(enum.Enum):
    STARTED = "started"
    FINISHED = "finished"
    ABORTED = "aborted"


class Move(msgspec.Struct, frozen=True):
    """A change of one shard's holders."""

    shard: ShardId
    joining: tuple[NodeId, ...]
    leaving: tuple[NodeId, ...]


class Plan(msgspec.Struct, frozen=True):
    """``next_map`` is None when the map is as it should be. ``steps``: what it changes. ``pending``: moves that are desired
    and not begun, because of the throttle, a pause, or a shard whose majority is away."""

    next_map: ShardMap | None
    steps: dict[ShardId, Step]
    pending: tuple[Move, ...]


def birth(
    cluster_id: str, epoch: int, live: Mapping[NodeId, LiveNode], shards: int, replication_factor: int
) -> ShardMap:
    """The first map of a cluster: all shards placed on ``live``, empty and complete from the start. Raises ValueError when
    nobody is alive or a number is out of range."""
    if not live:
        raise ValueError("a cluster is born with at least one node")
    members = tuple(Member(node, live[node].disk, live[node].zone) for node in sorted(live))
    placed = place([()] * shards, [Target(member.node, member.zone) for member in members], replication_factor)
    states = tuple(ShardState(BIRTH_VERSION, holders) for holders in placed)
    return ShardMap(cluster_id, epoch, 1, replication_factor, members, states)


def electorate(shardmap: ShardMap) -> tuple[NodeId, ...]:
    """Members of which a majority must be alive before anybody campaigns."""
    return tuple(member.node for member in shardmap.members if member.state is not MemberState.REMOVED)


def has_majority(shardmap: ShardMap, live: Collection[NodeId]) -> bool:
    voters = electorate(shardmap)
    return sum(node in live for node in voters) >= majority(len(voters))


def set_member_state(shardmap: ShardMap, epoch: int, node: NodeId, state: MemberState) -> ShardMap:
    """The map after an operator drained, removed or reinstated ``node``. Raises KeyError when it is no member."""
    if shardmap.member(node) is None:
        raise KeyError(node)
    members = tuple(
        Member(member.node, member.disk, member.zone, state) if member.node == node else member
        for member in shardmap.members
    )
    return shardmap.replace(epoch=epoch, members=members)


def plan(shardmap: ShardMap, epoch: int, situation: Situation, config: RebalanceConfig) -> Plan:
    """The next map, one CAS away. Planning again after it was written, with nothing else changed, plans nothing."""
    members = _members(shardmap, situation, config)
    by_node = {member.node: member for member in members}
    eligible = {
        node
        for node, member in by_node.items()
        if member.state is MemberState.ACTIVE and _is_present(node, situation, config)
    }
    changes: dict[ShardId, ShardState] = {}
    steps: dict[ShardId, Step] = {}
    for shard in shardmap.joint_shards():
        state = shardmap.shards[shard]
        if all(ReadyReport(shard, state.version, node) in situation.ready for node in reporters(state)):
            changes[shard] = ShardState(state.version + 1, state.new_set)
            steps[shard] = Step.FINISHED
        elif not eligible.issuperset(state.joining):
            changes[shard] = ShardState(state.version + 1, state.replicas)
            steps[shard] = Step.ABORTED
    states = [changes.get(ShardId(shard), state) for shard, state in enumerate(shardmap.shards)]
    targets = [Target(node, by_node[node].zone) for node in eligible]
    desired = place([state.new_set for state in states], targets, shardmap.replication_factor)
    pending: list[Move] = []
    busy = Counter(node for state in states for node in state.joining)
    total = sum(state.is_joint for state in states)
    for move in _moves(states, desired, by_node, eligible, shardmap.replication_factor, situation):
        held = shardmap.shards[move.shard]
        if (
            situation.paused
            or steps.get(move.shard)
            or total >= config.moves_total
            or any(busy[node] >= config.moves_per_node for node in move.joining)
            or sum(node in situation.live for node in held.replicas) < majority(len(held.replicas))
        ):
            pending.append(move)
            continue
        changes[move.shard] = ShardState(held.version + 1, held.replicas, move.joining, move.leaving)
        steps[move.shard] = Step.STARTED
        busy.update(move.joining)
        total += 1
    if not changes and members == shardmap.members and epoch == shardmap.epoch:
        return Plan(None, {}, tuple(pending))
    return Plan(shardmap.replace(epoch=epoch, shards=changes, members=members), steps, tuple(pending))


def _is_present(node: NodeId, situation: Situation, config: RebalanceConfig) -> bool:
    return node in situation.live or situation.absent_ms.get(node, 0.0) < config.delay_ms


def _members(shardmap: ShardMap, situation: Situation, config: RebalanceConfig) -> tuple[Member, ...]:
    """Newcomers in, those out that hold nothing and are gone; a zone is as the node says. The disk stays what it was when the
    node was admitted: it tells a node that lost its disk apart from the one that was admitted."""
    holders = {node for state in shardmap.shards for node in state.write_set}
    members = []
    for member in shardmap.members:
        live = situation.live.get(member.node)
        if member.node not in holders and live is None and not _is_present(member.node, situation, config):
            continue
        zone = member.zone if live is None else live.zone
        members.append(Member(member.node, member.disk, zone, member.state))
    known = {member.node for member in shardmap.members}
    members += [Member(node, live.disk, live.zone) for node, live in situation.live.items() if node not in known]
    return tuple(sorted(members))


def _moves(
    states: list[ShardState],
    desired: Placement,
    members: Mapping[NodeId, Member],
    eligible: Collection[NodeId],
    replication_factor: int,
    situation: Situation,
) -> list[Move]:
    """All moves that would make the map as desired, the most urgent first."""
    ranked: list[tuple[int, int, Move]] = []
    for index, (state, wanted) in enumerate(zip(states, desired, strict=True)):
        if state.is_joint or set(wanted) == set(state.replicas):
            continue
        joining = tuple(node for node in wanted if node not in state.replicas)
        leaving = _leaving(state, wanted, len(joining), members, eligible, replication_factor)
        if not joining and not leaving:
            continue
        alive = sum(node in situation.live for node in state.replicas)
        urgency = (
            0 if alive < min(len(state.replicas), replication_factor) else 1 if _is_ordered(leaving, members) else 2
        )
        ranked.append((urgency, alive, Move(ShardId(index), joining, leaving)))
    return [move for _, _, move in sorted(ranked, key=lambda entry: (entry[0], entry[1], entry[2].shard))]


def _is_ordered(leaving: tuple[NodeId, ...], members: Mapping[NodeId, Member]) -> bool:
    """Does an operator's word stand behind one of those that leave?"""
    return any(node not in members or members[node].state is not MemberState.ACTIVE for node in leaving)


def _leaving(
    state: ShardState,
    wanted: tuple[NodeId, ...],
    joining: int,
    members: Mapping[NodeId, Member],
    eligible: Collection[NodeId],
    replication_factor: int,
) -> tuple[NodeId, ...]:
    surplus = [node for node in state.replicas if node not in wanted]
    forced = [node for node in surplus if _is_ordered((node,), members)]
    # The dead go first, as many as leave the shard with its full number of holders.
    others = sorted((node for node in surplus if node not in forced), key=lambda node: node in eligible)
    room = max(0, len(state.replicas) + joining - len(forced) - replication_factor)
    leaving = [*forced, *others[:room]]
    if len(leaving) >= len(state.replicas) + joining:
        # The last holder stays, whatever is asked.
        return ()
    while leaving and joining and not _is_safe(len(state.replicas) - len(leaving), joining, len(leaving)):
        leaving.pop()
    return tuple(node for node in state.replicas if node in leaving)


def _is_safe(kept: int, joining: int, leaving: int) -> bool:
    """Does every majority of the new set that no (complete) joining node is part of still share a kept node with every
    majority of the old set? True for all moves of a usual factor; large cuts of a large factor go in two steps."""
    return majority(kept + leaving) - leaving + majority(kept + joining) > kept
