"""Where rows that other nodes speak for enter this node's replicas: repairs, snapshots and hints, each under its own rule.

Rows that another replica read (repair, snapshot, write-back) are applied only a bounded time after they were read; rows of a
coordinator that waited (hints) only while their stamps are young (`protocols.tombstones`): otherwise a row could come back
whose tombstone is forgotten. The clock learns from every row. Called by repair, mover, hints and collector.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence

from dakera_cluster.cluster.door import Door
from dakera_cluster.cluster.gate import NotAReplicaError
from dakera_cluster.model.errors import ServiceUnavailableError
from dakera_cluster.model.hlc import LOGICAL_BITS, MAX_SKEW_MS, HybridClock
from dakera_cluster.model.ids import ShardId
from dakera_cluster.model.rows import Row, version_of
from dakera_cluster.protocols.tombstones import TombstoneConfig, repair_is_fresh, write_is_fresh
from dakera_cluster.shard import keys
from dakera_cluster.shard.host import Host

ROWS_PER_MERGE = 256


class StaleRepairError(ServiceUnavailableError):
    """The rows were read too long ago to be applied: read them again."""


class Intake:
    """Rows from others, into this node's replicas."""

    def __init__(
        self, host: Host, door: Door, clock: HybridClock, now_ms: Callable[[], int], tombstones: TombstoneConfig
    ) -> None:
        self._host = host
        self._door = door
        self._clock = clock
        self._now_ms = now_ms
        self._tombstones = tombstones

    async def repair(self, shard: ShardId, rows: Sequence[Row], started_ms: int) -> int:
        """Merge what was read for a repair that began at ``started_ms`` (wall clock); how many rows changed. Durable on
        return. Raises StaleRepairError when it began too long ago, NotAReplicaError when the rows would not stay."""
        changed = 0
        for some in _batches(rows):
            newest = await asyncio.to_thread(_newest, some, self._now_ms() + MAX_SKEW_MS)
            self._clock.observe(newest, self._now_ms())
            if not repair_is_fresh(started_ms, self._now_ms(), self._tombstones):
                raise StaleRepairError("the repair began too long ago: its rows may have been deleted and forgotten")
            # Looked at without a wait before the merge: rows must not land behind a wipe that began meanwhile.
            if not self._door.takes_rows(shard):
                raise NotAReplicaError(f"shard {shard} does not take rows here")
            changed += len((await self._host.merge(shard, some)).changes)
        return changed

    def is_fresh_write(self, rows: Sequence[Row]) -> bool:
        """May these rows of a coordinator still be applied?"""
        now_ms = self._now_ms()
        return all(write_is_fresh(row.kind, row.body, now_ms, self._tombstones) for row in rows)

    async def write(self, shard: ShardId, rows: Sequence[Row]) -> None:
        """Merge rows of a write that arrives late. Raises FarFutureError, and applies nothing, when a stamp is from a broken
        clock."""
        for row in rows:
            self._clock.observe(version_of(row.kind, row.body).time, self._now_ms())
        for some in _batches(rows):
            await self._host.merge(shard, some)


def rows_of(pairs: Sequence[tuple[bytes, bytes | None]]) -> list[Row]:
    """Rows of (local key, body) pairs; those without a body are left out."""
    return [Row(*keys.split_local(local), body) for local, body in pairs if body is not None]


def size_of(rows: Sequence[Row]) -> int:
    """Bytes of rows on the wire, about."""
    return sum(len(row.namespace) + len(row.id) + len(row.body) + 16 for row in rows)


def _batches(rows: Sequence[Row]) -> Iterator[Sequence[Row]]:
    for start in range(0, len(rows), ROWS_PER_MERGE):
        yield rows[start : start + ROWS_PER_MERGE]


def _newest(rows: Sequence[Row], latest_ms: int) -> int:
    """The greatest stamp that is not from the far future: such rows are part of the shard by now, but that clock must not
    spread."""
    latest = latest_ms << LOGICAL_BITS
    times = (version_of(row.kind, row.body).time for row in rows)
    return max((time for time in times if time <= latest), default=0)
