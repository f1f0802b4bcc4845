"""Messages of shard moves between nodes. Used by `cluster.mover` and `cluster.snapshot_service`."""

from __future__ import annotations

import msgspec

from dakera_cluster.cluster.rounds import Round
from dakera_cluster.model.ids import ShardId
from dakera_cluster.model.rows import Row

SNAPSHOT = "move.snapshot"


class PageAsk(msgspec.Struct, frozen=True, array_like=True):
    """Rows of the shard after ``cursor`` (a local key), in key order, until ``most_bytes`` are passed."""

    shard: ShardId
    version: int
    cursor: bytes
    most_bytes: int


class PageAnswer(msgspec.Struct, frozen=True, array_like=True):
    """``cursor``: where the next page begins; None after the last row. ``round``: the source's collection rounds.
    ``busy``: users ask the source for other things meanwhile."""

    rows: list[Row]
    cursor: bytes | None
    round: Round
    busy: bool = False
