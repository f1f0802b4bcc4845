"""Messages of tombstone collection between replicas. Used by `cluster.collector` and `cluster.grave_service`."""

from __future__ import annotations

import msgspec

from dakera_cluster.model.ids import ShardId
from dakera_cluster.model.rows import Row

HOLD = "tombstones.hold"
COLLECT = "tombstones.collect"


class HoldAsk(msgspec.Struct, frozen=True, array_like=True):
    """Merge the dead ``rows``, note ``round`` as confirmed. ``started_ms``: wall clock when they were read."""

    shard: ShardId
    version: int
    round: int
    started_ms: int
    rows: list[Row]


class HoldAnswer(msgspec.Struct, frozen=True, array_like=True):
    """Local keys of the rows that are held with exactly these bytes; None when the round was not confirmed because a round up
    to ``known_round`` was."""

    held: list[bytes] | None
    known_round: int = 0


class CollectAsk(msgspec.Struct, frozen=True, array_like=True):
    """Note ``round`` as collected, then drop the rows (local key -> `digest.term`) that are unchanged."""

    shard: ShardId
    version: int
    round: int
    rows: dict[bytes, int]


class CollectAnswer(msgspec.Struct, frozen=True, array_like=True):
    dropped: int
