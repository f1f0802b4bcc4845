"""How a node comes to hold a shard: joining it, getting it back after its disk was lost, or proving that it has everything.

::

    JOIN       a new replica, from the moment the joint map is durable here:
               WIPING -> STREAMING (snapshot, resumable) -> REPAIRING -> READY (leader finalises)
    REHYDRATE  a replica whose rows are lost or may be too old (`tombstones.must_wipe`); same steps. Until READY its acks are
               no votes and it answers no reads
    CONFIRM    a shard only loses replicas: those that stay check that they have what the leaving ones have;
               REPAIRING -> READY, while it goes on serving

    a source failed -> the next one, after a pause        map changed -> CANCELLED (`duty` tells what to do under the new map)

Invariant: READY means that every write acknowledged by a quorum is here, or will be. The argument: from the moment the joint
map is durable at a replica it refuses requests under older versions, and everything acknowledged under the joint map is on a
majority of the new set anyway. So a write this node does not hear of was acknowledged under an older version, by a majority
of the old set, each before it adopted the joint map. A repair session counts only when its source knew our shard version
*before the session began*, and the sources must meet every such majority (`repairs_needed`); one of them therefore had the
write when its session began. All rows are durable here before READY is reported. A source with a *newer* version does not
count either: a node that lost its disk has forgotten what it promised to refuse, and must first learn the newest version
that a majority can know.

Duties of the caller: adopt and persist the shard's map entry before starting; apply every write it is sent, but refuse writes
in stage WIPING, which would delete them; make the rows of a chunk durable before reporting it; carry out effects in order and
answer each once; report a session with the shard version the source answered at its beginning, and only from a source that
serves reads itself; fetch the newer map a source tells of; keep the last Persist record and start again with it after a
crash; tell the leader of ReportReady, as often as it comes. Called by ``cluster.mover``.
"""

from __future__ import annotations

import enum

import msgspec

from dakera_cluster.model.ids import NodeId, ShardId
from dakera_cluster.model.shardmap import ReplicaState, ShardState, majority

BIRTH_VERSION = 1
"""Version of every shard in the first map of a cluster: replicas named there start empty and complete."""


class TransferConfig(msgspec.Struct, frozen=True, kw_only=True):
    retry_ms: float = 1_000.0
    """Pause after a source failed."""
    report_ms: float = 2_000.0
    """READY is told again this often until the map changes: the leader may be a new one."""


class Mode(enum.IntEnum):
    """On disk: append, never renumber."""

    JOIN = 1
    REHYDRATE = 2
    CONFIRM = 3


class Stage(enum.IntEnum):
    """On disk: append, never renumber."""

    WIPING = 1
    STREAMING = 2
    REPAIRING = 3
    READY = 4
    CANCELLED = 5


class Holding(msgspec.Struct, frozen=True, array_like=True):
    """What a node durably knows of its own copy of a shard. ``version``: shard version under which it became what it is."""

    shard: ShardId
    version: int
    mode: Mode
    stage: Stage
    cursor: bytes = b""
    """Last key streamed."""

    @property
    def is_complete(self) -> bool:
        return self.stage is Stage.READY


class Duty(enum.Enum):
    """What a node has to do about a shard under the map it knows."""

    NOTHING = "nothing"
    DROP = "drop"
    """Delete rows and record: it holds the shard no more."""
    BIRTH = "birth"
    """Note the shard as complete: the cluster is new and so is the shard."""
    SERVE = "serve"
    JOIN = "join"
    REHYDRATE = "rehydrate"
    CONFIRM = "confirm"
    """Serve, and run a CONFIRM beside it."""


def duty(holding: Holding | None, state: ShardState, node: NodeId, *, same_disk: bool) -> Duty:
    """``same_disk``: does the map's member entry name this node's disk? A node that lost its disk has no holding either, and
    only this tells it from a newborn one."""
    match state.state_of(node):
        case ReplicaState.ABSENT:
            return Duty.NOTHING if holding is None else Duty.DROP
        case ReplicaState.JOINING:
            return Duty.JOIN
        case ReplicaState.ACTIVE | ReplicaState.LEAVING as role:
            if holding is None:
                return Duty.BIRTH if same_disk and state.version == BIRTH_VERSION else Duty.REHYDRATE
            if not holding.is_complete:
                return Duty.REHYDRATE
            shrinking = state.is_joint and not state.joining and role is ReplicaState.ACTIVE
            return Duty.CONFIRM if shrinking else Duty.SERVE


