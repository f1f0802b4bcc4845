"""When a tombstone may be forgotten, so that no deleted memory comes back.

A tombstone outlives its row because some replica, hint, message or old disk may still hold the row alive. "Everybody
repaired since" is a poor test of that: a tombstone can reach a replica by repair long after its stamp, and then look older
than the last session with a neighbour that never heard of it. So nothing is inferred; everybody is asked (the aim of
Cassandra's gc_grace with only-purge-repaired, made exact):

1. **Confirm.** The initiator picks dead rows older than the grace and sends them to *every* current replica, joining and
   leaving ones included, which merge them, make them durable and answer which they now hold with exactly these bytes. From
   then on no current replica has the row alive, and none can lose the tombstone other than by a collection.
2. **Quarantine.** For ``quarantine_ms`` nothing happens: repairs that read the row alive before step 1 arrive, or are
   refused for their age.
3. **Collect.** All drop the rows that still have these bytes.

Who else could bring the row back, and who stops it:

=============================================  ========================================================================
an old hint or a delayed write                 `write_is_fresh`: receivers refuse rows older than half the grace
a delayed repair                               `repair_is_fresh`: applied only within ``repair_lifetime_ms``
a replica that is away or fetches its rows     confirms nothing, so nothing is collected
a node that held the shard earlier             wipes before it joins again (`transfer`)
an old image of a current replica's disk       `must_wipe`: others have collected in a round it has not confirmed
=============================================  ========================================================================

Rounds are numbered per shard: a replica confirms only a round above every one it confirmed, and notes the number durably
with the tombstones; it notes the number of a collection durably before it drops anything. So however long a replica was
away, it knows from a peer's number, without any clock, whether something was forgotten that it may still hold.

States: IDLE -begin-> CONFIRMING -all confirmed-> QUARANTINE -time-> IDLE (collect); any refusal, time-out or change of the
shard's version -> IDLE (nothing happened). A round lives in memory only: after a restart a new one starts.

Duties of the caller: start rounds from one replica at a time (the first live one), and scan for ripe rows only when no round
is under way and the last one's collection is carried out here (or the next round brings back what the last one dropped);
answer each AskHold with `confirmed` or `failed`; as a receiver check the shard version with `shardmap.admit` on both
messages, refuse while fetching its own rows and below its confirmed round, and in step 3 drop only rows whose term is
unchanged; show the collected round in every repair session and judge it with `must_wipe`. Called by ``cluster.repair``.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping

import msgspec

from dakera_cluster.model.hlc import MAX_SKEW_MS, Stamp
from dakera_cluster.model.ids import NodeId
from dakera_cluster.model.rows import is_tombstone, version_of
from dakera_cluster.model.shardmap import ShardState


class TombstoneConfig(msgspec.Struct, frozen=True, kw_only=True):
    """The safety of collection is ``max_skew_ms`` and ``repair_lifetime_ms`` well inside the quarantine and the grace."""

    grace_ms: float = 10 * 86_400_000.0
    """Age of a tombstone before it may be collected (Cassandra: 10 days)."""
    repair_lifetime_ms: float = 300_000.0
    """Rows read by a repair are applied at most this long after the session began."""
    max_skew_ms: float = float(MAX_SKEW_MS)
    quarantine_ms: float = 600_000.0
    confirm_timeout_ms: float = 30_000.0
    batch_rows: int = 1_000

    def __post_init__(self) -> None:
        if self.quarantine_ms < self.repair_lifetime_ms + 2 * self.max_skew_ms:
            raise ValueError("quarantine_ms must outlast repair_lifetime_ms and twice the clock skew")
        if self.grace_ms < 2 * (self.quarantine_ms + 2 * self.max_skew_ms):
            raise ValueError("grace_ms must be at least twice the quarantine and the clock skew")

    @property
    def write_max_age_ms(self) -> float:
        """Oldest stamp a write or hint may carry. Also the bound for the hint log's ``max_age_ms``."""
        return self.grace_ms / 2


def is_ripe(kind: int, body: bytes, now_wall_ms: float, config: TombstoneConfig) -> bool:
    """Is this row dead, and for longer than the grace?"""
    return is_tombstone(kind, body) and version_of(kind, body).wall_ms + config.grace_ms <= now_wall_ms


def write_is_fresh(kind: int, body: bytes, now_wall_ms: float, config: TombstoneConfig) -> bool:
    """May a row from a coordinator (write, hint, usage) be applied? One that waited somewhere for half the grace may speak of
    a row whose tombstone is forgotten; its sender must have the replica repaired instead."""
    return stamp_is_fresh(version_of(kind, body), now_wall_ms, config)


def stamp_is_fresh(version: Stamp, now_wall_ms: float, config: TombstoneConfig) -> bool:
    """`write_is_fresh` of a row of that version; of several rows, the oldest decides."""
    return now_wall_ms - version.wall_ms < config.write_max_age_ms


