"""Hinted handoff: which writes a replica missed, kept by the coordinator until they can be delivered.

Invariants: a hint is durable before it exists for delivery; hints are bounded by age and by bytes, per target and in all;
whatever falls out of the bounds leaves a mark (target, shard) "needs a full repair" that is just as durable. So for every
write that a replica missed there is a hint, a mark, or the periodic repair that finds it anyway: hints are speed, never
truth, and never votes.

Hints must die well before tombstones may be collected (``max_age_ms`` below the grace, see `tombstones`): an old put that is
delivered after its delete was forgotten would bring the dead back. The receiver checks that again with its own clock.

Duties of the caller: carry out effects in order, Store with the next group commit (the write's answer need not wait for it: a
hint lost in a crash is found by the periodic repair); answer every Deliver with `delivered`, `rejected` or `delivery_failed`;
call `peer_up` and `peer_down` as membership tells; feed `tick` when `next_deadline_ms` has come; at boot `recover` what the
disk holds; have a marked replica repaired in full, and only a session that began after the mark counts for `repaired`. Called
by ``cluster.replicator`` and ``cluster.repair``.
"""

from __future__ import annotations

import enum
from collections import OrderedDict
from collections.abc import Iterable

import msgspec

from dakera_cluster.model.ids import NodeId, ShardId


class HintsConfig(msgspec.Struct, frozen=True, kw_only=True):
    max_age_ms: float = 3 * 3_600_000.0
    """Cassandra's hint window; a replica away for longer is repaired in full."""
    target_max_bytes: int = 64 << 20
    total_max_bytes: int = 512 << 20
    batch_rows: int = 128
    retry_ms: float = 500.0
    retry_max_ms: float = 30_000.0


class Hint(msgspec.Struct, frozen=True, array_like=True):
    """Bookkeeping of one stored hint; the rows are with the caller, under ``seq``."""

    seq: int
    target: NodeId
    shard: ShardId
    size_bytes: int
    created_ms: float
    """Milliseconds of the wall clock, because hints outlive the process."""


class Store(msgspec.Struct, frozen=True):
    """Make the rows durable under ``hint.seq``."""

    hint: Hint


class Discard(msgspec.Struct, frozen=True):
    """Forget the rows of these hints."""

    seqs: tuple[int, ...]


class NeedRepair(msgspec.Struct, frozen=True):
    """Make durable that ``target`` may lack rows of ``shard`` and no hint tells which: have it repaired in full."""

    target: NodeId
    shard: ShardId


class Repaired(msgspec.Struct, frozen=True):
    """The mark (target, shard) may be erased."""

    target: NodeId
    shard: ShardId


class Deliver(msgspec.Struct, frozen=True):
    """Send the rows of these hints to ``target``."""

    target: NodeId
    seqs: tuple[int, ...]


Effect = Store | Discard | NeedRepair | Repaired | Deliver


class Verdict(enum.Enum):
    """Why a target does not take a hint."""

    NOT_HELD = "not_held"
    """It is no replica of the shard any more: others have the row."""
    TOO_OLD = "too_old"
    """By its clock the row could be older than a collected tombstone: only a full repair can tell."""


class _Queue:
    __slots__ = ("bytes", "hints", "in_flight", "retry_ms", "up", "wake_ms")

    def __init__(self) -> None:
        self.hints: OrderedDict[int, Hint] = OrderedDict()
        self.bytes = 0
        self.up = False
        self.in_flight = False
        self.retry_ms = 0.0
        self.wake_ms: float | None = None


