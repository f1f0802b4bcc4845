"""Placement and planning at any size, by running the leader's own code: `rebalance.birth`, `plan`, `placement.place`.

Times are processor seconds of one core, so that a busy machine does not change them much; everything else is deterministic.
"""

from __future__ import annotations

import time
import tracemalloc
import zlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import msgspec
import numpy as np

from dakera_cluster.model.ids import NodeId, ShardId
from dakera_cluster.model.shardmap import ShardMap, decode_map, diff, encode_delta, encode_map
from dakera_cluster.protocols.placement import Placement, Target, loads, moved, place, ring_key
from dakera_cluster.protocols.rebalance import (
    LiveNode,
    Plan,
    ReadyReport,
    RebalanceConfig,
    Situation,
    Step,
    birth,
    plan,
)
from dakera_cluster.protocols.ring import Ring
from dakera_cluster.protocols.transfer import reporters

EPOCH = 1
GONE_MS = 1e9
MOST_ROUNDS = 5_000
T = TypeVar("T")

Live = dict[NodeId, LiveNode]


def cluster(nodes: int, racks: int = 0, *, first: int = 0) -> Live:
    """``nodes`` live nodes, spread evenly over ``racks`` (0: racks are not told apart)."""
    names = [NodeId(f"dakera-{number:04d}") for number in range(first, first + nodes)]
    return {
        name: LiveNode(number + 1, f"rack-{number % racks:02d}" if racks else "") for number, name in enumerate(names)
    }


def timed(work: Callable[[], T]) -> tuple[T, float]:
    """What ``work`` returns, and the processor seconds it took."""
    began = time.process_time()
    done = work()
    return done, time.process_time() - began


class MapCost(msgspec.Struct, frozen=True):
    """One cluster's map: bytes, and processor seconds of what is done with it."""

    nodes: int
    shards: int
    map_bytes: int
    packed_bytes: int
    """Compressed by zlib; the code sends and stores it as it is."""
    join_delta_bytes: int
    """Of the first round of moves after one node joined: the members are told anew with it."""
    delta_bytes: int
    """Of the next round."""
    resident_bytes: int
    birth_s: float
    plan_s: float
    """A plan that finds nothing to do."""
    join_plan_s: float
    encode_s: float
    decode_s: float


def map_cost(nodes: int, shards: int, rf: int) -> MapCost:
    live = cluster(nodes)
    made, birth_s = timed(lambda: birth("scaling", EPOCH, live, shards, rf))
    config = RebalanceConfig()
    quiet, plan_s = timed(lambda: plan(made, EPOCH, Situation(live, {}), config))
    if quiet.next_map is not None:
        raise RuntimeError("a newborn map is not as it should be")
    grown = live | cluster(1, first=nodes)
    joined, join_plan_s = timed(lambda: plan(made, EPOCH, Situation(grown, {}), config))
    assert joined.next_map is not None
    data, encode_s = timed(lambda: encode_map(made))
    _, decode_s = timed(lambda: decode_map(data))
    tracemalloc.start()
    kept = decode_map(data)
    resident = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert kept == made
    shards_of = [(ShardId(shard), joined.next_map.shards[shard]) for shard in joined.next_map.joint_shards()]
    ready = frozenset(
        ReadyReport(shard, state.version, node) for shard, state in shards_of for node in reporters(state)
    )
    following = plan(joined.next_map, EPOCH, Situation(grown, {}, ready), config).next_map
    assert following is not None
    deltas = [len(encode_delta(diff(a, b))) for a, b in ((made, joined.next_map), (joined.next_map, following))]
    return MapCost(
        nodes, shards, len(data), len(zlib.compress(data)), *deltas, resident,
        birth_s, plan_s, join_plan_s, encode_s, decode_s,
    )  # fmt: skip


class Load(msgspec.Struct, frozen=True):
    """Replicas per node after a birth: the ring alone, and as placed."""

    nodes: int
    racks: int
    shards: int
    mean: float
    most: int
    least: int
    ring_most: int
    ring_least: int


def load(nodes: int, racks: int, shards: int, rf: int) -> Load:
    live = cluster(nodes, racks)
    placed = place([()] * shards, targets(live), rf)
    counted = loads(placed)
    found = [counted[node] for node in live]
    ring = Ring(live)
    alone = Counter(node for shard in range(shards) for node in ring.owners(ring_key(shard), min(rf, nodes)))
    raw = [alone[node] for node in live]
    return Load(nodes, racks, shards, sum(found) / nodes, max(found), min(found), max(raw), min(raw))


def targets(live: Mapping[NodeId, LiveNode]) -> list[Target]:
    return [Target(node, said.zone) for node, said in live.items()]