def repair_is_fresh(session_started_wall_ms: float, now_wall_ms: float, config: TombstoneConfig) -> bool:
    """May a row that another replica read for repair (or for a read's write-back) be applied?"""
    return now_wall_ms - session_started_wall_ms < config.repair_lifetime_ms + config.max_skew_ms


def must_wipe(my_confirmed_round: int, peer_collected_round: int) -> bool:
    """A replica meets one that has collected tombstones in a round it never confirmed. Had it been a current replica with an
    intact disk all the time, that could not be; so it may hold rows that are dead without a trace. It wipes the shard and
    fetches it again (`transfer`)."""
    return peer_collected_round > my_confirmed_round


class GcState(enum.Enum):
    IDLE = "idle"
    CONFIRMING = "confirming"
    QUARANTINE = "quarantine"


class AskHold(msgspec.Struct, frozen=True):
    """Send the rows of ``keys`` to ``node`` under the shard's ``version``: merge, note ``round`` as confirmed, make both
    durable, answer which of the rows it holds with exactly our bytes."""

    node: NodeId
    version: int
    round: int
    keys: tuple[bytes, ...]


class CollectAt(msgspec.Struct, frozen=True):
    """Have ``node`` note ``round`` as collected, durably, and then drop those ``rows`` (key -> term) that are unchanged."""

    node: NodeId
    version: int
    round: int
    rows: dict[bytes, int]


Effect = AskHold | CollectAt


class Collector:
    """The initiator's rounds for one shard."""

    __slots__ = ("_config", "_deadline_ms", "_replicas", "_round", "_rows", "_state", "_version", "_waiting")

    def __init__(self, config: TombstoneConfig, confirmed_round: int = 0) -> None:
        self._config = config
        self._round = confirmed_round
        self._state = GcState.IDLE
        self._version = 0
        self._replicas: tuple[NodeId, ...] = ()
        self._waiting: set[NodeId] = set()
        self._rows: dict[bytes, int] = {}
        self._deadline_ms: float | None = None

    @property
    def state(self) -> GcState:
        return self._state

    def next_deadline_ms(self) -> float | None:
        return self._deadline_ms

    def begin(self, shard: ShardState, rows: Mapping[bytes, int], now_ms: float) -> list[Effect]:
        """Start a round over ``rows`` (key -> term) that this node found ripe. Ignored while a round is under way."""
        if self._state is not GcState.IDLE or not rows:
            return []
        keys = sorted(rows)[: self._config.batch_rows]
        self._rows = {key: rows[key] for key in keys}
        self._version = shard.version
        self._replicas = shard.write_set
        self._waiting = set(self._replicas)
        self._state = GcState.CONFIRMING
        self._deadline_ms = now_ms + self._config.confirm_timeout_ms
        self._round += 1
        # The initiator is asked like everybody else: its rows may have changed since the scan.
        return [AskHold(node, self._version, self._round, tuple(keys)) for node in self._replicas]

    def confirmed(self, node: NodeId, round_: int, held: Iterable[bytes], now_ms: float) -> list[Effect]:
        """``node`` holds the tombstones of ``held``, durably and with our bytes."""
        if self._state is not GcState.CONFIRMING or round_ != self._round or node not in self._waiting:
            return []
        self._waiting.remove(node)
        agreed = set(held)
        self._rows = {key: term for key, term in self._rows.items() if key in agreed}
        if not self._rows:
            self._reset()
        elif not self._waiting:
            self._state = GcState.QUARANTINE
            self._deadline_ms = now_ms + self._config.quarantine_ms
        return []

    def failed(self, node: NodeId, round_: int, *, known_round: int = 0) -> list[Effect]:
        """``node`` did not confirm: it is away, has another map, or is fetching its own rows. ``known_round``: the round it
        has confirmed already, when that is why."""
        if self._state is GcState.CONFIRMING and round_ == self._round and node in self._waiting:
            self._reset()
        self._round = max(self._round, known_round)
        return []

    def map_changed(self, shard: ShardState) -> list[Effect]:
        """The shard has other replicas now; what the old ones confirmed says nothing about the new."""
        if self._state is not GcState.IDLE and shard.version != self._version:
            self._reset()
        return []

    def tick(self, now_ms: float) -> list[Effect]:
        if self._deadline_ms is None or now_ms < self._deadline_ms:
            return []
        out: list[Effect] = []
        if self._state is GcState.QUARANTINE:
            out += [CollectAt(node, self._version, self._round, dict(self._rows)) for node in self._replicas]
        self._reset()
        return out

    def _reset(self) -> None:
        self._state = GcState.IDLE
        self._rows = {}
        self._waiting = set()
        self._deadline_ms = None