def votes(holding: Holding | None, state: ShardState, node: NodeId) -> bool:
    """May this node's acks count? A joining node's may (its vote is one of the new set); one that lost its rows has none."""
    match state.state_of(node):
        case ReplicaState.ABSENT:
            return False
        case ReplicaState.JOINING:
            joined = holding is not None and (holding.mode, holding.version) == (Mode.JOIN, state.version)
            return joined and holding is not None and holding.stage is not Stage.WIPING
        case ReplicaState.ACTIVE | ReplicaState.LEAVING:
            return holding is not None and holding.is_complete


def serves(holding: Holding | None, state: ShardState, node: NodeId) -> bool:
    """May this node answer reads and be a source of repair? Only with all its rows."""
    return state.state_of(node).serves_reads and holding is not None and holding.is_complete


def reporters(state: ShardState) -> tuple[NodeId, ...]:
    """Who must report READY before the leader may finalise a joint shard."""
    if state.joining:
        return state.joining
    return tuple(node for node in state.replicas if node not in state.leaving) if state.leaving else ()


def repairs_needed(mode: Mode, state: ShardState, node: NodeId) -> int:
    """How many sources make sure that every majority of the old set is met. Our own rows count for CONFIRM; after REHYDRATE
    writes that we acked are missing here, so every majority must be met by *another* of its members."""
    size = len(state.old_set)
    match mode:
        case Mode.JOIN:
            return majority(size)
        case Mode.CONFIRM:
            return majority(size) - 1
        case Mode.REHYDRATE:
            return min(size - majority(size) + 1, size - 1)


class SnapshotChunk(msgspec.Struct, frozen=True):
    """Rows up to ``cursor`` are durable here; None: that was the last chunk."""

    source: NodeId
    cursor: bytes | None


class RepairDone(msgspec.Struct, frozen=True):
    """A session ended well. ``version``: the shard version the source knew when it began."""

    source: NodeId
    version: int


class SourceFailed(msgspec.Struct, frozen=True):
    """The source did not answer, refused, or does not serve itself."""

    source: NodeId


class Wiped(msgspec.Struct, frozen=True):
    """The shard's old rows are gone."""


class MapChanged(msgspec.Struct, frozen=True):
    """Another version of the shard was adopted."""

    state: ShardState


class Tick(msgspec.Struct, frozen=True):
    """Time has passed."""


class AcceptLoss(msgspec.Struct, frozen=True):
    """An operator's word: the missing sources will never come back; serve what there is."""


Event = SnapshotChunk | RepairDone | SourceFailed | Wiped | MapChanged | Tick | AcceptLoss


class Wipe(msgspec.Struct, frozen=True):
    """Delete all rows of the shard, durably, then report Wiped."""

    shard: ShardId


class Persist(msgspec.Struct, frozen=True):
    """Make the record durable before anything that follows."""

    holding: Holding


class FetchSnapshot(msgspec.Struct, frozen=True):
    """Get the rows after ``cursor`` from ``source``, in key order."""

    shard: ShardId
    source: NodeId
    cursor: bytes


class Repair(msgspec.Struct, frozen=True):
    """Run a `reconcile` session with ``source`` under shard ``version``."""

    shard: ShardId
    source: NodeId
    version: int


class ReportReady(msgspec.Struct, frozen=True):
    shard: ShardId
    version: int


Effect = Wipe | Persist | FetchSnapshot | Repair | ReportReady


