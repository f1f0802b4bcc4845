"""The desired map: which nodes should hold each shard, given who holds it now.

The ring gives the order of preference and the birth of a cluster; afterwards the present map is the starting point, and only
what is wrong is changed, so that a join or a leave moves little more than its share and nothing moves twice:

1. keep every replica whose node may hold shards;
2. fill what is missing with the most preferred node that is not full, in a new zone if there is one;
3. spread over zones where a shard has two replicas in one zone and a zone without any could take one;
4. level the load: while a node holds more than its cap and another less, move one replica over, first such as have to be
   fetched by somebody in any case.

Bounded load (Mirrokni et al., "Consistent hashing with bounded loads", 2018) with the tightest bound, the ceiling of the
mean: afterwards the loads of all nodes differ by at most one, unless zones forbid it. Two replicas never share a zone for the
sake of load, so zones of unlike size stay unlike in load.

Invariants: deterministic; every shard gets min(rf, nodes) distinct nodes; placing what was placed changes nothing. Pure.
Called by `rebalance` and by the simulated tables of ops/SCALING.md.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from heapq import heapify, heappop, heappush

import msgspec
import xxhash

from dakera_cluster.model.ids import NodeId, ShardId
from dakera_cluster.protocols.ring import Ring

Placement = tuple[tuple[NodeId, ...], ...]
"""Replicas of every shard, by shard number."""


class Target(msgspec.Struct, frozen=True, array_like=True, order=True):
    """A node that may hold shards. ``zone`` "" means that zones are not told apart."""

    node: NodeId
    zone: str = ""


def ring_key(shard: int) -> str:
    """The ring key of a shard. Pinned: another spelling would place newborn clusters differently."""
    return f"shard-{shard}"


def place(current: Sequence[Sequence[NodeId]], targets: Iterable[Target], replication_factor: int) -> Placement:
    """Replicas of every shard. ``current`` names the present holders in order of preference (empty for a newborn shard);
    holders that are no target are dropped. Fewer targets than ``replication_factor`` give every shard to all of them."""
    work = _Work(current, {target.node: target.zone for target in targets}, replication_factor)
    if work.zones:
        work.fill()
        work.spread()
        work.level()
    return tuple(tuple(holders) for holders in work.holders)


class _Work:
    """Scratch state of one placement."""

    def __init__(self, current: Sequence[Sequence[NodeId]], zones: Mapping[NodeId, str], rf: int) -> None:
        self.zones = zones
        self.nodes = sorted(zones)
        self.zone_sizes = Counter(zones.values())
        self.copies = min(rf, len(zones))
        self.before = [frozenset(holders) for holders in current]
        self.holders: list[list[NodeId]] = [
            list(dict.fromkeys(node for node in holders if node in zones)) for holders in current
        ]
        self.shards_of: dict[NodeId, set[int]] = {node: set() for node in self.nodes}
        for shard, holders in enumerate(self.holders):
            # A surplus replica is given up where the load is highest, decided when all loads are known.
            for node in holders:
                self.shards_of[node].add(shard)
        for shard, holders in enumerate(self.holders):
            while len(holders) > self.copies:
                self.drop(shard, max(holders, key=lambda node: (self.crowd(shard, node), self.load(node), node)))
        self.cap = -(-len(self.holders) * self.copies // max(1, len(zones)))
        self.room = Counter(zones[node] for node in self.nodes if self.load(node) < self.cap)
        self.rooms = sum(self.room.values())

    @cached_property
    def ring(self) -> Ring:
        # Nine plans of ten find every shard where it should be, and the points of a thousand nodes take a while to sort.
        return Ring(self.zones)

    def load(self, node: NodeId) -> int:
        return len(self.shards_of[node])

    def crowd(self, shard: int, node: NodeId) -> int:
        """Other replicas of ``shard`` in the zone of ``node``."""
        zone = self.zones[node]
        return sum(other != node and self.zones[other] == zone for other in self.holders[shard])

    def add(self, shard: int, node: NodeId) -> None:
        self.holders[shard].append(node)
        self.shards_of[node].add(shard)
        if self.load(node) == self.cap:
            self.room[self.zones[node]] -= 1
            self.rooms -= 1

    def drop(self, shard: int, node: NodeId) -> None:
        self.holders[shard].remove(node)
        self.shards_of[node].remove(shard)

    def swap(self, shard: int, giver: NodeId, taker: NodeId) -> None:
        self.holders[shard][self.holders[shard].index(giver)] = taker
        self.shards_of[giver].remove(shard)
        self.shards_of[taker].add(shard)

    def fill(self) -> None:
        for shard, holders in enumerate(self.holders):
            if len(holders) >= self.copies:
                continue
            while len(holders) < self.copies:
                self.add(shard, self.best_for(shard))

    def best_for(self, shard: int) -> NodeId:
        """The most preferred node among those that crowd the shard's zones least and, of these, are not full."""
        holders = self.holders[shard]
        used = Counter(self.zones[node] for node in holders)
        least = self.least_crowd(used)
        # Known beforehand, so that the walk ends at the first hit instead of looking for a better one all around the ring.
        room = self.rooms if least == 0 else 0
        for zone, count in used.items():
            if least == 0:
                room -= self.room[zone]
            elif count == least:
                room += self.room[zone]
                room -= sum(self.zones[node] == zone and self.load(node) < self.cap for node in holders)
        for node in self.ring.preference(ring_key(shard)):
            if node in holders or used[self.zones[node]] != least:
                continue
            if not room or self.load(node) < self.cap:
                return node
        raise AssertionError("fewer nodes than replicas")

    def least_crowd(self, used: Counter[str]) -> int:
        """Fewest replicas that a zone with another node has; ``used``: replicas of a shard by zone."""
        if len(used) < len(self.zone_sizes):
            return 0
        return min((count for zone, count in used.items() if count < self.zone_sizes[zone]), default=0)

    def spread(self) -> None:
        if len(self.zone_sizes) < 2:
            return
        for shard, holders in enumerate(self.holders):
            if len({self.zones[node] for node in holders}) == len(holders):
                continue
            for giver in list(holders):
                crowd = self.crowd(shard, giver)
                used = Counter(self.zones[node] for node in holders if node != giver)
                if crowd == 0 or self.least_crowd(used) >= crowd:
                    continue
                free = [
                    node
                    for node in self.ring.preference(ring_key(shard))
                    if node not in holders and self.zone_use(shard, node, giver) < crowd
                ]
                if free:
                    taker = min(free, key=lambda node: (self.zone_use(shard, node, giver), self.load(node)))
                    self.swap(shard, giver, taker)

    def zone_use(self, shard: int, node: NodeId, without: NodeId) -> int:
        zone = self.zones[node]
        return sum(other != without and self.zones[other] == zone for other in self.holders[shard])

    def level(self) -> None:
        """Move single replicas from the fullest node to the emptiest one that can take one of its shards, while their loads
        differ by two or more. Every move lowers the sum of squares of the loads, so it ends."""
        givers = [(-self.load(node), node) for node in self.nodes]
        takers: dict[str, list[tuple[int, NodeId]]] = {zone: [] for zone in self.zone_sizes}
        for node in self.nodes:
            takers[self.zones[node]].append((self.load(node), node))
        for heap in (givers, *takers.values()):
            heapify(heap)
        while givers:
            negative, giver = heappop(givers)
            if -negative != self.load(giver) or self.give_one(giver, takers):
                heappush(givers, (-self.load(giver), giver))
            # A giver that finds no taker is done with: the others' loads only come closer to its own.

    def give_one(self, giver: NodeId, takers: Mapping[str, list[tuple[int, NodeId]]]) -> bool:
        """Move one shard of ``giver`` to the emptiest node that can have one; ``takers``: a heap by load for each zone."""
        closed = self.closed_zones(giver)
        heads = [(heap[0], zone) for zone, heap in takers.items() if heap and zone not in closed]
        heapify(heads)
        passed: list[tuple[int, NodeId]] = []
        found = False
        while heads and not found:
            (load, taker), zone = heappop(heads)
            if load > self.load(giver) - 2:
                break
            heappop(takers[zone])
            if takers[zone]:
                heappush(heads, (takers[zone][0], zone))
            if load == self.load(taker):
                shard = self.movable(giver, taker)
                if shard is not None:
                    self.swap(shard, giver, taker)
                    passed.append((self.load(giver), giver))
                    found = True
                passed.append((self.load(taker), taker))
        for entry in passed:
            heappush(takers[self.zones[entry[1]]], entry)
        return found

    def closed_zones(self, giver: NodeId) -> set[str]:
        """Zones whose nodes can have none of ``giver``'s shards: all of them would crowd there. Where zones are of unlike
        size these are most of the emptiest nodes, and asking each of them makes planning quadratic."""
        blocked: Counter[str] = Counter()
        for shard in self.shards_of[giver]:
            used = Counter(self.zones[node] for node in self.holders[shard])
            crowd = used[self.zones[giver]] - 1
            used[self.zones[giver]] = 0
            blocked.update(zone for zone, count in used.items() if count > crowd)
        return {zone for zone, count in blocked.items() if count == len(self.shards_of[giver])}

    def movable(self, giver: NodeId, taker: NodeId) -> int | None:
        fitting = (
            shard
            for shard in self.shards_of[giver]
            if taker not in self.holders[shard] and self.zone_use(shard, taker, giver) <= self.crowd(shard, giver)
        )
        # One that has to be fetched in any case first: it costs nothing. Else which one goes is settled as in rendezvous
        # hashing: at random as to the shards' history, the same everywhere.
        return min(
            fitting,
            key=lambda shard: (giver in self.before[shard], xxhash.xxh64_intdigest(f"{shard}/{taker}"), shard),
            default=None,
        )


def loads(placement: Placement) -> Counter[NodeId]:
    """Replicas per node."""
    return Counter(node for holders in placement for node in holders)


def moved(before: Sequence[Sequence[NodeId]], after: Placement) -> dict[ShardId, tuple[NodeId, ...]]:
    """Shards that get new holders, and who these are: each is one copy of the shard over the network."""
    return {
        ShardId(shard): new
        for shard, (old, now) in enumerate(zip(before, after, strict=True))
        if (new := tuple(node for node in now if node not in old))
    }
