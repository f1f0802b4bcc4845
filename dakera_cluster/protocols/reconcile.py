"""One repair session between two replicas of a shard: afterwards each has every row the other had when it began.

::

    initiator                       responder
    AskRoot          ----------->   root of its digests; equal: done, one number was enough
    AskBuckets       ----------->   its bucket digests
    AskRows(buckets) ----------->   (key, term) of its rows there      per few buckets
    Exchange         ----------->   merges what was shipped, makes it durable, answers the bodies that were wanted
    (merge, make durable)                                              per some hundred keys

    IDLE -start-> ROOT -> BUCKETS -> ROWS <-> EXCHANGE -> DONE        any failure or time-out -> FAILED

Rows are shipped in both directions within one session: a key that differs is shipped and wanted, the responder answers with
the merge, so both end with the same bytes. Writes that arrive meanwhile do not disturb: rows that change are at worst shipped
for nothing, and a session that ended well covers all rows either side had stored before it began. That is what a joining
replica, a replica back from the dead and the hint log's marks rely on.

Invariants: DONE only after every differing bucket was compared and every difference exchanged and durable on both sides;
memory is bounded by ``buckets_per_step`` buckets of keys and ``keys_per_exchange`` bodies.

Duties of the caller: answer every effect once, with the answer or `failed`; compare under one shard version (a responder with
another version, or one that is still fetching its own rows, refuses); stamp the session with its start and let the receivers
apply its rows only while ``tombstones.repair_is_fresh``. Called by ``cluster.repair`` and ``cluster.mover``.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping

import msgspec

from dakera_cluster.protocols import digest

Terms = Mapping[bytes, int]
"""Local key of a row -> `digest.term` of it."""


class ReconcileConfig(msgspec.Struct, frozen=True, kw_only=True):
    buckets_per_step: int = 16
    keys_per_exchange: int = 256


class Stage(enum.Enum):
    IDLE = "idle"
    ROOT = "root"
    BUCKETS = "buckets"
    ROWS = "rows"
    EXCHANGE = "exchange"
    DONE = "done"
    FAILED = "failed"


class AskRoot(msgspec.Struct, frozen=True):
    """Send our root, get the peer's."""

    root: int


class AskBuckets(msgspec.Struct, frozen=True):
    """Get the peer's bucket digests, and report them together with our own as of now."""


class AskRows(msgspec.Struct, frozen=True):
    """Get the peer's (key, term) of all rows in ``buckets``, and report them together with our own as of now."""

    buckets: tuple[int, ...]


class Exchange(msgspec.Struct, frozen=True):
    """Send our rows of the keys in ``ship`` (those still there), get the peer's rows of the keys in ``want`` (after its
    merge), merge these and make them durable."""

    ship: tuple[bytes, ...]
    want: tuple[bytes, ...]


class Finished(msgspec.Struct, frozen=True):
    """The session ended well."""

    shipped: int
    wanted: int


Effect = AskRoot | AskBuckets | AskRows | Exchange | Finished


class Reconcile:
    """The initiator's side of one session."""

    __slots__ = ("_buckets", "_config", "_pending", "_shipped", "_stage", "_wanted")

    def __init__(self, config: ReconcileConfig | None = None) -> None:
        self._config = config or ReconcileConfig()
        self._stage = Stage.IDLE
        self._buckets: list[int] = []
        self._pending: list[tuple[bytes, bool, bool]] = []
        self._shipped = 0
        self._wanted = 0

    @property
    def stage(self) -> Stage:
        return self._stage

    def start(self, my_root: int) -> Effect:
        self._expect(Stage.IDLE)
        self._stage = Stage.ROOT
        return AskRoot(my_root)

    def root_is(self, mine: int, theirs: int) -> Effect:
        self._expect(Stage.ROOT)
        if mine == theirs:
            return self._finish()
        self._stage = Stage.BUCKETS
        return AskBuckets()

    def buckets_are(self, mine: Mapping[int, int], theirs: Mapping[int, int]) -> Effect:
        self._expect(Stage.BUCKETS)
        self._buckets = list(digest.differing(mine, theirs))
        return self._next()

    def rows_are(self, mine: Terms, theirs: Terms) -> Effect:
        self._expect(Stage.ROWS)
        for key in sorted(mine.keys() | theirs.keys()):
            if mine.get(key) != theirs.get(key):
                self._pending.append((key, key in mine, key in theirs))
        return self._next()

    def exchanged(self) -> Effect:
        """The rows of the last Exchange are durable on both sides."""
        self._expect(Stage.EXCHANGE)
        return self._next()

    def failed(self) -> None:
        """No answer, or a refusal. What was exchanged stays; a new session finds the rest."""
        self._stage = Stage.FAILED

    def _next(self) -> Effect:
        if self._pending:
            batch = self._pending[: self._config.keys_per_exchange]
            del self._pending[: self._config.keys_per_exchange]
            ship = tuple(key for key, is_mine, _ in batch if is_mine)
            want = tuple(key for key, _, is_theirs in batch if is_theirs)
            self._shipped += len(ship)
            self._wanted += len(want)
            self._stage = Stage.EXCHANGE
            return Exchange(ship, want)
        if self._buckets:
            step = tuple(self._buckets[: self._config.buckets_per_step])
            del self._buckets[: self._config.buckets_per_step]
            self._stage = Stage.ROWS
            return AskRows(step)
        return self._finish()

    def _finish(self) -> Effect:
        self._stage = Stage.DONE
        return Finished(self._shipped, self._wanted)

    def _expect(self, stage: Stage) -> None:
        if self._stage is not stage:
            raise ValueError(f"session is in stage {self._stage.value}, not {stage.value}")
