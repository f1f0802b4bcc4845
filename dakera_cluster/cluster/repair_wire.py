"""Messages of repair between nodes. Positional on the wire: append fields with defaults only.

Used by `cluster.repair_session` (asks), `cluster.repair_service` (answers), `cluster.repair` and `cluster.hintlog`.
"""

from __future__ import annotations

import enum

import msgspec

from dakera_cluster.model.ids import ShardId
from dakera_cluster.model.rows import Row

ROOTS = "repair.roots"
ROOT = "repair.root"
BUCKETS = "repair.buckets"
ROWS = "repair.rows"
EXCHANGE = "repair.exchange"
REFRESH = "repair.refresh"
WRITE_BACK = "repair.write_back"


class Message(msgspec.Struct, frozen=True, array_like=True):
    """Base of all."""


class Compared(enum.IntEnum):
    """On the wire: append, never renumber."""

    EQUAL = 0
    DIFFERENT = 1
    REFUSED = 2
    """Another shard version, or no source."""


class ShardRoot(Message, frozen=True):
    shard: ShardId
    version: int
    root: int


class RootsAsk(Message, frozen=True):
    """Compare many shards at once."""

    roots: list[ShardRoot]


class RootsAnswer(Message, frozen=True):
    """In the order of the question."""

    compared: list[Compared]


class RootAsk(Message, frozen=True):
    """Begin a session. ``collected``: highest round in which the initiator's copy forgot tombstones."""

    shard: ShardId
    version: int
    collected: int


class RootAnswer(Message, frozen=True):
    root: int
    collected: int


class BucketsAsk(Message, frozen=True):
    shard: ShardId
    version: int


class BucketsAnswer(Message, frozen=True):
    """bucket -> digest."""

    digests: dict[int, int]


class RowsAsk(Message, frozen=True):
    """Terms of the rows in ``buckets``, a page of them: those of the first bucket after ``after``, then of the rest."""

    shard: ShardId
    version: int
    buckets: list[int]
    after: bytes = b""


class RowsAnswer(Message, frozen=True):
    """``left``: how many of the buckets, counted from the last, are not told in full; 0 at the end. ``after``: where the
    first of them goes on."""

    terms: list[tuple[bytes, int]]
    left: int = 0
    after: bytes = b""


class ExchangeAsk(Message, frozen=True):
    """Merge ``rows``, then answer the rows of ``want``. ``started_ms``: wall clock at the session's start."""

    shard: ShardId
    version: int
    started_ms: int
    rows: list[Row]
    want: list[bytes]


class ExchangeAnswer(Message, frozen=True):
    """Rows of the first ``served`` keys wanted, as far as they are there."""

    rows: list[Row]
    served: int


class RefreshAsk(Message, frozen=True):
    """Compare this replica with so many others, from now on, that every majority is met."""

    shard: ShardId
    version: int


class WriteBackAsk(Message, frozen=True):
    """Merge what a strong read found. ``started_ms``: wall clock at the read's start."""

    shard: ShardId
    version: int
    started_ms: int
    rows: list[Row]


class Done(Message, frozen=True):
    """It is durable."""
