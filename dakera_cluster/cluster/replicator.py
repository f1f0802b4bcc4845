"""Writes: stamp, send to every replica of the shard, answer when enough are durable.

Called by the memory services, which build rows with stamps from ``stamp()``. A write of several shards is several writes:
each is whole or not, and the first failure is raised after all have ended, so that nothing is left in the air.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from dakera_cluster.cluster.router import Router, Transport
from dakera_cluster.model.hlc import HybridClock, Stamp
from dakera_cluster.model.ids import NodeId, ShardId
from dakera_cluster.model.rows import Row
from dakera_cluster.shard import ops

ROWS_PER_APPLY = 256
"""Rows sent in one apply: bounds a frame, and lets embedding and disk overlap in large batches."""


class Replicator:
    """The write path of a coordinator."""

    def __init__(
        self, node: NodeId, router: Router, transport: Transport, clock: HybridClock, now_ms: Callable[[], int]
    ) -> None:
        self._node = node
        self._router = router
        self._transport = transport
        self._clock = clock
        self._now_ms = now_ms

    def stamp(self) -> Stamp:
        """A version for a write that starts now."""
        return self._clock.tick(self._now_ms())

    async def write(self, rows: Sequence[Row]) -> None:
        """Make rows durable. Raises QuorumUnavailableError, OverloadedError or StorageError."""
        by_shard: dict[ShardId, list[Row]] = {}
        for row in rows:
            by_shard.setdefault(self._router.shard_for(row.namespace, row.id), []).append(row)
        chunks = [
            (shard, some[start : start + ROWS_PER_APPLY])
            for shard, some in by_shard.items()
            for start in range(0, len(some), ROWS_PER_APPLY)
        ]
        if len(chunks) == 1:
            await self._apply(*chunks[0])
            return
        outcomes = await asyncio.gather(*(self._apply(shard, some) for shard, some in chunks), return_exceptions=True)
        for outcome in outcomes:
            if isinstance(outcome, BaseException):
                raise outcome

    async def _apply(self, shard: ShardId, rows: list[Row]) -> None:
        await self._transport.call(self._node, ops.Apply(shard, self._router.version, rows))
