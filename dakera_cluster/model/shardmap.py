"""Who holds which shard: the map the leader writes to the bucket and everybody else obeys.

A shard is **stable** (``replicas`` only) or **joint** (some nodes joining, some leaving; Ongaro, "Consensus: bridging
theory and practice", 2014, section 4.3). With ``old = replicas`` and ``new = replicas - leaving + joining``:

===========  =============================  ==============================================
operation    who is asked                   who must answer
===========  =============================  ==============================================
write        old and new                    a majority of old *and* a majority of new
strong read  old and new                    a majority of old *and* a majority of new
any read     old (joining nodes lack rows)  one of old
===========  =============================  ==============================================

Strong reads need both majorities as well: while a shard leaves its joint state some nodes already serve writes that only a
majority of *new* has, and it is the newer node among the answers that reveals the asker's map as outdated.

Invariants, checked when a map is made: joining and replicas are disjoint, leaving is part of replicas, the new set is not
empty, ``version`` of a shard grows with every change of that shard, ``version`` of the map with every write. A node that
acts under a shard version has persisted it first, and afterwards refuses requests that carry an older one (`admit`): the
safety of moves rests on that refusal. Only the leader makes maps, by compare-and-swap. Read by every protocol that
replicates, moves or repairs; written by ``protocols.rebalance``.

Encoding: replica sets repeat, so each distinct (replicas, joining, leaving) is written once and shards refer to it; 16,384
shards over 1,000 nodes take about 300 KB before compression. A `MapDelta` carries changed shards and members only.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping

import msgspec

from dakera_cluster.model.errors import CorruptionError
from dakera_cluster.model.ids import NodeId, ShardId

FORMAT = 1
"""Version of the encoding; a reader refuses what it does not know."""
MAX_SHARDS = 65_536
MAX_REPLICATION_FACTOR = 9


class ReplicaState(enum.Enum):
    """What one node is to one shard. Every predicate names all states, so that a new state cannot be forgotten."""

    ABSENT = "absent"
    ACTIVE = "active"
    JOINING = "joining"
    LEAVING = "leaving"

    @property
    def takes_writes(self) -> bool:
        match self:
            case ReplicaState.ACTIVE | ReplicaState.JOINING | ReplicaState.LEAVING:
                return True
            case ReplicaState.ABSENT:
                return False

    @property
    def serves_reads(self) -> bool:
        match self:
            case ReplicaState.ACTIVE | ReplicaState.LEAVING:
                return True
            case ReplicaState.JOINING | ReplicaState.ABSENT:
                return False

    @property
    def in_old_set(self) -> bool:
        match self:
            case ReplicaState.ACTIVE | ReplicaState.LEAVING:
                return True
            case ReplicaState.JOINING | ReplicaState.ABSENT:
                return False

    @property
    def in_new_set(self) -> bool:
        match self:
            case ReplicaState.ACTIVE | ReplicaState.JOINING:
                return True
            case ReplicaState.LEAVING | ReplicaState.ABSENT:
                return False


class MemberState(enum.IntEnum):
    """What the leader may do with a member. On disk and on the wire: append, never renumber."""

    ACTIVE = 0
    DRAINING = 1
    """Asked to leave: gets no new shards and gives its own away."""
    REMOVED = 2
    """Gone for good by an operator's word: its replicas are dropped even when nobody can take them."""


class Member(msgspec.Struct, frozen=True, array_like=True, order=True):
    """A node the map counts on. ``disk`` names the node's disk, drawn when the disk was formatted: a member that comes back
    under its old name with another disk has lost its rows and must not count as a replica until it fetched them again."""

    node: NodeId
    disk: int = 0
    zone: str = ""
    state: MemberState = MemberState.ACTIVE


def majority(count: int) -> int:
    """Smallest number of ``count`` that intersects every other such number; 0 of nothing."""
    return count // 2 + 1 if count else 0