class Transfer:
    """One node's way to one shard under one version of it."""

    def __init__(
        self,
        shard: ShardId,
        state: ShardState,
        node: NodeId,
        mode: Mode,
        *,
        config: TransferConfig,
        holding: Holding | None = None,
    ) -> None:
        self._shard = shard
        self._state = state
        self._node = node
        self._mode = mode
        self._config = config
        self._sources = [source for source in state.old_set if source != node]
        self._turn = 0
        self._repaired: set[NodeId] = set()
        self._busy = False
        self._due_ms = 0.0
        self._cursor = b""
        self._stage = Stage.REPAIRING if mode is Mode.CONFIRM else Stage.WIPING
        if holding is not None and self._is_resumable(holding):
            self._stage, self._cursor = holding.stage, holding.cursor

    @property
    def stage(self) -> Stage:
        return self._stage

    @property
    def mode(self) -> Mode:
        return self._mode

    @property
    def version(self) -> int:
        return self._state.version

    def next_deadline_ms(self) -> float | None:
        return None if self._stage is Stage.CANCELLED or self._busy else self._due_ms

    def start(self, now_ms: float) -> list[Effect]:
        out: list[Effect] = []
        if self._stage is Stage.WIPING:
            self._busy = True
            # The record first: should we crash during the wipe, nobody must mistake what is left for a complete copy.
            return [self._record(), Wipe(self._shard)]
        self._advance(now_ms, out)
        return out

    def handle(self, event: Event, now_ms: float) -> list[Effect]:
        """Every event in every stage; what the stage does not wait for is ignored."""
        out: list[Effect] = []
        match event, self._stage:
            case _, Stage.CANCELLED:
                pass
            case MapChanged(state), _:
                if state.version != self._state.version:
                    self._stage = Stage.CANCELLED
            case Wiped(), Stage.WIPING:
                self._enter(Stage.STREAMING if self._sources else Stage.REPAIRING, now_ms, out)
            case SnapshotChunk(_, cursor), Stage.STREAMING:
                if cursor is None:
                    self._enter(Stage.REPAIRING, now_ms, out)
                else:
                    self._cursor = cursor
                    out.append(self._record())
                    self._busy = False
                    self._advance(now_ms, out)
            case RepairDone(source, version), Stage.REPAIRING:
                self._busy = False
                if version == self._state.version and source in self._sources:
                    self._repaired.add(source)
                    self._advance(now_ms, out)
                else:
                    self._try_next(now_ms)
            case SourceFailed(), Stage.STREAMING | Stage.REPAIRING:
                self._busy = False
                self._try_next(now_ms)
            case AcceptLoss(), Stage.STREAMING | Stage.REPAIRING:
                self._enter(Stage.READY, now_ms, out)
            case Tick(), Stage.STREAMING | Stage.REPAIRING | Stage.READY:
                if not self._busy and now_ms >= self._due_ms:
                    self._advance(now_ms, out)
            case _:
                pass
        return out

    def _is_resumable(self, holding: Holding) -> bool:
        """A JOIN goes on only under the version it began: between two versions the node may have missed deletes. A REHYDRATE
        goes on under any: as a replica it was sent every write all the time."""
        if holding.mode is not self._mode:
            return False
        return self._mode is Mode.REHYDRATE or (self._mode is Mode.JOIN and holding.version == self._state.version)

    def _record(self) -> Persist:
        return Persist(Holding(self._shard, self._state.version, self._mode, self._stage, self._cursor))

    def _enter(self, stage: Stage, now_ms: float, out: list[Effect]) -> None:
        self._stage = stage
        self._busy = False
        if self._mode is not Mode.CONFIRM:
            # A CONFIRM leaves the record alone: the replica is complete as it is.
            out.append(self._record())
        self._advance(now_ms, out)

    def _advance(self, now_ms: float, out: list[Effect]) -> None:
        """Start what the stage needs next."""
        match self._stage:
            case Stage.STREAMING:
                self._busy = True
                out.append(FetchSnapshot(self._shard, self._sources[self._turn % len(self._sources)], self._cursor))
            case Stage.REPAIRING:
                if len(self._repaired) >= repairs_needed(self._mode, self._state, self._node):
                    self._enter(Stage.READY, now_ms, out)
                    return
                waiting = [source for source in self._sources if source not in self._repaired]
                self._busy = True
                out.append(Repair(self._shard, waiting[self._turn % len(waiting)], self._state.version))
            case Stage.READY:
                self._due_ms = now_ms + self._config.report_ms
                out.append(ReportReady(self._shard, self._state.version))
            case Stage.WIPING | Stage.CANCELLED:
                pass

    def _try_next(self, now_ms: float) -> None:
        self._turn += 1
        self._due_ms = now_ms + self._config.retry_ms
