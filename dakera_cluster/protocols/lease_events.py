"""Nouns of the leader's lease: the object in the bucket, its timing, what goes into the core and what comes out of it.

Invariant: an event or effect says everything; the core and its caller share no other state. Used by `lease` and its driver.
"""

from __future__ import annotations

import enum

import msgspec

from dakera_cluster.model.errors import CorruptionError
from dakera_cluster.model.ids import BootId, NodeId

NOBODY = NodeId("")


class LeaseRecord(msgspec.Struct, frozen=True):
    """The object in the bucket. JSON, because an operator will look at it on a bad day."""

    cluster_id: str
    epoch: int
    holder: NodeId
    boot: BootId
    renew_seq: int
    nonce: str
    ttl_ms: int

    @property
    def is_released(self) -> bool:
        return self.holder == NOBODY


_RECORD = msgspec.json.Decoder(LeaseRecord)


def encode_lease(record: LeaseRecord) -> bytes:
    return msgspec.json.encode(record)


def decode_lease(data: bytes) -> LeaseRecord:
    """Raises CorruptionError when the bytes are no lease."""
    try:
        return _RECORD.decode(data)
    except msgspec.MsgspecError as error:
        raise CorruptionError(f"lease cannot be decoded: {error}") from error


class LeaseConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Times in milliseconds. A new leader acts at the latest about
    ``ttl_ms * (takeover_factor + takeover_jitter) + poll_ms`` after the old one died: 7 s by default."""

    ttl_ms: int = 5_000
    stasis_ms: int = 750
    """The holder stops this long before its validity ends."""
    renew_ms: int = 1_500
    poll_ms: int = 1_000
    """How often a follower looks."""
    takeover_factor: float = 1.1
    takeover_jitter: float = 0.1
    """Up to this share of the ttl is waited in addition, drawn anew for every observed write, so that challengers
    do not come at once."""
    retry_ms: int = 250
    """Wait after a failed read or an unknown write."""
    conflict_ms: int = 50
    """Longest wait after a 409; the store says that another write was in flight."""
    ineligible_ms: int = 5_000
    """A leader that may not lead any more (it sees no majority) gives the lease back after this time, so that the
    majority's side can have it."""

    def __post_init__(self) -> None:
        if not 0 < self.renew_ms < self.ttl_ms - self.stasis_ms:
            raise ValueError("renew_ms must be shorter than ttl_ms - stasis_ms")
        if self.takeover_factor < 1.0 or self.stasis_ms < 0 or self.takeover_jitter < 0:
            raise ValueError("takeover_factor must be at least 1, stasis and jitter not negative")


class LeaseState(enum.Enum):
    FOLLOWING = "following"
    CLAIMING = "claiming"
    SETTLING = "settling"
    LEADING = "leading"
    RENEWING = "renewing"
    DOUBTING = "doubting"
    RELEASING = "releasing"
    STOPPED = "stopped"


class LossReason(enum.Enum):
    EXPIRED = "expired"
    """No renewal succeeded in time."""
    TAKEN = "taken"
    """Somebody else wrote the object."""
    GONE = "gone"
    """The object was deleted."""
    SUPERSEDED = "superseded"
    """A resource has seen a higher epoch than ours."""
    RESIGNED = "resigned"


class Tick(msgspec.Struct, frozen=True):
    """Time has passed."""


class ReadDone(msgspec.Struct, frozen=True):
    """The object as it is now; ``record`` None when there is none."""

    attempt: int
    record: LeaseRecord | None
    etag: str | None


class ReadFailed(msgspec.Struct, frozen=True):
    attempt: int


class PutDone(msgspec.Struct, frozen=True):
    attempt: int
    etag: str


class PutConflict(msgspec.Struct, frozen=True):
    """409: another conditional write was in flight; nothing was decided."""

    attempt: int


class PutRefused(msgspec.Struct, frozen=True):
    """412: the condition does not hold."""

    attempt: int


class PutMissing(msgspec.Struct, frozen=True):
    """404 on If-Match: the object is not there."""

    attempt: int


class PutUnknown(msgspec.Struct, frozen=True):
    """No answer, or one that does not say whether the write took place. It may still take place later."""

    attempt: int


class EligibilityChanged(msgspec.Struct, frozen=True):
    """May this node campaign? Only when it sees a majority of the last map's members alive, and the bucket has proved that
    it honours conditions."""

    eligible: bool


class EpochSeen(msgspec.Struct, frozen=True):
    """Some resource (the map, a fence, gossip) holds this epoch. Claims go above it; a leader below it stops. ``taken``: the
    resource holds it from somebody else, so even our own equal epoch is too low."""

    epoch: int
    taken: bool = False


class Resign(msgspec.Struct, frozen=True):
    """Shut down: give the lease back, and campaign no more."""


Event = (
    Tick
    | ReadDone
    | ReadFailed
    | PutDone
    | PutConflict
    | PutRefused
    | PutMissing
    | PutUnknown
    | EligibilityChanged
    | EpochSeen
    | Resign
)


class ReadLease(msgspec.Struct, frozen=True):
    attempt: int


class PutLease(msgspec.Struct, frozen=True):
    """Write conditionally: If-Match ``if_match``, or If-None-Match: * when that is None."""

    attempt: int
    record: LeaseRecord
    if_match: str | None


class BecameLeader(msgspec.Struct, frozen=True):
    epoch: int
    valid_until_ms: float


class LeaseExtended(msgspec.Struct, frozen=True):
    epoch: int
    valid_until_ms: float


class LostLeadership(msgspec.Struct, frozen=True):
    epoch: int
    reason: LossReason


class HolderObserved(msgspec.Struct, frozen=True):
    """Another holder or epoch than before stands in the object."""

    record: LeaseRecord


class ForeignCluster(msgspec.Struct, frozen=True):
    """The bucket belongs to another cluster. This node will never campaign on it; an operator must look."""

    cluster_id: str


class Stopped(msgspec.Struct, frozen=True):
    """The lease is given back (or was not ours); the caller may exit."""


Effect = (
    ReadLease | PutLease | BecameLeader | LeaseExtended | LostLeadership | HolderObserved | ForeignCluster | Stopped
)