class ShardState(msgspec.Struct, frozen=True, array_like=True):
    """Replica sets of one shard. Order matters only for preference: the first replica is asked first."""

    version: int
    replicas: tuple[NodeId, ...]
    joining: tuple[NodeId, ...] = ()
    leaving: tuple[NodeId, ...] = ()

    def __post_init__(self) -> None:
        if self.joining or self.leaving:
            if set(self.joining) & set(self.replicas):
                raise ValueError("a node cannot join a shard it already holds")
            if not set(self.leaving) <= set(self.replicas):
                raise ValueError("only a replica can leave a shard")
            if len(self.leaving) >= len(self.replicas) + len(self.joining):
                raise ValueError("a shard must keep a replica")
        if len(set(self.replicas)) != len(self.replicas) or len(set(self.joining)) != len(self.joining):
            raise ValueError("a node holds a shard once")

    @property
    def is_joint(self) -> bool:
        return bool(self.joining or self.leaving)

    @property
    def old_set(self) -> tuple[NodeId, ...]:
        return self.replicas

    @property
    def new_set(self) -> tuple[NodeId, ...]:
        if not self.is_joint:
            return self.replicas
        return tuple(node for node in self.replicas if node not in self.leaving) + self.joining

    @property
    def quorum_sets(self) -> tuple[tuple[NodeId, ...], ...]:
        """The sets of which each must give its majority: one when stable, two when joint."""
        return (self.old_set, self.new_set) if self.is_joint else (self.replicas,)

    @property
    def write_set(self) -> tuple[NodeId, ...]:
        """Every node that gets every write; each once."""
        return self.replicas + self.joining

    @property
    def read_set(self) -> tuple[NodeId, ...]:
        """Nodes that may answer a read alone."""
        return self.replicas

    def state_of(self, node: NodeId) -> ReplicaState:
        if node in self.joining:
            return ReplicaState.JOINING
        if node in self.leaving:
            return ReplicaState.LEAVING
        if node in self.replicas:
            return ReplicaState.ACTIVE
        return ReplicaState.ABSENT

    def has_quorum(self, nodes: Iterable[NodeId]) -> bool:
        """Do ``nodes`` hold a majority of the old set and of the new one?"""
        have = set(nodes)
        return all(len(have.intersection(group)) >= majority(len(group)) for group in self.quorum_sets)


class Admission(enum.Enum):
    """What a replica does with a request that carries a shard version."""

    SERVE = "serve"
    OUTDATED = "outdated"
    """The asker's map is older: refuse, answer with our shard state."""
    BEHIND = "behind"
    """Our map is older: fetch the newer one, persist it, then look again."""
    NOT_HELD = "not_held"
    """Same version, and this node is no replica: the asker is confused."""


def admit(mine: ShardState, node: NodeId, version: int) -> Admission:
    """Judge a request under ``version`` of a shard whose state at this node is ``mine``."""
    if version < mine.version:
        return Admission.OUTDATED
    if version > mine.version:
        return Admission.BEHIND
    return Admission.SERVE if mine.state_of(node).takes_writes else Admission.NOT_HELD


class ShardMap(msgspec.Struct, frozen=True):
    """The whole map. ``epoch`` is the lease epoch of the leader that wrote it; ``shards[i]`` is the state of shard i."""

    cluster_id: str
    epoch: int
    version: int
    replication_factor: int
    members: tuple[Member, ...]
    shards: tuple[ShardState, ...]

    def __post_init__(self) -> None:
        if not 1 <= len(self.shards) <= MAX_SHARDS:
            raise ValueError(f"a cluster has 1 to {MAX_SHARDS} shards, not {len(self.shards)}")
        if not 1 <= self.replication_factor <= MAX_REPLICATION_FACTOR:
            raise ValueError(f"replication factor must be 1 to {MAX_REPLICATION_FACTOR}, not {self.replication_factor}")

    @property
    def shard_count(self) -> int:
        return len(self.shards)

    @property
    def order(self) -> tuple[int, int]:
        """The greater map is the newer one."""
        return (self.epoch, self.version)

    def member(self, node: NodeId) -> Member | None:
        return next((member for member in self.members if member.node == node), None)

    def holds(self, node: NodeId) -> tuple[ShardId, ...]:
        """Shards for which ``node`` takes writes."""
        return tuple(
            ShardId(index) for index, state in enumerate(self.shards) if node in state.replicas or node in state.joining
        )

    def state_of(self, shard: ShardId, node: NodeId) -> ReplicaState:
        return self.shards[shard].state_of(node)

    def joint_shards(self) -> tuple[ShardId, ...]:
        return tuple(ShardId(index) for index, state in enumerate(self.shards) if state.is_joint)

    def replace(
        self,
        *,
        epoch: int,
        shards: Mapping[ShardId, ShardState] | None = None,
        members: tuple[Member, ...] | None = None,
    ) -> ShardMap:
        """The next map: version one higher, with the changed shards. Raises ValueError when an epoch or a shard version
        would go back, which only a bug can ask for."""
        if epoch < self.epoch:
            raise ValueError(f"epoch {epoch} is older than the map's {self.epoch}")
        states = list(self.shards)
        for shard, state in (shards or {}).items():
            if state.version <= states[shard].version:
                raise ValueError(f"shard {shard} version {state.version} does not grow")
            states[shard] = state
        return ShardMap(
            self.cluster_id,
            epoch,
            self.version + 1,
            self.replication_factor,
            self.members if members is None else members,
            tuple(states),
        )


