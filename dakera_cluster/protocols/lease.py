"""The leader's lease: who may act as leader, decided by compare-and-swap on one object of the bucket.

Theory of operation (Gray and Cheriton, "Leases", 1989; fencing after Kleppmann, 2016). The object names a holder, an epoch
and a nonce that is new with every write. The holder renews it well before ``ttl_ms`` is over, and counts its own validity
from *before* the write was sent, less a stasis window. A challenger never trusts a time it reads: it takes over only after
*it* has seen the object unchanged for ttl x 1.1 + jitter on *its own* clock, with If-Match on what it saw, and with a higher
epoch. So the old holder has stopped before a new one starts as long as clock rates differ by less than
``(takeover_factor * ttl) / (ttl - stasis)``; should that fail, or a process sleep between check and act, the epoch (`fence`)
still refuses the old one at every resource.

Invariants: every epoch has one holder and boot; epochs only grow; `can_act` is true only inside a validity that no challenger
can cut short. An unknown outcome is never guessed: the object is read again, and what carries our id, boot and a nonce we
wrote is ours, dated from the sending of exactly that nonce.

::

    state      Tick           ReadDone                PutDone  PutConflict PutRefused     PutMissing  PutUnknown
    FOLLOWING  read if due    follow; claim if free   -        -           -              -           -
    CLAIMING   resend if due  -                       win      back off    lost [1]       lost        settle
    SETTLING   read if due    win | claim | lost      -        -           -              -           -
    LEADING    renew if due   -                       -        -           -              -           -
    RENEWING   resend if due  -                       extend   back off    lost [1]       lost        doubt
    DOUBTING   read if due    extend | renew | lost   -        -           -              -           -
    RELEASING  -              -                       done     done        done           done        done
    STOPPED    -              -                       -        -           -              -           -

    [1] settled by a read when an earlier write of ours is still unaccounted for: the refusal may be its doing.
    EligibilityChanged, EpochSeen and Resign are heard in every state; see their docstrings.

Duties of the caller: run one operation of the effects at a time and answer each with exactly one event, after
``operation_timeout_ms`` at the latest with PutUnknown or ReadFailed; never let the object-store client retry a conditional
write by itself; feed Tick when `next_deadline_ms` has come; give ``now_ms`` of a clock that never goes back and runs on
while the machine sleeps; read the map object before the first EligibilityChanged(True), and report its epoch and every later
one with EpochSeen, or a deleted lease could start again at epoch 1; call `can_act` right before every act and send the epoch
along; after BecameLeader stamp the shard map with the epoch before anything else, and report ``EpochSeen(taken=True)`` when
another leader's map holds it already.
Called by ``cluster.leader``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from dakera_cluster.model.ids import BootId, NodeId
from dakera_cluster.protocols.lease_events import (
    NOBODY,
    BecameLeader,
    Effect,
    EligibilityChanged,
    EpochSeen,
    Event,
    ForeignCluster,
    HolderObserved,
    LeaseConfig,
    LeaseExtended,
    LeaseRecord,
    LeaseState,
    LossReason,
    LostLeadership,
    PutConflict,
    PutDone,
    PutLease,
    PutMissing,
    PutRefused,
    PutUnknown,
    ReadDone,
    ReadFailed,
    ReadLease,
    Resign,
    Stopped,
    Tick,
)

if TYPE_CHECKING:
    from random import Random

NONCES_REMEMBERED = 16
"""Writes of ours that may still surface; older ones are beyond any validity."""
LOST_SIGHT_POLLS = 2
"""After so many polls without an answer, a missing object may have been there and gone again."""
LOST_OBJECT_SKIP = 1_000
"""Epochs passed over when the object was deleted: its last epoch may lie above every one that any resource has seen."""

_RESULTS = (ReadDone, ReadFailed, PutDone, PutConflict, PutRefused, PutMissing, PutUnknown)
_LEADER_STATES = frozenset({LeaseState.LEADING, LeaseState.RENEWING, LeaseState.DOUBTING})


class Lease:
    """One node's part in the election. Owned by one task; not thread-safe."""

    def __init__(
        self, cluster_id: str, node: NodeId, boot: BootId, *, config: LeaseConfig, rng: Random, floor_epoch: int = 0
    ) -> None:
        self._cluster_id = cluster_id
        self._node = node
        self._boot = boot
        self._config = config
        self._rng = rng
        self._floor = floor_epoch
        self._taken_epoch = 0
        self._state = LeaseState.FOLLOWING
        self._eligible = False
        self._ineligible_since_ms: float | None = None
        self._stopping = False
        self._attempt = 0
        self._in_flight = False
        self._due_ms: float = 0.0
        self._seen: LeaseRecord | None = None
        self._seen_once = False
        self._last_read_ms = 0.0
        self._unchanged_since_ms: float = 0.0
        self._patience_ms: float = 0.0
        self._etag: str | None = None
        self._proposal: LeaseRecord | None = None
        self._doubtful = False
        self._sent_ms: dict[str, float] = {}
        self._held: LeaseRecord | None = None
        self._valid_until_ms: float = 0.0
        self._acting = False

    @property
    def state(self) -> LeaseState:
        return self._state

    @property
    def epoch(self) -> int | None:
        """Epoch of the lease this node holds or last held; None when it never did."""
        return self._held.epoch if self._held is not None else None

    @property
    def observed(self) -> LeaseRecord | None:
        """The object as last read or written."""
        return self._seen

    def can_act(self, now_ms: float) -> bool:
        """May this node act as the leader at this instant? Necessary, never sufficient: the epoch is checked at the
        resource too."""
        return self._acting and now_ms < self._valid_until_ms

    def next_deadline_ms(self) -> float | None:
        """When Tick is due; None when nothing waits for time."""
        if self._state is LeaseState.STOPPED:
            return None
        deadlines = [] if self._in_flight else [self._due_ms]
        if self._acting:
            deadlines.append(self._valid_until_ms)
        return min(deadlines, default=None)

    def handle(self, event: Event, now_ms: float) -> list[Effect]:
        """Every event, in every state, at any time. Results of abandoned operations are ignored."""
        out: list[Effect] = []
        if self._acting and now_ms >= self._valid_until_ms:
            self._lose(LossReason.EXPIRED, out)
        if isinstance(event, _RESULTS):
            if not self._in_flight or event.attempt != self._attempt:
                return out
            self._in_flight = False
        handler = TABLE.get((self._state, type(event)))
        if handler is not None:
            handler(self, event, now_ms, out)
        return out

    # -- reading and following

    def _read(self, now_ms: float, out: list[Effect]) -> None:
        self._begin()
        out.append(ReadLease(self._attempt))

    def _begin(self) -> None:
        self._attempt += 1
        self._in_flight = True

    def _read_if_due(self, _event: Event, now_ms: float, out: list[Effect]) -> None:
        if not self._in_flight and now_ms >= self._due_ms:
            self._read(now_ms, out)

    def _read_failed(self, _event: Event, now_ms: float, out: list[Effect]) -> None:
        if self._stopping:
            self._stop(out)
        self._due_ms = now_ms + self._config.retry_ms

    def _observe(self, record: LeaseRecord | None, etag: str | None, now_ms: float, out: list[Effect]) -> None:
        """Note what the object is; restarts the challenger's patience when it changed."""
        before = self._seen
        self._etag = etag
        lost_sight = now_ms - self._last_read_ms > LOST_SIGHT_POLLS * self._config.poll_ms
        self._last_read_ms = now_ms
        # A nonce tells that an object was not replaced meanwhile; that there is still none tells nothing of the kind.
        if self._seen_once and record == before and not (record is None and lost_sight):
            return
        self._seen, self._seen_once = record, True
        self._unchanged_since_ms = now_ms
        spread = self._rng.random() * self._config.takeover_jitter
        ttl_ms = record.ttl_ms if record is not None else self._config.ttl_ms
        self._patience_ms = ttl_ms * (self._config.takeover_factor + spread)
        if record is None:
            return
        if record.cluster_id != self._cluster_id:
            out.append(ForeignCluster(record.cluster_id))
            return
        self._floor = max(self._floor, record.epoch)
        if before is None or (before.holder, before.epoch) != (record.holder, record.epoch):
            out.append(HolderObserved(record))

    def _follow(self, event: Event, now_ms: float, out: list[Effect]) -> None:
        assert isinstance(event, ReadDone)
        self._observe(event.record, event.etag, now_ms, out)
        self._follow_observed(now_ms, out)

    def _follow_observed(self, now_ms: float, out: list[Effect]) -> None:
        self._state = LeaseState.FOLLOWING
        self._due_ms = now_ms + self._config.poll_ms
        record = self._seen
        if self._stopping:
            self._stop(out)
            return
        if not self._eligible or (record is not None and record.cluster_id != self._cluster_id):
            return
        if self._is_mine(record):
            # Expired in our own eyes, or a late write of ours surfaced: nobody took over, so the epoch is still ours.
            assert record is not None
            self._adopt(record, now_ms, out)
            return
        # A missing object may have been deleted under a holder that still acts: only a newborn cluster need not wait.
        free = record.is_released if record is not None else self._floor == 0
        ripe_ms = self._unchanged_since_ms + self._patience_ms
        if free or now_ms >= ripe_ms:
            self._claim(now_ms, out)
        else:
            self._due_ms = min(self._due_ms, ripe_ms)

    def _is_mine(self, record: LeaseRecord | None) -> bool:
        return record is not None and (record.holder, record.boot) == (self._node, self._boot)

    # -- writing

    def _put(self, record: LeaseRecord, now_ms: float, out: list[Effect]) -> None:
        self._proposal = record
        self._sent_ms[record.nonce] = now_ms
        while len(self._sent_ms) > NONCES_REMEMBERED:
            del self._sent_ms[next(iter(self._sent_ms))]
        self._begin()
        out.append(PutLease(self._attempt, record, self._etag))

    def _record(self, epoch: int, renew_seq: int, *, holder: NodeId | None = None) -> LeaseRecord:
        # A nonce of 128 random bits: no two writes of any two processes carry the same.
        nonce = f"{self._rng.getrandbits(128):032x}"
        owner = self._node if holder is None else holder
        return LeaseRecord(self._cluster_id, epoch, owner, self._boot, renew_seq, nonce, self._config.ttl_ms)

    def _claim(self, now_ms: float, out: list[Effect]) -> None:
        self._state = LeaseState.CLAIMING
        is_lost = self._seen is None and self._floor > 0
        epoch = self._floor + (LOST_OBJECT_SKIP if is_lost else 1)
        self._put(self._record(epoch, 0), now_ms, out)

    def _renew(self, now_ms: float, out: list[Effect]) -> None:
        assert self._held is not None
        self._state = LeaseState.RENEWING
        self._put(self._record(self._held.epoch, self._held.renew_seq + 1), now_ms, out)

    def _resend_if_due(self, _event: Event, now_ms: float, out: list[Effect]) -> None:
        """After a 409 the write goes again, as a new one: validity counts from its own sending."""
        if self._in_flight or now_ms < self._due_ms:
            return
        if self._state is LeaseState.RENEWING:
            self._renew(now_ms, out)
        elif self._eligible and not self._stopping:
            self._claim(now_ms, out)
        else:
            self._state = LeaseState.FOLLOWING
            self._read(now_ms, out)

    def _back_off(self, _event: Event, now_ms: float, out: list[Effect]) -> None:
        self._due_ms = now_ms + self._rng.random() * self._config.conflict_ms

    def _win(self, event: Event, now_ms: float, out: list[Effect]) -> None:
        assert isinstance(event, PutDone)
        assert self._proposal is not None
        # The store has decided between all our earlier writes on the same base: none of them can surface any more.
        self._doubtful = False
        self._observe(self._proposal, event.etag, now_ms, out)
        self._adopt(self._proposal, now_ms, out)

    def _adopt(self, record: LeaseRecord, now_ms: float, out: list[Effect]) -> None:
        """``record`` stands in the bucket and is ours: hold it for what its own sending leaves of the ttl."""
        sent_ms = self._sent_ms.get(record.nonce)
        changed = self._held is None or self._held.epoch != record.epoch
        if changed and self._acting:
            self._lose(LossReason.SUPERSEDED, out)
        self._held = record
        self._state = LeaseState.LEADING
        self._due_ms = now_ms if sent_ms is None else sent_ms + self._config.renew_ms
        if sent_ms is not None:
            self._valid_until_ms = sent_ms + record.ttl_ms - self._config.stasis_ms
        if record.epoch <= self._taken_epoch:
            self._superseded(now_ms, out)
            return
        if self._stopping:
            self._release(now_ms, out)
            return
        if sent_ms is not None and now_ms < self._valid_until_ms:
            effect = LeaseExtended if self._acting else BecameLeader
            self._acting = True
            out.append(effect(record.epoch, self._valid_until_ms))
        else:
            self._renew(now_ms, out)

    # -- outcomes that are no success

    def _refused(self, _event: Event, now_ms: float, out: list[Effect]) -> None:
        if self._doubtful:
            self._settle(now_ms, out)
            return
        self._lose(LossReason.TAKEN, out)
        self._state = LeaseState.FOLLOWING
        self._read(now_ms, out)

    def _missing(self, _event: Event, now_ms: float, out: list[Effect]) -> None:
        self._lose(LossReason.GONE, out)
        self._doubtful = False
        self._state = LeaseState.FOLLOWING
        self._read(now_ms, out)

    def _unknown(self, _event: Event, now_ms: float, out: list[Effect]) -> None:
        self._doubtful = True
        self._settle(now_ms, out)

    def _settle(self, now_ms: float, out: list[Effect]) -> None:
        leading = self._state in _LEADER_STATES
        self._state = LeaseState.DOUBTING if leading else LeaseState.SETTLING
        self._read(now_ms, out)

    def _settled(self, event: Event, now_ms: float, out: list[Effect]) -> None:
        assert isinstance(event, ReadDone)
        record, unchanged = event.record, event.record == self._seen
        if not unchanged:
            self._doubtful = False
        self._observe(record, event.etag, now_ms, out)
        if self._is_mine(record):
            assert record is not None
            if unchanged and self._held is not None and record.epoch == self._held.epoch and not self._stopping:
                # Not there yet; it may still come, so the answer to the next write may be its doing.
                self._renew(now_ms, out)
            else:
                self._adopt(record, now_ms, out)
            return
        if self._state is LeaseState.DOUBTING:
            self._lose(LossReason.TAKEN if record is not None else LossReason.GONE, out)
        self._follow_observed(now_ms, out)

    def _lose(self, reason: LossReason, out: list[Effect]) -> None:
        if self._acting:
            assert self._held is not None
            self._acting = False
            out.append(LostLeadership(self._held.epoch, reason))

    # -- time, and news from outside

    def _lead(self, _event: Event, now_ms: float, out: list[Effect]) -> None:
        if self._must_give_back(now_ms):
            self._release(now_ms, out)
        elif now_ms >= self._due_ms:
            self._renew(now_ms, out)

    def _must_give_back(self, now_ms: float) -> bool:
        since_ms = self._ineligible_since_ms
        return self._stopping or (since_ms is not None and now_ms - since_ms >= self._config.ineligible_ms)

    def _release(self, now_ms: float, out: list[Effect]) -> None:
        assert self._held is not None
        self._lose(LossReason.RESIGNED, out)
        self._state = LeaseState.RELEASING
        self._put(self._record(self._held.epoch, self._held.renew_seq + 1, holder=NOBODY), now_ms, out)

    def _released(self, _event: Event, now_ms: float, out: list[Effect]) -> None:
        # Whatever became of it, we act no more; at worst the others wait for the ttl.
        self._state = LeaseState.FOLLOWING
        self._due_ms = now_ms
        if self._stopping:
            self._stop(out)

    def _stop(self, out: list[Effect]) -> None:
        self._state = LeaseState.STOPPED
        out.append(Stopped())

    def _eligibility(self, event: Event, now_ms: float, out: list[Effect]) -> None:
        assert isinstance(event, EligibilityChanged)
        self._eligible = event.eligible
        if event.eligible:
            self._ineligible_since_ms = None
            if self._state is LeaseState.FOLLOWING and not self._in_flight:
                self._due_ms = min(self._due_ms, now_ms)
        elif self._ineligible_since_ms is None:
            self._ineligible_since_ms = now_ms

    def _epoch_seen(self, event: Event, now_ms: float, out: list[Effect]) -> None:
        assert isinstance(event, EpochSeen)
        if event.epoch > self._floor:
            self._floor = event.epoch
            if self._seen is None:
                # There was a holder that we never saw: it may still act.
                self._unchanged_since_ms = now_ms
        self._taken_epoch = max(self._taken_epoch, event.epoch if event.taken else event.epoch - 1)
        held = self._held
        if self._state in _LEADER_STATES and held is not None and held.epoch <= self._taken_epoch:
            self._superseded(now_ms, out)

    def _superseded(self, now_ms: float, out: list[Effect]) -> None:
        """The object says it is ours, a resource says the epoch is old. Claim the object again, with an epoch above."""
        self._lose(LossReason.SUPERSEDED, out)
        if self._in_flight:
            # The write under way decides whether the object is still ours; its answer leads here again.
            return
        self._claim(now_ms, out)

    def _resign(self, _event: Event, now_ms: float, out: list[Effect]) -> None:
        self._stopping = True
        self._lose(LossReason.RESIGNED, out)
        if self._state is LeaseState.LEADING:
            self._release(now_ms, out)
        elif self._state is LeaseState.FOLLOWING:
            self._in_flight = False
            self._stop(out)