class HintLog:
    """Bookkeeping of all hints of one coordinator."""

    def __init__(self, config: HintsConfig) -> None:
        self._config = config
        self._queues: dict[NodeId, _Queue] = {}
        self._marks: set[tuple[NodeId, ShardId]] = set()
        self._next_seq = 1
        self._total_bytes = 0

    @property
    def total_bytes(self) -> int:
        return self._total_bytes

    @property
    def marks(self) -> frozenset[tuple[NodeId, ShardId]]:
        """Replicas that need a full repair."""
        return frozenset(self._marks)

    def waiting(self, target: NodeId) -> int:
        """Hints kept for ``target``."""
        queue = self._queues.get(target)
        return len(queue.hints) if queue else 0

    def next_deadline_ms(self) -> float | None:
        deadlines = []
        for queue in self._queues.values():
            if queue.wake_ms is not None:
                deadlines.append(queue.wake_ms)
            if queue.hints and not queue.in_flight:
                oldest = next(iter(queue.hints.values()))
                deadlines.append(oldest.created_ms + self._config.max_age_ms)
        return min(deadlines, default=None)

    def recover(self, hints: Iterable[Hint], marks: Iterable[tuple[NodeId, ShardId]]) -> None:
        """Take over what the disk holds after a restart. All targets count as down until told otherwise."""
        for hint in sorted(hints, key=lambda hint: hint.seq):
            self._keep(hint)
        self._marks.update(marks)

    def add(self, target: NodeId, shard: ShardId, size_bytes: int, now_ms: float) -> list[Effect]:
        """``target`` missed a write of ``size_bytes`` to ``shard``."""
        queue = self._queue(target)
        full = (
            queue.bytes + size_bytes > self._config.target_max_bytes
            or self._total_bytes + size_bytes > self._config.total_max_bytes
        )
        if (target, shard) in self._marks:
            # A full repair is due anyway, and will find this write as well.
            return []
        if full:
            return self._mark(target, shard)
        hint = Hint(self._next_seq, target, shard, size_bytes, now_ms)
        self._keep(hint)
        out: list[Effect] = [Store(hint)]
        self._deliver(target, queue, now_ms, out)
        return out

    def peer_up(self, target: NodeId, now_ms: float) -> list[Effect]:
        queue = self._queue(target)
        queue.up, queue.retry_ms = True, 0.0
        out: list[Effect] = []
        self._deliver(target, queue, now_ms, out)
        return out

    def peer_down(self, target: NodeId) -> None:
        queue = self._queue(target)
        queue.up, queue.wake_ms = False, None

    def delivered(self, target: NodeId, seqs: Iterable[int], now_ms: float) -> list[Effect]:
        """``target`` has the rows of ``seqs`` on disk."""
        queue = self._queue(target)
        queue.in_flight, queue.retry_ms = False, 0.0
        out = self._discard(queue, seqs)
        self._deliver(target, queue, now_ms, out)
        return out

    def rejected(self, target: NodeId, seqs: Iterable[int], verdict: Verdict, now_ms: float) -> list[Effect]:
        """``target`` will never take these hints."""
        queue = self._queue(target)
        queue.in_flight = False
        seqs = tuple(seqs)
        out: list[Effect] = []
        if verdict is Verdict.TOO_OLD:
            for shard in sorted({queue.hints[seq].shard for seq in seqs if seq in queue.hints}):
                out += self._mark(target, shard)
        out += self._discard(queue, seqs)
        self._deliver(target, queue, now_ms, out)
        return out

    def delivery_failed(self, target: NodeId, now_ms: float) -> list[Effect]:
        """No answer from ``target``: try again later, ever more rarely."""
        queue = self._queue(target)
        queue.in_flight = False
        queue.retry_ms = min(max(self._config.retry_ms, queue.retry_ms * 2), self._config.retry_max_ms)
        queue.wake_ms = now_ms + queue.retry_ms if queue.up else None
        return []

    def repaired(self, target: NodeId, shard: ShardId) -> list[Effect]:
        """A full repair of ``shard`` at ``target``, begun after the mark was made, has ended."""
        if (target, shard) not in self._marks:
            return []
        self._marks.remove((target, shard))
        return [Repaired(target, shard)]

    def forget(self, target: NodeId) -> list[Effect]:
        """``target`` is no member any more: nothing is owed to it."""
        queue = self._queues.pop(target, None)
        out: list[Effect] = []
        if queue is not None and queue.hints:
            self._total_bytes -= queue.bytes
            out.append(Discard(tuple(queue.hints)))
        for mark in sorted(mark for mark in self._marks if mark[0] == target):
            self._marks.remove(mark)
            out.append(Repaired(*mark))
        return out

    def tick(self, now_ms: float) -> list[Effect]:
        """Expire and retry."""
        out: list[Effect] = []
        for target, queue in self._queues.items():
            if not queue.in_flight:
                out += self._expire(target, queue, now_ms)
            if queue.wake_ms is not None and now_ms >= queue.wake_ms:
                self._deliver(target, queue, now_ms, out)
        return out

    def _queue(self, target: NodeId) -> _Queue:
        return self._queues.setdefault(target, _Queue())

    def _keep(self, hint: Hint) -> None:
        queue = self._queue(hint.target)
        queue.hints[hint.seq] = hint
        queue.bytes += hint.size_bytes
        self._total_bytes += hint.size_bytes
        self._next_seq = max(self._next_seq, hint.seq + 1)

    def _discard(self, queue: _Queue, seqs: Iterable[int]) -> list[Effect]:
        gone = [queue.hints.pop(seq) for seq in seqs if seq in queue.hints]
        freed = sum(hint.size_bytes for hint in gone)
        queue.bytes -= freed
        self._total_bytes -= freed
        return [Discard(tuple(hint.seq for hint in gone))] if gone else []

    def _mark(self, target: NodeId, shard: ShardId) -> list[Effect]:
        if (target, shard) in self._marks:
            return []
        self._marks.add((target, shard))
        return [NeedRepair(target, shard)]

    def _expire(self, target: NodeId, queue: _Queue, now_ms: float) -> list[Effect]:
        expired: list[Hint] = []
        for hint in queue.hints.values():
            if now_ms - hint.created_ms < self._config.max_age_ms:
                break
            expired.append(hint)
        out: list[Effect] = []
        for shard in sorted({hint.shard for hint in expired}):
            out += self._mark(target, shard)
        # The mark first: a crash between the two may leave both, never neither.
        return out + self._discard(queue, [hint.seq for hint in expired])

    def _deliver(self, target: NodeId, queue: _Queue, now_ms: float, out: list[Effect]) -> None:
        if not queue.up or queue.in_flight or (queue.wake_ms is not None and now_ms < queue.wake_ms):
            return
        queue.wake_ms = None
        out += self._expire(target, queue, now_ms)
        seqs = tuple(seq for seq, _ in zip(queue.hints, range(self._config.batch_rows), strict=False))
        if seqs:
            queue.in_flight = True
            out.append(Deliver(target, seqs))