class MapDelta(msgspec.Struct, frozen=True, array_like=True):
    """What turns the map of ``base_version`` into ``version``: small, because a move changes one shard at a time."""

    cluster_id: str
    base_version: int
    epoch: int
    version: int
    members: tuple[Member, ...] | None
    shards: dict[int, ShardState]


class DeltaMismatchError(ValueError):
    """A delta was applied to another map than the one it was made from: fetch the whole map."""


def diff(old: ShardMap, new: ShardMap) -> MapDelta:
    """The delta from ``old`` to ``new``; both must be of one cluster."""
    if (old.cluster_id, old.shard_count) != (new.cluster_id, new.shard_count):
        raise DeltaMismatchError("maps of different clusters have no delta")
    changed = {
        index: after
        for index, (before, after) in enumerate(zip(old.shards, new.shards, strict=True))
        if before is not after and before != after
    }
    members = None if old.members == new.members else new.members
    return MapDelta(new.cluster_id, old.version, new.epoch, new.version, members, changed)


def apply_delta(base: ShardMap, delta: MapDelta) -> ShardMap:
    """Raises DeltaMismatchError when ``delta`` was made from another map."""
    if (base.cluster_id, base.version) != (delta.cluster_id, delta.base_version):
        raise DeltaMismatchError(f"delta is from version {delta.base_version}, the map is version {base.version}")
    states = list(base.shards)
    for index, state in delta.shards.items():
        if not 0 <= index < len(states):
            raise DeltaMismatchError(f"delta names shard {index} of {len(states)}")
        states[index] = state
    members = base.members if delta.members is None else delta.members
    return ShardMap(base.cluster_id, delta.epoch, delta.version, base.replication_factor, members, tuple(states))


class _Wire(msgspec.Struct, frozen=True, array_like=True):
    """Nodes are numbered once, replica sets are listed once, shards are (set, version)."""

    format: int
    cluster_id: str
    epoch: int
    version: int
    replication_factor: int
    members: list[Member]
    nodes: list[NodeId]
    sets: list[tuple[list[int], list[int], list[int]]]
    set_of: list[int]
    versions: list[int]


_ENCODER = msgspec.msgpack.Encoder()
_MAP = msgspec.msgpack.Decoder(_Wire)
_DELTA = msgspec.msgpack.Decoder(MapDelta)


def encode_map(shardmap: ShardMap) -> bytes:
    """Equal maps have equal bytes."""
    numbers: dict[NodeId, int] = {}
    sets: dict[tuple[tuple[NodeId, ...], tuple[NodeId, ...], tuple[NodeId, ...]], int] = {}
    set_of: list[int] = []
    for state in shardmap.shards:
        key = (state.replicas, state.joining, state.leaving)
        set_of.append(sets.setdefault(key, len(sets)))
    for key in sets:
        for group in key:
            for node in group:
                numbers.setdefault(node, len(numbers))
    listed = [tuple([numbers[node] for node in group] for group in key) for key in sets]
    return _ENCODER.encode(
        (
            FORMAT,
            shardmap.cluster_id,
            shardmap.epoch,
            shardmap.version,
            shardmap.replication_factor,
            shardmap.members,
            list(numbers),
            listed,
            set_of,
            [state.version for state in shardmap.shards],
        )
    )


def decode_map(data: bytes) -> ShardMap:
    """Raises CorruptionError when the bytes are no map, or one of a format this release does not know."""
    try:
        wire = _MAP.decode(data)
        if wire.format != FORMAT:
            raise CorruptionError(f"shard map has format {wire.format}, this release reads {FORMAT}")
        sets = [tuple(tuple(wire.nodes[number] for number in group) for group in groups) for groups in wire.sets]
        shards = tuple(
            ShardState(version, *sets[index]) for index, version in zip(wire.set_of, wire.versions, strict=True)
        )
        return ShardMap(wire.cluster_id, wire.epoch, wire.version, wire.replication_factor, tuple(wire.members), shards)
    except (msgspec.MsgspecError, ValueError, IndexError) as error:
        raise CorruptionError(f"shard map cannot be decoded: {error}") from error


def encode_delta(delta: MapDelta) -> bytes:
    return _ENCODER.encode(delta)


def decode_delta(data: bytes) -> MapDelta:
    """Raises CorruptionError when the bytes are no delta."""
    try:
        return _DELTA.decode(data)
    except (msgspec.MsgspecError, ValueError) as error:
        raise CorruptionError(f"shard map delta cannot be decoded: {error}") from error