_Handler = Callable[[Lease, Event, float, list[Effect]], None]
_S = LeaseState

TABLE: dict[tuple[LeaseState, type[Event]], _Handler] = {
    **{
        (state, kind): handler
        for state in LeaseState
        if state is not LeaseState.STOPPED
        for kind, handler in (
            (EligibilityChanged, Lease._eligibility),
            (EpochSeen, Lease._epoch_seen),
            (Resign, Lease._resign),
        )
    },
    (_S.FOLLOWING, Tick): Lease._read_if_due,
    (_S.FOLLOWING, ReadDone): Lease._follow,
    (_S.FOLLOWING, ReadFailed): Lease._read_failed,
    (_S.CLAIMING, Tick): Lease._resend_if_due,
    (_S.CLAIMING, PutDone): Lease._win,
    (_S.CLAIMING, PutConflict): Lease._back_off,
    (_S.CLAIMING, PutRefused): Lease._refused,
    (_S.CLAIMING, PutMissing): Lease._missing,
    (_S.CLAIMING, PutUnknown): Lease._unknown,
    (_S.SETTLING, Tick): Lease._read_if_due,
    (_S.SETTLING, ReadDone): Lease._settled,
    (_S.SETTLING, ReadFailed): Lease._read_failed,
    (_S.LEADING, Tick): Lease._lead,
    (_S.RENEWING, Tick): Lease._resend_if_due,
    (_S.RENEWING, PutDone): Lease._win,
    (_S.RENEWING, PutConflict): Lease._back_off,
    (_S.RENEWING, PutRefused): Lease._refused,
    (_S.RENEWING, PutMissing): Lease._missing,
    (_S.RENEWING, PutUnknown): Lease._unknown,
    (_S.DOUBTING, Tick): Lease._read_if_due,
    (_S.DOUBTING, ReadDone): Lease._settled,
    (_S.DOUBTING, ReadFailed): Lease._read_failed,
    **{(_S.RELEASING, kind): Lease._released for kind in (PutDone, PutConflict, PutRefused, PutMissing, PutUnknown)},
}
"""What is not in the table is ignored: results that the state does not wait for, and everything once stopped."""
