"""When is a write done, and what does a read return: the outcome of one operation on one shard, from the replicas' answers.

Strict quorums over the shard's own replicas (Gifford, 1979), joint while the shard moves (see `model.shardmap`): any two
quorums share a replica of the old set and one of the new, so a strong read sees every acknowledged write. Strong reads write
back what a majority did not have before they answer (Attiya, Bar-Noy, Dolev, "Sharing memory robustly in message-passing
systems", 1995), so a value once seen is never unseen.

::

    write: answer of a replica       counts as
    acked                            durable there; one vote
    acked, outrun by a stamp         the write lost to an older acknowledged one with a younger stamp: RESTAMP
    stored                           durable there, no vote: the replica lost its disk and is still fetching its rows
    refused                          certainly not applied (not sent, overloaded, disk full)
    outdated                         certainly not applied, and the map has moved on: REFRESH
    unknown                          perhaps applied (time-out, connection lost)

    PENDING -> SUCCESS | RESTAMP | REFRESH | FAILED (nobody has it) | AMBIGUOUS (somebody may have it)

Invariants: a decision is final; a hint is never a vote; SUCCESS at level quorum means durable on a majority of every quorum
set; FAILED means that no replica has or will get the write from this operation.

Duties of the caller: send to all of ``state.write_set`` (``read_set`` or everybody for strong reads) with the shard version;
report every answer, and the end of waiting with `deadline`; on RESTAMP observe ``outrun_by``, stamp anew and start over; on
REFRESH fetch the newer map and start over; after FAILED or AMBIGUOUS start over while there is time, always *with the same
stamp*: a new one would let the write take effect a second time, over somebody else's that came between. Whoever starts over
remembers whether the write was `possible`: FAILED speaks of its own round only. Bound all of it (a handful of rounds, the
request's deadline); when a write has succeeded give a hint to each of `hints_due`. A replica shows a strong read only what is
durable. Called by ``cluster.replicator`` and ``cluster.router``.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable

from dakera_cluster.model.hlc import Stamp
from dakera_cluster.model.ids import NodeId
from dakera_cluster.model.rows import merge
from dakera_cluster.model.shardmap import ShardState


class WriteLevel(enum.StrEnum):
    ONE = "one"
    QUORUM = "quorum"
    ALL = "all"


class ReadLevel(enum.StrEnum):
    EVENTUAL = "eventual"
    BOUNDED_STALENESS = "bounded_staleness"
    STRONG = "strong"


class WriteDecision(enum.Enum):
    PENDING = "pending"
    SUCCESS = "success"
    RESTAMP = "restamp"
    REFRESH = "refresh"
    FAILED = "failed"
    AMBIGUOUS = "ambiguous"


class ReadDecision(enum.Enum):
    PENDING = "pending"
    WRITE_BACK = "write_back"
    """The answer is known, but too few replicas hold it: send ``merged`` to `lagging`, report each with `repaired`."""
    SUCCESS = "success"
    REFRESH = "refresh"
    FAILED = "failed"


class WriteOperation:
    """One write to one shard."""

    __slots__ = ("_acked", "_decision", "_level", "_lost", "_open", "_possible", "_state", "outrun_by")

    def __init__(self, state: ShardState, level: WriteLevel = WriteLevel.QUORUM) -> None:
        self._state = state
        self._level = level
        self._open = set(state.write_set)
        self._acked: set[NodeId] = set()
        self._lost: set[NodeId] = set()
        self._possible: set[NodeId] = set()
        self._decision = WriteDecision.PENDING
        self.outrun_by: Stamp | None = None
        """With RESTAMP: the youngest stamp that made the write lose."""

    @property
    def decision(self) -> WriteDecision:
        return self._decision

    @property
    def acked(self) -> frozenset[NodeId]:
        return frozenset(self._acked)

    @property
    def possible(self) -> bool:
        """Some replica has the rows or may still get them; those that have not answered count."""
        return bool(self._possible or self._open)

    def ack(self, node: NodeId, outrun_by: Stamp | None = None) -> WriteDecision:
        """``node`` has the rows on disk. ``outrun_by``: see ``rows.outrun_by``."""
        if not self._close(node):
            return self._decision
        self._possible.add(node)
        if self._decision is WriteDecision.PENDING and outrun_by is not None:
            self.outrun_by = outrun_by
            self._decision = WriteDecision.RESTAMP
        self._acked.add(node)
        return self._judge()

    def stored(self, node: NodeId) -> WriteDecision:
        """``node`` has the rows on disk, but has no vote yet."""
        if self._close(node):
            self._possible.add(node)
        return self._judge()

    def refused(self, node: NodeId) -> WriteDecision:
        """``node`` certainly did not and will not apply the write."""
        if self._close(node):
            self._lost.add(node)
        return self._judge()

    def outdated(self, node: NodeId) -> WriteDecision:
        """``node`` knows a newer version of the shard and did not apply the write."""
        if self._close(node):
            self._lost.add(node)
            if self._decision is WriteDecision.PENDING:
                self._decision = WriteDecision.REFRESH
        return self._decision

    def unknown(self, node: NodeId) -> WriteDecision:
        """``node`` may have applied the write, or may do so later."""
        if self._close(node):
            self._lost.add(node)
            self._possible.add(node)
        return self._judge()

    def deadline(self) -> WriteDecision:
        """The caller waits no longer: whoever has not answered may still apply the write."""
        for node in tuple(self._open):
            self.unknown(node)
        return self._judge()

    def hints_due(self) -> tuple[NodeId, ...]:
        """Replicas that are not known to hold the write: those still silent included, so ask when the waiting is over."""
        held = self._possible - self._lost
        return tuple(node for node in self._state.write_set if node not in held)

    def _close(self, node: NodeId) -> bool:
        if node not in self._open:
            return False
        self._open.remove(node)
        return True

    def _judge(self) -> WriteDecision:
        if self._decision is not WriteDecision.PENDING:
            return self._decision
        if self._satisfied(self._acked):
            self._decision = WriteDecision.SUCCESS
        elif not self._satisfied(self._acked | self._open):
            sure = not self._possible and not self._open
            self._decision = WriteDecision.FAILED if sure else WriteDecision.AMBIGUOUS
        return self._decision

    def _satisfied(self, nodes: set[NodeId]) -> bool:
        match self._level:
            case WriteLevel.ONE:
                return any(node in nodes for node in self._state.old_set)
            case WriteLevel.QUORUM:
                return self._state.has_quorum(nodes)
            case WriteLevel.ALL:
                return nodes.issuperset(self._state.write_set)


class ReadOperation:
    """One read of one row. A strong read asks ``state.write_set``, the others ask ``state.read_set``, one after the other or
    hedged as the caller likes."""

    __slots__ = (
        "_answers",
        "_decision",
        "_holders",
        "_kind",
        "_level",
        "_max_staleness_ms",
        "_open",
        "_state",
        "merged",
    )

    def __init__(
        self,
        state: ShardState,
        kind: int,
        level: ReadLevel = ReadLevel.EVENTUAL,
        *,
        max_staleness_ms: float = 5_000,
    ) -> None:
        self._state = state
        self._kind = kind
        self._level = level
        self._max_staleness_ms = max_staleness_ms
        self._open = set(state.write_set if level is ReadLevel.STRONG else state.read_set)
        self._answers: dict[NodeId, bytes | None] = {}
        self._holders: set[NodeId] = set()
        self._decision = ReadDecision.PENDING
        self.merged: bytes | None = None
        """The body so far known: the merge of all answers. None when nobody has the row."""

    @property
    def decision(self) -> ReadDecision:
        return self._decision

    def answer(self, node: NodeId, body: bytes | None, *, staleness_ms: float = float("inf")) -> ReadDecision:
        """``node`` holds ``body``. ``staleness_ms``: for how long it may have missed writes; infinite when it cannot tell."""
        if node not in self._open:
            return self._decision
        self._open.remove(node)
        self._answers[node] = body
        if body is not None:
            before, self.merged = self.merged, merge(self._kind, self.merged, body)
            if self.merged != before:
                self._holders.clear()
        if self._decision is ReadDecision.PENDING and self._suffices_alone(body, staleness_ms):
            self._decision = ReadDecision.SUCCESS
        return self._judge()

    def failed(self, node: NodeId) -> ReadDecision:
        """No answer will come from ``node``: unreachable, timed out, overloaded, or still fetching its own rows."""
        self._open.discard(node)
        return self._judge()

    def outdated(self, node: NodeId) -> ReadDecision:
        """``node`` knows a newer version of the shard."""
        self._open.discard(node)
        if self._decision in (ReadDecision.PENDING, ReadDecision.WRITE_BACK):
            self._decision = ReadDecision.REFRESH
        return self._decision

    def repaired(self, node: NodeId, body: bytes) -> ReadDecision:
        """``node`` has ``body`` on disk now: what ``merged`` was when it was sent; a later answer may have changed that."""
        if body == self.merged:
            self._holders.add(node)
        return self._judge()

    def repair_failed(self, node: NodeId) -> ReadDecision:
        self._answers.pop(node, None)
        return self._judge()

    def deadline(self) -> ReadDecision:
        for node in tuple(self._open):
            self.failed(node)
        if self._decision in (ReadDecision.PENDING, ReadDecision.WRITE_BACK):
            self._decision = ReadDecision.FAILED
        return self._decision

    def lagging(self) -> tuple[NodeId, ...]:
        """Replicas that answered and do not hold ``merged``: write back to them, before the answer when the decision says so,
        behind it otherwise."""
        return tuple(node for node, body in self._answers.items() if body != self.merged and node not in self._holders)

    def _suffices_alone(self, body: bytes | None, staleness_ms: float) -> bool:
        match self._level:
            case ReadLevel.EVENTUAL:
                return body is not None
            case ReadLevel.BOUNDED_STALENESS:
                return staleness_ms <= self._max_staleness_ms
            case ReadLevel.STRONG:
                return False

    def _judge(self) -> ReadDecision:
        if self._decision not in (ReadDecision.PENDING, ReadDecision.WRITE_BACK):
            return self._decision
        if self._level is ReadLevel.EVENTUAL:
            # A miss is believed only when nobody is left to ask.
            if not self._open:
                self._decision = ReadDecision.SUCCESS if self._answers else ReadDecision.FAILED
            return self._decision
        if self._state.has_quorum(self._answers):
            agreeing = {node for node, body in self._answers.items() if body == self.merged} | self._holders
            bounded = self._level is ReadLevel.BOUNDED_STALENESS
            done = bounded or self._state.has_quorum(agreeing)
            self._decision = ReadDecision.SUCCESS if done else ReadDecision.WRITE_BACK
        elif not self._state.has_quorum(self._reachable()):
            self._decision = ReadDecision.FAILED
        return self._decision

    def _reachable(self) -> Iterable[NodeId]:
        return self._open | self._answers.keys()