class Shift(msgspec.Struct, frozen=True):
    """A change of the membership. A copy is one shard that one node fetches."""

    name: str
    copies: int
    ideal: float
    """Copies that any scheme with equal loads must move."""
    share: float
    """Copies over all copies of the cluster."""
    plan_s: float


def shift(name: str, before: ShardMap, live: Mapping[NodeId, LiveNode]) -> Shift:
    """What the placement moves when the live nodes are ``live`` from now on, all at once."""
    now: Sequence[Sequence[NodeId]] = [state.replicas for state in before.shards]
    after, plan_s = timed(lambda: place(now, targets(live), before.replication_factor))
    copies = sum(len(nodes) for nodes in moved(now, after).values())
    total = before.shard_count * min(before.replication_factor, len(live))
    old = {member.node for member in before.members}
    lost = sum(node not in live for replicas in now for node in replicas)
    ideal = max(lost, total * len(live.keys() - old) / len(live))
    return Shift(name, copies, ideal, copies / total, plan_s)


class Rounds(msgspec.Struct, frozen=True):
    """A change carried out under the throttle. In a round every move under way ends; the next plan begins others."""

    name: str
    rounds: int
    copies: int
    most_joint: int
    turns: int
    """Sum over the rounds of the most shards that one node fetched in it: how often the time of one shard passes."""
    spread: int
    """Fullest node less emptiest one afterwards."""


def carry_out(
    name: str, before: ShardMap, live: Mapping[NodeId, LiveNode], config: RebalanceConfig | None = None
) -> tuple[Rounds, ShardMap]:
    """Plan, let all moves end, plan again, until the map is as it should be; the final map. Raises RuntimeError when it does
    not get there, or when a move was aborted though nothing failed."""
    config = config or RebalanceConfig()
    absent = {member.node: GONE_MS for member in before.members if member.node not in live}
    current, copies, most, turns, rounds = before, 0, 0, 0, 0
    ready: frozenset[ReadyReport] = frozenset()
    for _ in range(MOST_ROUNDS):
        made: Plan = plan(current, EPOCH, Situation(live, absent, ready), config)
        if made.next_map is None:
            break
        if Step.ABORTED in made.steps.values():
            raise RuntimeError(f"{name}: a move was aborted")
        current = made.next_map
        joint = [(ShardId(shard), current.shards[shard]) for shard in current.joint_shards()]
        busy = Counter(node for _, state in joint for node in state.joining)
        copies += sum(busy.values())
        most = max(most, len(joint))
        turns += max(busy.values(), default=0)
        rounds += bool(joint)
        ready = frozenset(
            ReadyReport(shard, state.version, node) for shard, state in joint for node in reporters(state)
        )
    else:
        raise RuntimeError(f"{name}: not done after {MOST_ROUNDS} rounds")
    placed: Placement = tuple(state.replicas for state in current.shards)
    counted = loads(placed)
    found = [counted[node] for node in live]
    return Rounds(name, rounds, copies, most, turns, max(found) - min(found)), current


class Peers(msgspec.Struct, frozen=True):
    """Of one node: shards held, nodes it shares a shard with (mean and most), shards it is first for (mean and most)."""

    held: float
    peers: float
    most_peers: int
    first: float
    most_first: int


def peers_of(made: ShardMap) -> Peers:
    others: dict[NodeId, set[NodeId]] = {member.node: set() for member in made.members}
    for state in made.shards:
        for node in state.replicas:
            others[node].update(state.replicas)
    counts = [max(0, len(found) - 1) for found in others.values()]
    first = Counter(state.replicas[0] for state in made.shards)
    held = sum(len(state.replicas) for state in made.shards) / len(counts)
    return Peers(held, sum(counts) / len(counts), max(counts), made.shard_count / len(counts), max(first.values()))


class Skew(msgspec.Struct, frozen=True):
    """Memories by shard and by node, largest over mean, when agents are of very unlike size."""

    shard_most: float
    node_most: float
    node_least: float


def skew(made: ShardMap, agents: int, sigma: float, *, seed: int = 1) -> Skew:
    """``agents`` of lognormal size fall on the shards at random, as `hash(namespace)` makes them."""
    rng = np.random.default_rng(seed)
    weights = np.zeros(made.shard_count)
    left = agents
    while left:
        some = min(left, 5_000_000)
        sizes = rng.lognormal(-sigma * sigma / 2, sigma, some)
        weights += np.bincount(rng.integers(0, made.shard_count, some), sizes, made.shard_count)
        left -= some
    by_node: Counter[NodeId] = Counter()
    for state, weight in zip(made.shards, weights.tolist(), strict=True):
        for node in state.replicas:
            by_node[node] += weight
    mean = sum(by_node.values()) / len(made.members)
    return Skew(float(weights.max() / weights.mean()), max(by_node.values()) / mean, min(by_node.values()) / mean)
